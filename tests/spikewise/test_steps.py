"""What a run's step records and snapshots say about an epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikewise import steps as analysis
from spikewise.records import STEP

RNG = np.random.default_rng(0)
USUAL = {"loss": 0.5, "gradient_norm": 1.0, "update_norm": 0.01, "learning_rate": 1e-3}
STATISTICS = (1, 2)


def _epoch(count=50, **factors):
    """Steps [count] with a little noise; `factors` multiply a field."""
    steps = np.zeros(count, STEP)
    for name, usual in USUAL.items():
        steps[name] = usual * factors.get(name, 1) * (1 + 0.1 * RNG.normal(size=count) * (name != "learning_rate"))
    return steps


def _trained(rates, **factors):
    """Steps of an epoch with these learning rates, their lengths in proportion."""
    steps = _epoch(len(rates), **factors)
    steps["update_norm"] *= np.asarray(rates) / USUAL["learning_rate"]
    steps["learning_rate"] = rates
    return steps


def _path(momentum=0.95, reset=None, drift=0.02, level=0.0, snapshots=(0, 6, 12, 18, 25, 31, 37, 43, 50)):
    """A weight, and two statistics that follow it, at the snapshots of an epoch of 50 steps."""
    weight, mean, variance = np.zeros(4), np.full(4, 3.0), np.full(4, 9.0)
    path = []
    for step in range(51):
        if step in snapshots:
            path.append((step, [weight.copy(), mean.copy(), variance.copy()]))
        if step == reset:
            mean, variance = np.zeros(4), np.ones(4)
        weight = weight + drift
        mean = momentum * mean + (1 - momentum) * (3 + weight + level)
        variance = momentum * variance + (1 - momentum) * (9 + weight + level)
    return path


@given(st.lists(st.tuples(*[st.floats(width=64, allow_nan=False)] * 4), max_size=5))
def test_step_records_survive_storage_as_a_plain_array(rows):
    """Otherwise a resumed run would compare its steps with others than the run had."""
    steps = np.array(rows, STEP)
    plain = analysis.as_array(steps)
    assert plain.shape == (len(rows), 4)
    np.testing.assert_array_equal(analysis.from_array(plain), steps)


def test_long_steps_are_distinguished_from_large_gradients():
    """Otherwise noise would be called a learning rate that is too high."""
    usual = _epoch()
    assert analysis.unexplained_lengths(_epoch(update_norm=8), usual).max() > 6
    assert analysis.unexplained_lengths(_epoch(update_norm=8, gradient_norm=8), usual).max() < 2


N = 50
AT = np.arange(N)
LAST = 1e-3
"""The learning rate with which the epoch before ended."""
SCHEDULES = {
    "constant": np.full(N, LAST),
    "linear warm-up": LAST + 2e-4 * (AT + 1),
    "linear warm-up from nearly 0": None,
    "doubled": np.full(N, 2 * LAST),
    "exponential": LAST * 1.1 ** (AT + 1),
    "cosine": LAST * (1 + np.cos(np.pi * AT / N)) / 2,
    "cosine to 0": LAST * np.maximum(np.cos(np.pi * AT / N / 2), 0),
    "step down": np.where(AT < 20, LAST, LAST / 10),
    "step down between epochs": np.full(N, LAST / 10),
    "down and back": np.where((AT > 10) & (AT < 30), LAST / 100, LAST),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_makes_no_step_too_long(schedule):
    """A warm-up would be called an overshoot, and everything that happens within it be blamed on it."""
    rates, usual = SCHEDULES[schedule], _trained(np.full(N, LAST))
    before = LAST
    if rates is None:  # the rates of two epochs of one warm-up
        whole = 1e-9 + 2.7e-5 * np.arange(2 * N)
        usual, rates, before = _trained(whole[:N]), whole[N:], float(whole[N - 1])
        np.testing.assert_array_equal(analysis.raised(whole[:N]), 1)
    np.testing.assert_allclose(analysis.raised(rates, before), 1)
    assert analysis.unexplained_lengths(_trained(rates), usual, before).max() < 1.6


def test_steps_that_momentum_carries_over_a_step_down_are_not_too_long():
    """With momentum, the steps after the learning rate fell are still those of the higher one; every step schedule of SGD would be
    an overshoot."""
    velocity, steps = USUAL["update_norm"], _epoch()
    steps["learning_rate"] = np.where(AT < 20, LAST, LAST / 10)
    for number in range(N):
        velocity = 0.9 * velocity + 0.1 * USUAL["update_norm"] * steps["learning_rate"][number] / LAST
        steps["update_norm"][number] = velocity
    assert analysis.unexplained_lengths(steps, _trained(np.full(N, LAST)), LAST).max() < 1.6


@pytest.mark.parametrize(
    ("rates", "times", "first"),
    [
        (np.full(N, 10 * LAST), 10, 0),
        (np.where(AT == 30, 600 * LAST, LAST), 600, 30),
        (np.where(AT >= 30, 70 * LAST, LAST), 70, 30),
        ((LAST + 2e-4 * (AT + 1)) * np.where(AT >= 30, 70, 1), 70, 30),
    ],
    ids=["between epochs", "one step", "within the epoch", "within a warm-up"],
)
def test_a_learning_rate_that_rises_at_once_makes_steps_too_long(rates, times, first):
    """A mistyped learning rate explains its own steps; judged by it alone, the harm that it does would stay unexplained."""
    found = analysis.raised(rates, LAST)
    assert int(np.argmax(found > 2)) == first
    assert found.max() == pytest.approx(times, rel=0.05)
    lengths = analysis.unexplained_lengths(_trained(rates), _trained(np.full(N, LAST)), LAST)
    assert lengths.max() == pytest.approx(times, rel=0.5)
    assert lengths[:first].max(initial=1) < 1.6


def test_steps_longer_than_their_learning_rate_are_found_in_a_schedule():
    """Steps ten times too long would hide in a schedule that has lowered the rate tenfold."""
    steps = _trained(np.full(N, LAST / 10))
    steps["update_norm"][40] *= 10
    lengths = analysis.unexplained_lengths(steps, _trained(np.full(N, LAST)), LAST)
    assert int(lengths.argmax()) == 40
    assert lengths.max() > 6


def test_batches_with_an_unusually_high_training_loss_are_noticed():
    """Otherwise weights that were led astray would be blamed on the moving statistics, which lag behind them."""
    usual = _epoch(100)
    assert abs(analysis.astray(_epoch(), usual)) < 2.5
    worse = _epoch()
    worse["loss"][-10:] *= 2
    assert analysis.astray(worse, usual) > 5


@pytest.mark.parametrize("momentum", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("step", [0, 20, 44])
def test_lost_statistics_are_distinguished_from_drifting_ones(momentum, step):
    """Otherwise a restart without statistics would be called a lag, or a restart with them be blamed for one."""
    assert analysis.jump(_path(momentum, reset=step), step, STATISTICS) > analysis.JUMP
    assert analysis.jump(_path(momentum), step, STATISTICS) < 2
    assert analysis.jump(_path(momentum, level=5.0), step, STATISTICS) < 2


def test_without_statistics_or_snapshots_nothing_jumped():
    """Otherwise the diagnosis of a network without BatchNormalization would crash."""
    assert analysis.jump(_path(), 3, ()) == 0
    assert analysis.jump(_path()[:1], 3, STATISTICS) == 0


def test_weights_that_moved_without_a_step_are_found():
    """Otherwise a faulty restore would stay unexplained."""
    path = [(step, [np.full(4, 0.005 * step)]) for step in (0, 10, 20, 30)]
    steps = _epoch(30)
    steps["update_norm"] = 0.01
    assert analysis.foreign(path, steps, [0]) is None
    path[2][1][0] += 1
    start, stop, excess = analysis.foreign(path, steps, [0])
    assert (start, stop) == (10, 20)
    assert excess == pytest.approx(2, abs=0.1)


def test_oscillating_weights_are_distinguished_from_a_straight_path():
    """Otherwise gradient noise could not be distinguished from a wrong direction."""
    straight = [(i, [np.full(3, float(i))]) for i in range(9)]
    back = [(i, [np.full(3, float(i % 2))]) for i in range(9)]
    assert analysis.straightness(straight, [0]) == pytest.approx(1)
    assert analysis.straightness(back, [0]) < 0.1


@pytest.mark.parametrize("bad", [1, 3, 6])
def test_bad_batches_stand_out_however_many_follow_each_other(bad):
    """Six batches with wrong labels in a row look usual to each other; they would go unnoticed, and another cause be named."""
    usual, values = _epoch()["loss"], _epoch()["loss"]
    values[40 : 40 + bad] *= 5
    assert list(np.flatnonzero(analysis.outliers(values, usual))) == list(range(40, 40 + bad))


def test_an_ordinary_epoch_has_no_outliers():
    """Otherwise every diagnosis would search ordinary batches for a fault, at the cost of a pass each."""
    assert not any(analysis.outliers(_epoch()["loss"], _epoch()["loss"]).any() for _ in range(50))


@pytest.mark.parametrize(
    ("factor", "guess", "lost"),
    [
        (1, 2.3, False),
        (2, 2.3, False),
        (4, 2.3, True),
        (np.nan, 2.3, True),
        (np.inf, np.inf, True),
        (4, np.inf, None),
        (1, np.inf, False),
        (3, 0.3, True),
    ],
)
def test_training_is_lost_if_its_own_batches_are(factor, guess, lost):
    """Otherwise lagging statistics would be called a divergence while the training loss falls as ever."""
    assert analysis.lost(_epoch(loss=factor), _epoch(100), guess) is lost


def test_without_steps_nothing_is_said_about_training():
    """A resumed run without earlier epochs would be called lost, or alive."""
    assert analysis.lost(_epoch(0), _epoch(), 2.3) is None
    assert analysis.lost(_epoch(), _epoch(0), 2.3) is None


def test_a_stride_is_measured_in_learning_rates_per_weight():
    """Adam's second moments could not be called too small: the length of a step also depends on the number of weights."""
    steps = _trained(np.full(50, 1e-3))
    steps["update_norm"][7] = 0.3
    found = analysis.strides(steps, 10_000)
    assert found[7] == pytest.approx(0.3 / (1e-3 * 100))
    assert np.median(found) == pytest.approx(0.1, rel=0.1)
    assert not analysis.strides(_trained(np.zeros(5)), 10_000).any()


def test_losses_of_sorted_batches_vary_more_than_those_of_shuffled_ones():
    """Images that are in the same order in every epoch would be called sorted anew."""
    wild = _epoch()
    wild["loss"] *= 1 + 0.8 * np.sin(np.arange(50))
    assert analysis.spread(wild, _epoch(100)) > 3
    assert 0.6 < analysis.spread(_epoch(100), _epoch(100)) < 1.6
    assert analysis.spread(_epoch(3), _epoch()) == 1
