"""What BatchNormalization's moving statistics would be with another momentum. Pure NumPy.

A training step moves them: moving <- k * moving + (1 - k) * batch, where k is the momentum. Training never reads them. Their values
before and after each step therefore reveal the moments of each batch, and these give the statistics under any other momentum,
without training again. This is exact except for rounding: in float32, an error of about 1e-7 / (1 - k) of a value.

Shapes: s steps of an epoch, m moving statistics of all layers, one layer after the other.
"""

from typing import NamedTuple

import numpy as np

LOWEST = 0.8
"""The lowest momentum that is tried."""
TIMES = 10.0
"""The momenta that are tried remember this many times fewer or more batches than the run's own."""


class Momenta(NamedTuple):
    """The momenta that are tried, as what a step keeps of each statistic [m]."""

    lower: np.ndarray
    higher: np.ndarray


def alternatives(kept: np.ndarray) -> Momenta:
    """The momenta to try beside the run's own, `kept` [m]: 0.9 and 0.999 beside 0.99."""
    kept = np.asarray(kept, float)
    lower = np.minimum(np.maximum(1 - TIMES * (1 - kept), LOWEST), kept)
    return Momenta(np.round(lower, 9), np.round(1 - (1 - kept) / TIMES, 9))


def batch_moments(trace: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The moments [s, m] of each batch, from the moving statistics `trace` [s + 1, m] before the first and after every step and the
    fraction `kept` [m] that a step keeps."""
    trace = np.asarray(trace, np.float64)
    return np.asarray((trace[1:] - kept * trace[:-1]) / (1 - kept))


def typical(moments: np.ndarray) -> np.ndarray:
    """Mean and deviation [2, m] of the moments [s, m] of an epoch's batches. A few odd batches do not widen the deviation."""
    return np.stack([moments.mean(0), deviation(moments)])


def deviation(values: np.ndarray) -> np.ndarray:
    """Standard deviation [...] of values [k, ...], from the median distance to their median."""
    return np.asarray(1.4826 * np.median(np.abs(values - np.median(values, 0)), 0))


def moved(start: np.ndarray, moments: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The moving statistics [m] after batches with these `moments` [s, m], from `start` [m] on."""
    weights = (1 - kept) * kept ** np.arange(len(moments))[::-1, None]
    return np.asarray(kept ** len(moments) * start + (weights * moments).sum(0))


class Mover(NamedTuple):
    """A batch that moved the statistics more than others did."""

    step: int
    """Its number in the epoch, from 0."""
    units: np.ndarray
    """Numbers, among the m statistics, of the moving variances to which this batch contributed more than half."""


def movers(moments: np.ndarray, kept: np.ndarray, now: np.ndarray, variances: np.ndarray) -> list[Mover]:
    """The batches that alone make up more than half of a moving variance, the one with the most units first. In such a batch, units
    fired that are off in nearly all others. `now` [m]: the moving statistics after the epoch; `variances` [m], bool: which of them
    are variances."""
    chosen = np.asarray(variances, bool)
    weights = ((1 - kept) * kept ** np.arange(len(moments))[::-1, None])[:, chosen]
    usual = np.median(moments[:, chosen], 0)
    excess = weights * np.maximum(moments[:, chosen] - usual, 0)
    most = excess > 0.5 * np.maximum(now[chosen], 1e-12)
    order = np.argsort(-most.sum(1), kind="stable")
    return [Mover(int(step), np.flatnonzero(chosen)[most[step]]) for step in order if most[step].any()]


class Counterfactuals:
    """Follows the moving statistics that the run would have with the momenta of `alternatives`, from its first epoch on."""

    def __init__(self) -> None:
        self._values: np.ndarray | None = None
        """[2, m]: lower, higher."""
        self._kept: np.ndarray | None = None
        """The run's own momenta [m]; None before the first epoch."""
        self.steps = 0
        """Steps followed so far."""

    @property
    def now(self) -> np.ndarray | None:
        """The statistics [2, m] after the newest epoch, with the lower and the higher momentum; None if they are unknown."""
        return self._values

    def update(self, trace: np.ndarray | None, kept: np.ndarray) -> None:
        """Follows one epoch. `trace` [s + 1, m], `kept` [m]: see `batch_moments`; None forgets everything. The first epoch, and one
        in which other layers move their statistics, starts from the run's own statistics."""
        if trace is None or not len(kept) or trace.shape[1:] != np.shape(kept):
            self._values, self._kept, self.steps = None, None, 0
            return
        if self._values is None or self._values.shape[1] != len(kept):
            self._values, self.steps = np.stack([trace[0], trace[0]]).astype(np.float64), 0
        self._kept = np.asarray(kept, float)
        self.steps += len(trace) - 1
        moments = batch_moments(trace, np.asarray(kept, float))
        self._values = np.stack([moved(at, moments, k) for at, k in zip(self._values, alternatives(kept), strict=True)])

    def settled(self, kept: np.ndarray) -> bool:
        """Whether enough steps were followed that statistics with a momentum of `kept` [m] no longer consist of those that they
        began with, which say nothing about that momentum."""
        return bool(np.all(self.steps * (1 - kept) >= 1))

    def trained_with(self, kept: np.ndarray) -> np.ndarray | None:
        """The statistics [m] that a run with momenta `kept` [m] would have now; None if they are the run's own, or so low that it
        does not matter what such a run begins with.

        Raises ValueError for higher momenta that were not followed."""
        if self._kept is None or self._values is None or np.shape(kept) != self._kept.shape or np.allclose(kept, self._kept):
            return None
        for values, momenta in zip(self._values, alternatives(self._kept), strict=True):
            if np.allclose(kept, momenta):
                return np.array(values)
        if np.any(kept > self._kept):
            followed = ", ".join(f"{momenta.max():g}" for momenta in alternatives(self._kept))
            raise ValueError(f"the run followed what the momenta {followed} would give, not {np.max(kept):g}")
        return None

    def state(self) -> tuple[int, np.ndarray]:
        """`steps`, and the statistics and the run's own momenta [0 or 3, m]."""
        known = self._values is not None and self._kept is not None
        return self.steps, np.array([*self._values, self._kept]) if known else np.zeros((0, 0))  # type: ignore[misc]

    def restore(self, steps: int, values: np.ndarray) -> None:
        """Restores a `state`."""
        self.steps, self._values, self._kept = steps, None, None
        if len(values):
            self._values = np.array(values[:2], np.float64)
        if len(values) > 2:  # checkpoints of earlier versions hold no momenta
            self._kept = np.array(values[2], np.float64)
