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
ABRUPT = 2.01
"""A learning rate rises or falls abruptly if it changes by more than this factor from one step to the next. The first steps of a
linear warm-up may double it."""
JUMP = 3.0
"""Moving statistics that moved this many times farther than anywhere else in the epoch were lost."""

LONGER = 2.0
"""A step this many times longer than its gradient explains is too long."""
WIDER = 1.5
"""Losses that differ this many times as much from batch to batch as in earlier epochs are those of sorted images."""
ASTRAY = 3.0
"""If the training loss of the last batches lies this many standard deviations above the usual one, the weights themselves are to
blame."""

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


def raised(rates: np.ndarray, before: float = np.nan) -> np.ndarray:
    """How many times the learning rate of each step [s] lies above where a smooth schedule would be: k from a step on that raises
    it k-fold at once, until it falls as abruptly; 1 in a warm-up, a cosine, or after a step down.

    A rise is smooth if it at most doubles the rate, or continues at the pace of its neighbours, as the first steps of a linear
    warm-up from nearly 0 do. `before`: the rate of the step before these; NaN if there was none.
    """
    known = np.concatenate([[before], np.asarray(rates, float)])
    places = np.flatnonzero(known > 0)  # steps at a rate of 0 move nothing, so nothing is compared with them
    moving = known[places]
    excess = np.ones(len(known))
    increments, factor = np.diff(moving, prepend=np.nan, append=np.nan), 1.0
    ratios = moving[1:] / moving[:-1]
    for i in np.flatnonzero((ratios > ABRUPT) | (ratios < 1 / ABRUPT)) + 1:
        if not 0 < increments[i] <= 2 * np.nanmax([increments[i - 1], increments[i + 1], 0]):
            factor *= ratios[i - 1]
            excess[places[i] :] = max(factor, 1.0)
    return excess[1:]


def _paces(steps: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Step lengths [s] per unit of the highest of the recent `rates` [s]: momentum still carries its steps along. After a tenfold
    decrease that matters for longer than TAIL."""
    recent = np.array([rates[max(0, i - 2 * TAIL) : i + 1].max() for i in range(len(rates))])
    return np.asarray(steps["update_norm"] / np.where(recent > 0, recent, np.inf))


def unexplained_lengths(steps: np.ndarray, earlier: np.ndarray, before: float = np.nan) -> np.ndarray:
    """How many times longer each step [s] was than its gradients and a smooth schedule of the learning rate explain: about 1 if
    only the gradients differ or the rate warms up, k if the rate was raised k-fold at once, or if something else made the step k
    times as long. Adam's steps grow at most in proportion to the recent gradients.

    `before`: the learning rate of the last step before these, if known.
    """
    gradients = np.maximum(gradient_ratios(steps, earlier), 1)
    recent = np.array([gradients[max(0, i - TAIL) : i + 1].max() for i in range(len(gradients))])
    smooth = steps["learning_rate"] / raised(steps["learning_rate"], before)
    rates = np.concatenate([earlier["learning_rate"], smooth])
    paces = _paces(np.concatenate([earlier, steps]), rates)
    return np.asarray(paces[len(earlier) :] / (np.median(paces[: len(earlier)]) + 1e-12) / recent)


def strides(steps: np.ndarray, weights: int) -> np.ndarray:
    """By how many learning rates each step [s] moved each of the network's `weights` (root mean square). Adam's steps stay below
    about 1; 0 where the learning rate is 0."""
    rates = np.where(steps["learning_rate"] > 0, steps["learning_rate"], np.inf)
    return np.asarray(steps["update_norm"] / (rates * np.sqrt(max(weights, 1))))


def last_losses(steps: np.ndarray) -> np.ndarray:
    """The training losses of the last tenth of the batches, at least 5."""
    return np.asarray(steps["loss"][-max(len(steps) // 10, 5) :])


def lost(steps: np.ndarray, earlier: np.ndarray, guess: float) -> bool | None:
    """Whether the network has lost its training images in training mode: the median loss of the last tenth of the batches is not
    finite, or lies more than half of the way from the usual loss to `guess`, the loss of guessing, which may be infinite: unknown.
    None if it cannot be said."""
    if not len(steps):
        return None
    now = float(np.median(last_losses(steps)))
    if not np.isfinite(now):
        return True
    if not len(earlier):
        return None
    usual = float(np.median(earlier["loss"]))
    if not np.isfinite(guess):
        return False if now < 2 * usual else None
    return now >= ((usual + guess) / 2 if usual < guess else 2 * usual)


def unusual(steps: np.ndarray, earlier: np.ndarray, before: float = np.nan) -> bool:
    """Whether anything about the steps [s] is out of the ordinary: a step that is twice as long as its gradient and the schedule
    explain, a batch whose loss or gradient stands out, losses that differ more from batch to batch, or a training loss that ends
    far above the usual one. Costs nothing, and holds in few epochs of a healthy run. `before`: as for `unexplained_lengths`."""
    if not len(steps) or not len(earlier):
        return False
    return bool(
        unexplained_lengths(steps, earlier, before).max() >= LONGER
        or any(outliers(steps[name], earlier[name]).any() for name in ("loss", "gradient_norm"))
        or spread(steps, earlier) >= WIDER
        or astray(steps, earlier) >= ASTRAY
    )


def spread(steps: np.ndarray, earlier: np.ndarray) -> float:
    """How many times as much the losses of successive batches differ as in earlier epochs (root mean square)."""
    if len(steps) < 8 or len(earlier) < 8:
        return 1.0
    now, usual = (float(np.sqrt(np.mean(np.diff(values["loss"]) ** 2))) for values in (steps, earlier))
    return now / (usual + 1e-12)


def astray(steps: np.ndarray, earlier: np.ndarray) -> float:
    """How many standard deviations the median training loss of the last tenth of the batches lies above that of earlier batches.
    Lagging statistics do not raise it, because training uses batch statistics; weights that were led astray do."""
    usual = np.median(earlier["loss"])
    deviation = 1.4826 * np.median(np.abs(earlier["loss"] - usual)) + 1e-3 * usual + 1e-12
    return float((np.median(last_losses(steps)) - usual) / deviation)


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
