"""Owns a classifier's scores and their confidence intervals: pure functions of arrays, in NumPy alone.

Images cut from one photograph are not independent. Every interval can therefore be computed over *clusters*: the bootstrap
resamples whole clusters. A cluster is a group of images (`data.group_by`), or a single image without a group. Random numbers are
seeded: equal input gives an equal interval.

Shapes: N images, K classes, B resamples, U distinct scores.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

RESAMPLES = 1000
Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value and its 95 % interval. `low` and `high` are None if there is no interval."""

    value: float | None
    low: float | None
    high: float | None
    method: str
    """How the interval was computed, or why there is none."""


NOTHING = Interval(None, None, None, "no images")


def clusters(groups: list[str]) -> np.ndarray:
    """Cluster number of each image, int [N]: one for each group; an image with the empty group is a cluster of its own."""
    names = [(group, -1) if group else ("", index) for index, group in enumerate(groups)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], int)


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion. Raises ZeroDivisionError if `trials` is 0."""
    fraction = successes / trials
    centre = (fraction + Z95**2 / (2 * trials)) / (1 + Z95**2 / trials)
    half = Z95 / (1 + Z95**2 / trials) * sqrt(fraction * (1 - fraction) / trials + Z95**2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def resamples(cluster: np.ndarray, count: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Bootstrap weights: how often each image was drawn, with clusters drawn whole. Blocks [b, N] of B = `count` rows in all."""
    total = int(cluster.max()) + 1
    random = np.random.default_rng(seed)
    block = max(1, 2_000_000 // len(cluster))
    for start in range(0, count, block):
        draws = random.integers(0, total, (min(block, count - start), total))
        yield np.stack([np.bincount(draw, minlength=total) for draw in draws]).astype(np.float32)[:, cluster]


def _bootstrap(value: float, cluster: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """Percentile interval of `statistic`: weights [b, N] -> values [b], NaN where a resample has none."""
    total = int(cluster.max()) + 1
    unit = "image" if total == len(cluster) else "group"
    if total < 2:
        return Interval(value, None, None, f"no interval: only one {unit}")
    values = np.concatenate([statistic(weights) for weights in resamples(cluster)])
    values = values[np.isfinite(values)]
    if not len(values) or np.ptp(values) == 0:
        return Interval(value, None, None, f"no interval: every resample of the {total:,} {unit}s gives the same value")
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(value, float(low), float(high), f"bootstrap over {total:,} {unit}s")


def mean(values: np.ndarray, cluster: np.ndarray) -> Interval:
    """Mean of per-image values [N], such as losses, with a bootstrap interval; no value if one of them is not finite."""
    if not len(values):
        return NOTHING
    broken = int(np.sum(~np.isfinite(values)))
    if broken:
        return Interval(None, None, None, f"no interval: not finite for {broken:,} of {len(values):,} images")
    exact = values.astype(np.float32)
    return _bootstrap(float(values.mean(dtype=float)), cluster, lambda w: (w @ exact) / w.sum(1))


def fraction(hits: np.ndarray, cluster: np.ndarray) -> Interval:
    """Fraction of True in `hits` [N], with Wilson's interval for independent images and a bootstrap interval for clusters.

    If all images or none are hits, every resample is the same. Wilson's interval then counts each cluster as one trial.
    """
    if not len(hits):
        return NOTHING
    value, total = float(hits.mean()), int(cluster.max()) + 1
    grouped = total < len(hits)
    if grouped and 0 < value < 1:
        return _bootstrap(value, cluster, lambda w: (w @ hits.astype(np.float32)) / w.sum(1))
    low, high = wilson(value * total, total)
    return Interval(value, low, high, f"Wilson over {total:,} {'groups' if grouped else 'images'}")


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts [K, K]: rows are labels, columns predictions."""
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def roc(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False-positive rate, true-positive rate and threshold, each [U + 1], from (0, 0, inf) to (1, 1, lowest score).

    `positive` [N] bool, `scores` [N]. An image is predicted positive if its score is at least the threshold. Needs both classes.
    """
    thresholds, place = np.unique(-scores, return_inverse=True)
    found = np.cumsum(np.bincount(place, positive, len(thresholds)))
    false = np.cumsum(np.bincount(place, ~positive, len(thresholds)))
    start = [0.0]
    return np.r_[start, false / false[-1]], np.r_[start, found / found[-1]], np.r_[np.inf, -thresholds]


def thin(false: np.ndarray, found: np.ndarray, count: int = 200) -> np.ndarray:
    """Indices of the points of a ROC curve to draw: both ends and about `count` in between, evenly along the curve."""
    along = false + found
    return np.unique(np.r_[0, np.searchsorted(along, np.linspace(0, 2, count)).clip(0, len(along) - 1), len(along) - 1])


def auc(positive: np.ndarray, scores: np.ndarray, cluster: np.ndarray) -> Interval:
    """Area under the ROC curve (ties count half) with a bootstrap interval; no value without images on both sides."""
    if not positive.any() or positive.all():
        return Interval(None, None, None, f"no value: all images are {'in' if positive.any() else 'outside'} the class")
    order = np.argsort(scores, kind="stable")
    ascending = scores[order]
    starts = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]])
    yes = positive[order].astype(np.float32)

    def area(weights: np.ndarray) -> np.ndarray:
        weights = weights[:, order]
        found = np.add.reduceat(weights * yes, starts, axis=1, dtype=float)
        false = np.add.reduceat(weights * (1 - yes), starts, axis=1, dtype=float)
        below = np.cumsum(false, axis=1) - false / 2
        pairs = found.sum(1) * false.sum(1)
        with np.errstate(invalid="ignore"):  # a resample of one side only has no pairs: NaN, which is left out
            return (found * below).sum(1) / pairs

    return _bootstrap(float(area(np.ones((1, len(scores)), np.float32))[0]), cluster, area)


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = 20) -> tuple[float | None, list[dict[str, Any]]]:
    """Expected calibration error, and the rows of the reliability diagram: the non-empty ones of `bins` equal bins over 0..1.

    `confidence` [N] is the probability of the predicted class, `right` [N] bool. The error is the distance between a bin's mean
    confidence and its accuracy, averaged over images. Returns (None, []) without images.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows: list[dict[str, Any]] = []
    for number in np.unique(place):
        here = place == number
        low, high = wilson(float(right[here].sum()), int(here.sum()))
        rows.append(
            {
                "from": float(number / bins),
                "to": float((number + 1) / bins),
                "images": int(here.sum()),
                "confidence": float(confidence[here].mean(dtype=float)),
                "accuracy": float(right[here].mean()),
                "low": low,
                "high": high,
            }
        )
    if not rows:
        return None, []
    return sum(row["images"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / len(confidence), rows
