"""Detection: what counts as a spike, how certain it is, and how it ends."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import false_alarms
from spikewise import describe, detect
from spikewise.detect import Detector, Resampler, overfitting
from spikewise.errors import UserError
from spikewise.forecast import MULTIPLE, forecast


def _epochs(means, n=200, seed=0, spread=0.5):
    """Losses [k, n] with these means."""
    images = np.random.default_rng(seed).normal(0, spread, n)
    return np.asarray(means)[:, None] + images - images.mean()


def _spikes(means, **keywords):
    detector = Detector()
    for losses in _epochs(means, **keywords):
        detector.update(losses)
    return detector.spikes


def test_a_jump_is_found_in_its_epoch_with_its_size():
    """Otherwise a spike that a user sees in the curve would be missed, or reported with a wrong rise."""
    means = [0.9, 0.8, 0.72, 0.7, 0.69, 0.71, 0.7, 0.69, 0.7, 1.3, 0.7]
    (spike,) = _spikes(means)
    assert spike.epoch == 10
    assert spike.rise == pytest.approx(0.6, abs=0.02)
    assert spike.low <= spike.rise <= spike.high
    assert (spike.outcome, spike.outcome_epoch) == ("recovered", 11)


def test_the_second_epoch_can_already_be_a_spike():
    """Otherwise a run that breaks at once would raise no alarm."""
    assert [s.epoch for s in _spikes([0.7, 3.0])] == [2]
    assert not _spikes([0.7, 1.4])


def test_overfitting_is_a_trend_and_not_a_spike():
    """Otherwise every late epoch of an overfitting run would raise an alarm."""
    noise_scale = np.random.default_rng(0).normal(0, 0.02, 60)
    means = 0.7 + 0.02 * np.arange(60) + noise_scale
    assert not _spikes(means)
    trend = overfitting(range(1, 61), means, 0.7 * np.exp(-np.arange(60) / 20))
    assert trend is not None
    assert trend.epoch <= 4
    assert trend.climb == pytest.approx(0.02, rel=0.1)


def test_without_a_climb_or_with_rising_training_losses_there_is_no_overfitting():
    """Otherwise a healthy run, or one with another problem, would be called overfitted."""
    rising, flat = 0.7 + 0.02 * np.arange(30), 0.7 + 0.005 * np.sin(np.arange(30))
    assert overfitting(range(1, 31), rising, rising) is None
    assert overfitting(range(1, 31), flat, 1 - rising / 3) is None


def test_a_steep_healthy_fall_raises_no_alarm():
    """Otherwise the ordinary start of a run would raise an alarm, because a falling trend was extrapolated."""
    assert not _spikes(0.1 + 2 * np.exp(-np.arange(40) / 3))


@pytest.mark.parametrize("kind", ["photographs", "slow noise", "independent, excursions"])
def test_at_most_one_healthy_run_in_twenty_has_an_alarm(kind):
    """With more false alarms users would ignore them. This repeats part of benchmarks/false_alarms.py with another seed."""
    multiples, _ = false_alarms.needed(false_alarms.simulate(false_alarms.KINDS[kind], 300, seed=7))
    assert np.mean(multiples > MULTIPLE) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)


def test_the_detector_judges_as_the_calibration_does():
    """Otherwise the false-alarm rate would have been measured on another detector than the one that runs."""
    losses = false_alarms.simulate(false_alarms.KINDS["photographs"], 10, seed=3)
    multiples, _ = false_alarms.needed(losses)
    assert [bool(_spikes(run, n=3, spread=0.0)) for run in losses] == list(multiples > MULTIPLE)


@pytest.fixture(scope="module")
def recorded():
    """Curves of real short runs [S, T], NaN after their end, and the epoch of each run's fault [S], 0 without one."""
    with np.load(Path(__file__).parent / "short_runs.npz") as stored:
        return [curve[~np.isnan(curve)].astype(float) for curve in stored["curves"]], stored["faults"]


def test_a_fault_in_a_short_real_run_is_found(recorded):
    """The steep and noisy first epochs of a short run would hide a loss that trebles (see benchmarks/short_runs.py)."""
    found = [
        epoch in [spike.epoch for spike in detect.replay(curve).spikes]
        for curve, epoch in zip(*recorded, strict=True)
        if epoch and curve[epoch - 1] >= 2 * curve[epoch - 2]
    ]
    assert len(found) >= 8
    assert np.mean(found) >= 0.9


