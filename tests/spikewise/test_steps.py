"""What a run's step records and copies of its weights say about an epoch."""

import numpy as np
import pytest

from spikewise import steps as records

RNG = np.random.default_rng(0)
USUAL = np.array([0.5, 20, 1, 1, 0.01, 0, 0])
STATISTICS = (1, 2)


def _epoch(count=50, **columns):
    """Steps [count, 7] with a little noise, some columns multiplied."""
    steps = USUAL * (1 + 0.1 * RNG.normal(size=(count, 7)))
    for column, factor in columns.items():
        steps[:, getattr(records, column)] *= factor
    return steps


def _path(momentum=0.95, reset=None, drift=0.02, level=0.0, snapshots=(0, 6, 12, 18, 25, 31, 37, 43, 50)):
    """A weight and two statistics that follow it, as an epoch of 50 steps leaves them at the marks."""
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


def test_long_steps_are_told_from_large_gradients():
    """Noise would be called a learning rate that is too high."""
    usual = _epoch()
    assert records.unexplained_lengths(_epoch(UPDATE=8), usual).max() > 6
    assert records.unexplained_lengths(_epoch(UPDATE=8, GRADIENT=8), usual).max() < 2


def test_batches_that_are_learned_worse_than_before_show():
    """Weights on a wrong way would be blamed on the moving statistics, which lag behind them."""
    usual = _epoch(100)
    assert abs(records.astray(_epoch(), usual)) < 2.5
    worse = _epoch()
    worse[-10:, records.LOSS] *= 2
    assert records.astray(worse, usual) > 5


@pytest.mark.parametrize("momentum", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("step", [0, 20, 44])
def test_statistics_that_were_lost_are_told_from_those_that_drift(momentum, step):
    """A restart without them would be called a lag, or one with them blamed for it."""
    assert records.jump(_path(momentum, reset=step), step, STATISTICS) > records.JUMP
    assert records.jump(_path(momentum), step, STATISTICS) < 2
    assert records.jump(_path(momentum, level=5.0), step, STATISTICS) < 2


def test_without_statistics_or_a_path_nothing_jumped():
    """The diagnosis of a network without BatchNormalization would crash."""
    assert records.jump(_path(), 3, ()) == 0
    assert records.jump(_path()[:1], 3, STATISTICS) == 0


def test_weights_that_moved_without_a_step_are_found():
    """A faulty restore would be called unexplained."""
    path = [(step, [np.full(4, 0.005 * step)]) for step in (0, 10, 20, 30)]
    steps = _epoch(30)
    steps[:, records.UPDATE] = 0.01
    assert records.foreign(path, steps, [0]) is None
    path[2][1][0] += 1
    start, stop, excess = records.foreign(path, steps, [0])
    assert (start, stop) == (10, 20)
    assert excess == pytest.approx(2, abs=0.1)


def test_to_and_fro_is_told_from_straight_on():
    """Gradient noise could not be told from a wrong direction."""
    straight = [(i, [np.full(3, float(i))]) for i in range(9)]
    back = [(i, [np.full(3, float(i % 2))]) for i in range(9)]
    assert records.straightness(straight, [0]) == pytest.approx(1)
    assert records.straightness(back, [0]) < 0.1


@pytest.mark.parametrize("bad", [1, 3, 6])
def test_bad_batches_stand_out_however_many_there_are_in_a_row(bad):
    """Six batches with wrong labels in a row would look usual to each other, and the cause would be called anything else."""
    usual, values = _epoch()[:, records.LOSS], _epoch()[:, records.LOSS]
    values[40 : 40 + bad] *= 5
    assert list(np.flatnonzero(records.outliers(values, usual))) == list(range(40, 40 + bad))


def test_an_epoch_that_went_as_usual_has_no_outliers():
    """Every diagnosis would look for harm in batches that did none, one pass each."""
    assert not any(records.outliers(_epoch()[:, records.LOSS], _epoch()[:, records.LOSS]).any() for _ in range(50))
