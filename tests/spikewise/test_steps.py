"""What a run's step records and snapshots say about an epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikewise import steps as analysis
from spikewise.records import STEP

RNG = np.random.default_rng(0)
USUAL = {"loss": 0.5, "gradient_norm": 1.0, "update_norm": 0.01}
STATISTICS = (1, 2)


def _epoch(count=50, **factors):
    """Steps [count] with a little noise; `factors` multiply a field."""
    steps = np.zeros(count, STEP)
    for name, usual in USUAL.items():
        steps[name] = usual * factors.get(name, 1) * (1 + 0.1 * RNG.normal(size=count))
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


@given(st.lists(st.tuples(*[st.floats(width=64, allow_nan=False)] * 3), max_size=5))
def test_step_records_survive_storage_as_a_plain_array(rows):
    """Otherwise a resumed run would compare its steps with others than the run had."""
    steps = np.array(rows, STEP)
    plain = analysis.as_array(steps)
    assert plain.shape == (len(rows), 3)
    np.testing.assert_array_equal(analysis.from_array(plain), steps)


def test_long_steps_are_distinguished_from_large_gradients():
    """Otherwise noise would be called a learning rate that is too high."""
    usual = _epoch()
    assert analysis.unexplained_lengths(_epoch(update_norm=8), usual).max() > 6
    assert analysis.unexplained_lengths(_epoch(update_norm=8, gradient_norm=8), usual).max() < 2


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