def test_a_short_healthy_real_run_raises_no_alarm(recorded):
    """Users would ignore alarms that come in the ordinary start of a run."""
    alarms = [bool(detect.replay(curve).spikes) for curve, epoch in zip(*recorded, strict=True) if not epoch]
    assert len(alarms) >= 20
    assert np.mean(alarms) <= 0.05


def test_restless_first_epochs_do_not_hide_a_fault():
    """A loss of 1.65 -> 5.45 -> 1.90 would raise no alarm because the loss was noisy before, when BatchNormalization settled."""
    start = [2.57, 2.9, 3.6, 4.21, 3.1, 2.2, 1.65]
    assert [s.epoch for s in _spikes([*start, 5.45, 1.9])] == [8]
    assert not _spikes([*start, 1.5, 1.6, 1.4, 1.45])
    rates = false_alarms.short(150, seed=7)
    assert rates["healthy_with_alarm"] <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 150)
    assert rates["faults_found"] >= 0.9 - 2 * np.sqrt(0.1 * 0.9 / 120)


def test_a_small_validation_set_has_a_wide_interval():
    """Otherwise chance would be reported as a certain rise: one image of twenty that jumps is not a general rise."""
    losses = _epochs([0.5] * 10, n=20)
    losses[-1, 0] += 10
    detector = Detector()
    for epoch in losses:
        detector.update(epoch)
    (spike,) = detector.spikes
    assert spike.low < 0.01 < spike.high


def test_images_of_one_source_count_as_one():
    """Otherwise the interval would be too narrow if many images are crops of one photograph."""
    change = np.repeat(np.random.default_rng(0).normal(0, 1, 20), 10)
    alone = Resampler(200).means(change).std()
    together = Resampler(200, [f"photo {i // 10}" for i in range(200)]).means(change).std()
    unnamed = Resampler(200, [""] * 200).means(change).std()
    assert together == pytest.approx(np.sqrt(10) * alone, rel=0.15)
    assert unnamed == pytest.approx(alone, rel=0.1)


def test_the_group_that_rose_most_is_named():
    """A user who reads that five photographs are too few needs to know which of them caused the rise."""
    change, groups = np.repeat([0.1, 3.0, -0.1], 4), [name for name in ("cat", "rocket", "moon") for _ in range(4)]
    assert Resampler(12, groups).largest(change) == ("rocket", pytest.approx(1.0))
    assert Resampler(12).largest(change)[0] is None
    assert Resampler(12, [*groups[:8], *[""] * 4]).largest(-change)[0] is None
    detector = Detector(groups)
    for loss in (0.5, 0.5, 0.5):
        detector.update(np.full(12, loss))
    spike = detector.update(0.5 + change).spike
    assert spike is not None
    assert (spike.groups, spike.group, spike.group_fraction) == (3, "rocket", pytest.approx(1.0))


@pytest.mark.parametrize(
    ("after", "outcome", "when"),
    [
        ([0.71], "recovered", 11),
        ([1.2, 1.1, 0.7], "recovered", 13),
        ([1.3] * 6, "level shift", 15),
        ([1.5, 2, 3, 4, 5, 6], "divergence", 15),
        ([1.3, np.nan], "divergence", 12),
    ],
)
def test_outcomes(after, outcome, when):
    """Otherwise a user would not learn whether the run recovered."""
    spike = _spikes([0.7, 0.71, 0.69, 0.7, 0.7, 0.71, 0.7, 0.69, 0.7, 1.3, *after])[0]
    assert (spike.outcome, spike.outcome_epoch) == (outcome, when)


def test_a_loss_that_stays_high_has_not_recovered():
    """Otherwise half of a spike would become the norm, and the rest of a long rise go unnoticed."""
    spikes = _spikes([*[0.7, 0.78] * 8, 2.0, 1.7, 1.15, 1.9, 1.45, 1.6, 1.2, 1.6])
    assert [(s.epoch, s.outcome, s.outcome_epoch) for s in spikes] == [(17, "level shift", 22)]


def test_a_lasting_rise_of_a_network_that_lost_its_training_images_is_a_divergence():
    """Otherwise a dead network would be called a level shift."""
    detector = Detector()
    for losses in _epochs([0.3] * 8 + [0.7] * 6):
        detector.update(losses, lost=True)
    assert [s.outcome for s in detector.spikes] == ["divergence"]


