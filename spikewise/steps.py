"""What was unusual about the training in an epoch, from its step records and snapshots of its weights. Pure NumPy.

Shapes: s steps of the epoch, e steps of the ordinary epochs before it. `steps` [s] and `earlier` [e] are structured arrays with
the fields of records.STEP. A path is a list of (steps done, weights), in order.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from spikewise.records import STEP

TAIL = 20
"""Steps over which momentum still carries an earlier gradient along (0.9^20 = 0.12)."""
JUMP = 3.0
"""Moving statistics that moved this many times farther than anywhere else in the epoch were lost."""

Path = Sequence[tuple[int, Sequence[np.ndarray]]]


def as_array(steps: np.ndarray) -> np.ndarray:
    """Step records [s] as a plain float64 array [s, fields of STEP], for storage."""
    return np.stack([np.asarray(steps[name], np.float64) for name in STEP.names or ()], -1)


def from_array(values: np.ndarray) -> np.ndarray:
    """The inverse of `as_array`."""
    steps = np.zeros(len(values), STEP)
    for name, column in zip(STEP.names or (), np.asarray(values, np.float64).T, strict=True):
        steps[name] = column
    return steps


def gradient_ratios(steps: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """Gradient norms [s] as multiples of the median of the earlier epochs."""
    return np.asarray(steps["gradient_norm"] / (np.median(earlier["gradient_norm"]) + 1e-12))


def gradient_ratio(steps: np.ndarray, earlier: np.ndarray) -> float:
    """Root mean square of the gradient norms as a multiple of that of the earlier epochs: noise shows in the large norms."""
    return float(np.sqrt(np.mean(steps["gradient_norm"] ** 2) / (np.mean(earlier["gradient_norm"] ** 2) + 1e-12)))


def step_ratios(steps: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """Step lengths [s] as multiples of the median of the earlier epochs."""
    return np.asarray(steps["update_norm"] / (np.median(earlier["update_norm"]) + 1e-12))


def unexplained_lengths(steps: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """How many times longer each step [s] was than its gradients explain: about 1 if only the gradients differ, k if the learning
    rate was k times the usual one. Adam's steps grow at most in proportion to the recent gradients."""
    gradients = np.maximum(gradient_ratios(steps, earlier), 1)
    recent = np.array([gradients[max(0, i - TAIL) : i + 1].max() for i in range(len(gradients))])
    return np.asarray(step_ratios(steps, earlier) / recent)


def astray(steps: np.ndarray, earlier: np.ndarray) -> float:
    """How many standard deviations the median training loss of the last tenth of the batches lies above that of earlier batches.
    Lagging statistics do not raise it, because training uses batch statistics; weights that were led astray do."""
    usual = np.median(earlier["loss"])
    deviation = 1.4826 * np.median(np.abs(earlier["loss"] - usual)) + 1e-3 * usual + 1e-12
    return float((np.median(steps["loss"][-max(len(steps) // 10, 5) :]) - usual) / deviation)


def jump(path: Path, step: int, statistics: Sequence[int]) -> float:
    """How far the moving statistics moved in the stretch of `path` that contains `step`, as a multiple of the farthest move in any
    other stretch. About 1 if they drift, even to a new level; 0 if there is nothing to compare. Moves back do not count:
    statistics that were lost return, sooner or later depending on their momentum.

    `statistics`: indices of the moving statistics among the weights.
    """
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
    """Which values [s] stand out upwards: bool [s]. An outlier lies more than `deviations` deviations above the values around it,
    and above `times` these values. If those around it are higher than the values [e] of earlier epochs, it is compared with the
    earlier epochs instead, because several bad batches in a row look usual to each other. If more than half of the epoch then
    stands out, single batches are not the problem, and only the values around each count."""
    if len(values) < 5:
        return np.zeros(len(values), bool)

    def above(around: np.ndarray) -> np.ndarray:
        deviation = 1.4826 * np.nanmedian(np.abs(values - around)) + 1e-12
        with np.errstate(invalid="ignore"):
            return np.asarray(~np.isfinite(values) | ((values - around > deviations * deviation) & (values > times * around)))

    padded = np.pad(values, 5, mode="reflect") if len(values) > 5 else values
    around = np.array([np.nanmedian(padded[i : i + 11]) for i in range(len(values))])
    found = above(np.fmin(around, np.nanmedian(earlier) if len(earlier) else np.inf))
    return found if found.mean() <= 0.5 else above(around)


def foreign(path: Path, steps: np.ndarray, trainable: Sequence[int]) -> tuple[int, int, float] | None:
    """Whether something other than a training step moved the weights: the first stretch of `path` whose ends lie farther apart
    than the total length of its steps. Returns its first step, its last step and the excess distance, or None.

    `trainable`: indices of the trainable weights.
    """
    for (start, left), (stop, right) in itertools.pairwise(path):
        distance = np.sqrt(sum(np.sum((right[i].astype(float) - left[i]) ** 2) for i in trainable))
        length = float(np.sum(steps["update_norm"][start:stop]))
        if distance > 1.05 * length + 1e-4 * np.sqrt(sum(np.sum(left[i].astype(float) ** 2) for i in trainable)):
            return start, stop, float(distance - length)
    return None


def straightness(path: Path, trainable: Sequence[int]) -> float:
    """Distance between the ends of `path` as a fraction of its length: 1 on a straight line, less if weights oscillate."""
    points = [np.concatenate([weights[i].ravel() for i in trainable]).astype(float) for _, weights in path]
    length = sum(float(np.linalg.norm(right - left)) for left, right in itertools.pairwise(points))
    return float(np.linalg.norm(points[-1] - points[0])) / (length + 1e-12)
