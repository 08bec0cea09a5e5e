"""The judgement on a remedy that was tried."""

from dataclasses import replace

import numpy as np
import pytest

from spikewise import proof
from spikewise.detect import Resampler
from spikewise.proof import Experiment
from tests.spikewise.cases import SPIKE

IMAGES = SPIKE.images
RESAMPLER = Resampler(IMAGES)
NOISE = np.random.default_rng(0).normal(0, 0.1, (2, IMAGES))
NOISE -= NOISE.mean(1, keepdims=True)
CONTROL = np.array([[SPIKE.loss], [0.52]]) + NOISE
"""Losses [k, n]: the spike, and its recovery."""


def judged(*means, control=CONTROL, spike=SPIKE, resampler=RESAMPLER):
    """The proof for a treatment with these mean losses in the two epochs."""
    return proof.judge(spike, "a.b=1", control, np.array(means)[:, None] + NOISE[::-1], resampler)


@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        ((0.52, 0.51), "proven"),
        ((0.65, 0.51), "proven"),  # 0.15 above the expected loss: no alarm
        ((0.68, 0.51), "helps in part"),  # 0.18 is still an alarm
        ((0.80, 0.51), "helps in part"),  # a quarter of the rise
        ((0.52, 0.90), "helps in part"),  # the spike only comes an epoch later
        ((0.87, 0.51), "does not help"),  # less than a tenth
        ((0.90, 0.51), "does not help"),
        ((1.20, 0.51), "does not help"),
        ((np.nan, np.nan), "does not help"),
    ],
)
def test_a_remedy_is_proven_only_if_the_spike_is_gone(means, verdict):
    """A user would follow advice that only shrinks or delays the spike, or discard advice that removes it."""
    found = judged(*means)
    assert found.verdict == verdict
    assert found.losses == pytest.approx(means, nan_ok=True)
    if np.isfinite(means[0]):
        assert found.removed == pytest.approx(0.9 - means[0], abs=1e-9)
        assert found.low <= found.removed <= found.high
        assert found.fraction == pytest.approx(found.removed / SPIKE.rise)


def test_what_another_draw_of_images_could_undo_is_not_proven():
    """Twenty photographs of one scene would prove a remedy for all others."""
    treatment = CONTROL.copy()
    treatment[0, :30] -= 4.0  # one group: the mean falls by 0.4
    assert proof.judge(SPIKE, "a.b=1", CONTROL, treatment, RESAMPLER).verdict == "proven"
    groups = Resampler(IMAGES, [f"scene {i // 30}" for i in range(IMAGES)])
    assert proof.judge(SPIKE, "a.b=1", CONTROL, treatment, groups).verdict == "does not help"


def test_a_remedy_against_a_loss_that_is_not_finite():
    """The most harmful spikes could never be proven."""
    lost = replace(SPIKE, loss=np.nan, rise=np.inf, low=np.inf, high=np.inf, error=np.inf, outcome="divergence")
    control = np.full_like(CONTROL, np.nan)
    found = judged(0.52, 0.5, control=control, spike=lost)
    assert (found.verdict, found.fraction, found.removed) == ("proven", 1.0, np.inf)
    assert judged(0.52, np.inf, control=control, spike=lost).verdict == "helps in part"
    assert judged(np.nan, np.nan, control=control, spike=lost).verdict == "does not help"
    first = replace(lost, epoch=1, baseline=np.nan, scale=np.nan, threshold=np.nan)
    assert judged(0.7, 0.6, control=control, spike=first).verdict == "proven"


def test_the_control_is_compared_bit_for_bit():
    """A replay on another machine, which rounds otherwise, would pass for a proof."""
    recorded = {4: np.array([0.5, np.nan, np.inf], np.float32), 5: np.array([0.25, 0.5, 1], np.float32)}
    assert proof.mismatch(recorded, {epoch: losses.copy() for epoch, losses in recorded.items()}) is None
    rounded = {4: recorded[4], 5: np.nextafter(recorded[5], np.float32(2), dtype=np.float32)}
    found = proof.mismatch(recorded, rounded)
    assert (found.epoch, found.images) == (5, 3)
    assert found.largest == pytest.approx(1.2e-7, rel=0.1)
    lost = proof.mismatch(recorded, {4: np.array([0.5, 0.5, np.inf], np.float32), 5: recorded[5]})
    assert (lost.epoch, lost.images, lost.largest) == (4, 1, np.inf)


def experiment(*proofs, **changes):
    return replace(Experiment(9, SPIKE.loss, 8, (9, 10), (0.9, 0.52), None, proofs), **changes)


def test_the_sentences_give_before_and_after():
    """A user would have to work out from fractions what the remedy did to the loss."""
    proven, late = judged(0.52, 0.51), judged(0.52, 0.9)
    assert proof.sentence(experiment(proven), proven) == "Proven: with a.b=1 the loss of epoch 9 is 0.52 instead of 0.90."
    expected = "Helps in part: with a.b=1 the loss of epoch 9 is 0.52 instead of 0.90. Later it is up to 0.90."
    assert proof.sentence(experiment(late), late) == expected
    worse = judged(np.nan, np.nan)
    tiny = replace(proven, losses=(0.0461, 0.03))
    assert "is 0.046 instead of 0.90" in proof.sentence(experiment(tiny), tiny)
    expected = "Does not help: with a.b=1 the loss of epoch 9 is not finite instead of 0.90."
    assert proof.sentences(experiment(worse, skipped=("Not tried: x.",))) == [expected, "Not tried: x."]
    assert proof.sentences(experiment(proven, problem="Nothing can be proven.")) == ["Nothing can be proven."]


def test_the_best_remedy_is_a_proven_one():
    """The report would open with a remedy that only helps in part."""
    part, proven, worse = judged(0.4, 0.9), judged(0.6, 0.5), judged(1.2, 0.5)
    assert experiment(worse, part, proven).best is proven
    assert experiment(proven, judged(0.5, 0.5)).best is proven  # the verdict's own remedy is tried first
    assert experiment(worse, part).best is part
    assert experiment(worse).best is None


def test_what_was_proven_before_stays():
    """Trying a second setting by hand would remove the proof of the first from the report."""
    first, again = judged(0.52, 0.51), judged(0.6, 0.51)
    second = replace(judged(0.8, 0.5), settings="c.d=2")
    assert proof.merged(experiment(first), experiment(second)).proofs == (first, second)
    assert proof.merged(experiment(first), experiment(again)).proofs == (again,)
    assert proof.merged(None, experiment(second)).proofs == (second,)
    other = experiment(first, control=(0.91, 0.52))  # the run went back: another spike in the same epoch
    assert proof.merged(other, experiment(second)).proofs == (second,)
    assert not other.is_about(replace(SPIKE, loss=1.0))
    assert other.is_about(SPIKE)