def test_after_a_level_shift_the_new_level_is_the_norm():
    """Otherwise the rest of the run would be one long alarm, or spikes in it be missed."""
    low, high = 0.7 + 0.01 * np.sin(np.arange(10)), 1.3 + 0.01 * np.sin(np.arange(20))
    spikes = _spikes([*low, *high, 2.4, 1.3])
    assert [(s.epoch, s.outcome) for s in spikes] == [(11, "level shift"), (31, "recovered")]


def test_a_loss_that_is_not_finite_is_a_divergence_at_once():
    """Otherwise a broken run would crash its diagnosis, or look healthy."""
    (spike,) = _spikes([0.7, 0.6, 0.5, np.nan, 0.5])
    assert (spike.epoch, spike.outcome, spike.rise) == (4, "divergence", np.inf)


def test_a_loss_that_stays_not_finite_is_one_divergence():
    """Otherwise a broken run would raise an alarm every epoch."""
    assert [s.epoch for s in _spikes([0.7, 0.6, 0.5, *[np.nan] * 6])] == [4]
    assert [s.epoch for s in _spikes([0.7, 0.6, 0.5, np.nan, np.nan, 0.5, np.nan])] == [4, 7]


def test_a_loss_that_never_was_finite_is_a_divergence():
    """Otherwise a run that was broken from the start would be reported as one without a spike."""
    (spike,) = _spikes([np.nan] * 8)
    assert (spike.epoch, spike.outcome) == (1, "divergence")
    assert "nan" not in describe.headline(spike)
    assert [s.epoch for s in _spikes([np.nan, 0.7, 0.6, 0.6, 2.0])] == [1, 5]


def test_a_few_images_without_a_finite_loss_are_not_a_divergence():
    """Otherwise one corrupt image would be reported as the end of the run."""
    losses = _epochs([0.5] * 6)
    losses[-1, :2] = np.inf
    detector = Detector()
    for epoch in losses:
        detector.update(epoch)
    assert detector.spikes[0].outcome == "open"
    assert [spike.outcome for spike in detector.update(losses[0]).resolved] == ["recovered"]


def test_a_second_fault_during_an_open_spike_is_a_spike_of_its_own():
    """A second fault would be hidden until the first one is over, and stay unexplained."""
    spikes = _spikes([*[0.7] * 8, 1.5, 1.4, 4.5, 1.4, 0.7])
    assert [(s.epoch, s.outcome, s.outcome_epoch) for s in spikes] == [(9, "recovered", 13), (11, "recovered", 12)]
    assert spikes[1].baseline == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize("small", [0.05, 0.005, 0.0005])
def test_a_second_fault_is_found_however_small_the_loss_was(small):
    """A loss near 0 varies by more than its size, so what counts as a second fault would grow without bounds."""
    spikes = _spikes([small, 1.1 * small, 0.9 * small, small, 1.0, 1.0, 4.0, 1.0])
    assert [spike.epoch for spike in spikes] == [5, 7]


def test_a_trend_needs_training_losses_that_are_known():
    """A run that was resumed without a saved state would be called overfitting, although training images rose as well."""
    climbing = 0.5 + 0.05 * np.arange(20)
    assert overfitting(range(1, 21), climbing, climbing) is None
    assert overfitting(range(1, 21), climbing, np.array([np.nan, *climbing[1:]])) is None


def test_a_fault_during_a_level_shift_is_found_and_does_not_become_the_norm():
    """The epoch that settles the outcome of one spike would hide the next, or raise what is expected afterwards."""
    for second in (13, 14):
        means = [0.7] * 8 + [1.5] * 12
        means[second - 1] = 5.0
        spikes = _spikes(means)
        assert [(s.epoch, s.outcome) for s in spikes] == [(9, "level shift"), (second, "recovered")]
        assert forecast(np.arange(1, 4), np.array(means[8:11]), 4)[0] == pytest.approx(1.5)
        assert not _spikes([*means, 1.5])[2:]


def test_a_loss_that_is_not_finite_is_reported_during_an_open_spike():
    """The worst that can happen to a run would go unreported because something else had happened before."""
    spikes = _spikes([*[0.7] * 8, 1.5, 1.4, np.nan, np.nan])
    assert [(s.epoch, s.outcome, s.outcome_epoch) for s in spikes] == [(9, "divergence", 11), (11, "divergence", 11)]
    assert [s.epoch for s in _spikes([*[0.7] * 8, 2.0, 8.0, 90.0, np.inf])][-1] == 12


