"""What was unusual in how an epoch was trained, from its step records alone. Pure numpy.

Shapes: s steps of the epoch, e steps of the ordinary epochs before it; a record is one StepStats, 7 numbers.
"""

import itertools
from collections.abc import Sequence

import numpy as np

LOSS, CORRECT, GRADIENT, LOCAL_SQUARE, UPDATE = range(5)
"""Columns of a record."""
TAIL = 20
"""Steps during which momentum may still carry an earlier gradient on (0.9^20 = 0.12)."""
JUMP = 3.0
"""Times as far as anywhere else in the epoch, beyond which moving statistics were lost."""


def gradient_ratios(steps: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """Gradient norms [s] as multiples of what was usual in the epochs before."""
    return steps[:, GRADIENT] / (np.median(earlier[:, GRADIENT]) + 1e-12)


def gradient_ratio(steps: np.ndarray, earlier: np.ndarray) -> float:
    """Root mean square of the gradient norms as a multiple of that of the epochs before: noise shows in the large ones."""
    return float(np.sqrt(np.mean(steps[:, GRADIENT] ** 2) / (np.mean(earlier[:, GRADIENT] ** 2) + 1e-12)))


def step_ratios(steps: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """Step lengths [s] as multiples of what was usual in the epochs before."""
    return steps[:, UPDATE] / (np.median(earlier[:, UPDATE]) + 1e-12)


def unexplained_lengths(steps: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """By how much [s] steps were longer than their gradients explain: about 1 where only the gradients differ, k where the
    learning rate was k times the usual. Adam's steps grow at most as much as the gradients behind them do."""
    gradients = np.maximum(gradient_ratios(steps, earlier), 1)
    behind = np.array([gradients[max(0, i - TAIL) : i + 1].max() for i in range(len(gradients))])
    return step_ratios(steps, earlier) / behind


def astray(steps: np.ndarray, earlier: np.ndarray) -> float:
    """By how many standard deviations the median loss of the last tenth of the batches, as they were trained on, lies above that
    of earlier batches: statistics that lag do not show in it, weights that were led astray do."""
    usual = np.median(earlier[:, LOSS])
    deviation = 1.4826 * np.median(np.abs(earlier[:, LOSS] - usual)) + 1e-3 * usual + 1e-12
    return float((np.median(steps[-max(len(steps) // 10, 5) :, LOSS]) - usual) / deviation)


def jump(path: Sequence[tuple[int, Sequence[np.ndarray]]], step: int, statistics: Sequence[int]) -> float:
    """How far the moving statistics went in the stretch of `path` (after so many steps: weights) that holds `step`, as a
    multiple of the farthest in any other stretch: about 1 where they drift, even to a new level; 0 where that cannot be told.
    The way back does not count: statistics that were lost come back, soon or late as their momentum is."""
    sizes = [(i, max(float(np.linalg.norm(weights[i])) for _, weights in path) + 1e-12) for i in statistics]
    moves: dict[bool, list[np.ndarray]] = {}
    for (start, left), (stop, right) in itertools.pairwise(path):
        move = np.concatenate([(right[i] - left[i]).ravel() / size for i, size in sizes] or [np.zeros(1)])
        moves.setdefault(start <= step < stop, []).append(move)
    if len(moves) < 2:
        return 0.0
    there = float(np.linalg.norm(moves[True][0]))
    onward = moves[True][0] / (there + 1e-12)
    elsewhere = max(float(np.linalg.norm(move - np.minimum(move @ onward, 0) * onward)) for move in moves[False])
    return there / elsewhere if elsewhere else 0.0


def outliers(values: np.ndarray, earlier: np.ndarray, *, times: float = 2.0, deviations: float = 6.0) -> np.ndarray:
    """Which values [s] stand out upwards, by so many standard deviations and so many times, from those around them or, since bad
    batches may be most of those around each other, from those [e] of the epochs before, whichever are lower. Where most of the
    epoch is above the epochs before, it is not single batches that are unusual."""
    if len(values) < 5:
        return np.zeros(len(values), bool)

    def above(around: np.ndarray) -> np.ndarray:
        deviation = 1.4826 * np.nanmedian(np.abs(values - around)) + 1e-12
        with np.errstate(invalid="ignore"):
            return ~np.isfinite(values) | ((values - around > deviations * deviation) & (values > times * around))

    padded = np.pad(values, 5, mode="reflect") if len(values) > 5 else values
    around = np.array([np.nanmedian(padded[i : i + 11]) for i in range(len(values))])
    found = above(np.fmin(around, np.nanmedian(earlier) if len(earlier) else np.inf))
    return found if found.mean() <= 0.5 else above(around)


def foreign(
    path: Sequence[tuple[int, Sequence[np.ndarray]]], steps: np.ndarray, trainable: Sequence[int]
) -> tuple[int, int, float] | None:
    """Whether weights moved without a step: the first stretch of `path` (after so many steps: weights) whose ends lie farther
    apart than its steps are long together. Returns its first and last step and how far the excess is, or None."""
    for (start, left), (stop, right) in itertools.pairwise(path):
        distance = np.sqrt(sum(np.sum((right[i].astype(float) - left[i]) ** 2) for i in trainable))
        length = float(np.sum(steps[start:stop, UPDATE]))
        if distance > 1.05 * length + 1e-4 * np.sqrt(sum(np.sum(left[i].astype(float) ** 2) for i in trainable)):
            return start, stop, float(distance - length)
    return None


def straightness(path: Sequence[tuple[int, Sequence[np.ndarray]]], trainable: Sequence[int]) -> float:
    """How far apart the ends of `path` lie, as a part of its length: 1 on a straight way, less where weights go to and fro."""
    points = [np.concatenate([weights[i].ravel() for i in trainable]).astype(float) for _, weights in path]
    length = sum(float(np.linalg.norm(right - left)) for left, right in itertools.pairwise(points))
    return float(np.linalg.norm(points[-1] - points[0])) / (length + 1e-12)