def test_a_loss_that_rises_again_and_again_is_not_a_spike_each_time():
    """An explosion would be diagnosed epoch after epoch, each time as something new."""
    assert [s.epoch for s in _spikes([0.7] * 8 + [2.0**k for k in range(1, 8)])] == [9]
    assert len(_spikes([0.7] * 8 + [5.0**k for k in range(1, 8)])) <= 2


def test_the_largest_rise_without_an_alarm_is_kept():
    """A user who sees a rise in the curve, and no alarm, would not learn that the detector saw it too and what it lacked."""
    means = [0.7, 0.8, 0.66, 0.79, 0.68, 0.75, 0.69, 1.05, 0.7, 0.78, 0.7]
    detector = detect.replay(means)
    assert not detector.spikes
    largest = detector.largest
    assert largest is not None
    assert (largest.epoch, largest.expected + largest.rise) == (8, pytest.approx(1.05))
    assert 0 < largest.rise < largest.limit
    assert [s.epoch for s in detect.replay(means, sensitivity=1.1 * largest.limit / largest.rise).spikes] == [8]


def test_a_confirmed_smaller_rise_is_no_rise_without_an_alarm():
    """The report would name a spike in epoch 8, and then say that the rise of epoch 8 was none."""
    means = [0.7, 0.8, 0.66, 0.79, 0.68, 0.75, 0.69, 1.05, 0.7, 0.78, 0.7]
    detector = detect.replay(means, confirmed={8})
    assert [spike.epoch for spike in detector.spikes] == [8]
    assert detector.largest.epoch != 8
    assert not detect.replay(means, confirmed={9}).spikes  # only a suspicion can be confirmed


def test_sensitivity_divides_the_limit():
    """A user who sets 2 expects an alarm at half the rise, and one who sets nonsense an error that says what to set."""
    quiet = [0.7 + 0.01 * (-1) ** k for k in range(12)]
    (usual,) = _spikes([*quiet, 3.0])
    (spike,) = detect.replay([*quiet, 3.0], sensitivity=2).spikes
    assert spike.threshold == pytest.approx(usual.threshold / 2, rel=0.05)
    for nonsense in (0, -1, 11, float("nan")):
        with pytest.raises(UserError, match=r"sensitivity = .* Fix: use 1"):
            Detector(sensitivity=nonsense)


def test_a_curve_that_keeps_jumping_is_restless():
    """Forty epochs of jumps would be summarized as two spikes, because an open spike and a new level hide what follows them."""
    r = np.random.default_rng(0)
    calm = 0.7 + 0.01 * r.normal(size=20)
    jumping = 0.7 * np.exp(0.4 * np.abs(r.normal(size=40)))
    detector = detect.replay([*calm, *jumping, *calm])
    (part,) = detect.course(detector).restless
    assert 20 < part.first <= 26
    assert 54 <= part.last <= 60
    assert detect.JUMPS <= part.jumps < 30
    assert not detect.course(detect.replay(calm)).restless
    assert not detect.course(detect.replay([*calm[:8], np.inf, np.nan, *calm, 2.0, *calm])).restless


LOSSES = st.lists(
    st.one_of(st.floats(0.0625, 3, width=32), st.sampled_from([0.7, 0.7, 0.7, 1.5, float("nan"), float("inf")])),
    min_size=2,
    max_size=24,
)


def _update(detector, means):
    images = np.linspace(-0.2, 0.2, 20, dtype=np.float32)
    return [detector.update(np.float32(mean) + images) for mean in means]


@settings(max_examples=60, deadline=None)
@given(LOSSES, st.data())
def test_a_resumed_run_finds_what_an_undisturbed_one_finds(means, data):
    """Otherwise a restart, after whatever epoch, would invent a spike or lose one."""
    cut = data.draw(st.integers(0, len(means)))
    whole, first, second = Detector(), Detector(), Detector()
    expected = _update(whole, means)
    _update(first, means[:cut])
    facts, recent = first.state()
    second.restore(json.loads(json.dumps(facts)), recent)
    assert repr(_update(second, means[cut:])) == repr(expected[cut:])  # repr, because NaN differs from itself
    assert repr(second.spikes) == repr(whole.spikes)
    assert second.largest == whole.largest
