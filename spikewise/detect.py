"""Decides whether an epoch's validation loss is a spike. Pure NumPy: losses in, spikes out, without look-ahead.

An epoch is a spike if its mean loss lies above the trend of the earlier epochs by more than MULTIPLE times the run's own noise
scale, and by enough to matter. The trend is a robust line that follows overfitting upwards but does not extrapolate an
improvement. The noise scale is measured on second differences, which a trend does not affect. It starts from a prior, so the
second epoch can already be judged. MULTIPLE is calibrated: see benchmarks/false_alarms.py.

Shapes: n validation images, k epochs, r resamples; "..." stands for any number of runs at once.
"""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np

from spikewise.records import Outcome, Overfitting, Spike

MULTIPLE = 8.0
"""A rise above this many noise scales is a spike. With it, at most 5 % of healthy runs of 100 epochs raise an alarm, including runs
with autocorrelated noise, an overfitting trend and occasional excursions (benchmarks/false_alarms.py)."""
BACK = 3.0
"""A spike has recovered once the rise is below this many noise scales. Between BACK and MULTIPLE it stays open; with a single
limit, a loss that stays just below it would count as recovered."""
SMALLEST_FRACTION = 0.1
"""A rise below this fraction of the expected loss does not matter."""
SMALLEST_RISE = 0.01
"""A rise below this many nats does not matter: one image at p = 1e-7 adds this much to the mean of 1,600."""
PATIENCE = 5
"""A spike that has not recovered after this many epochs is a level shift or a divergence."""
WINDOW = 8
"""Number of epochs that the trend is fitted to."""
MEMORY = 30
"""Number of differences that the noise scale is measured on."""
PRIOR = 0.06
"""The noise scale assumed before any is measured, as a fraction of the loss."""
PRIOR_WEIGHT = 3.0
"""Number of measured differences that the prior counts for."""
REFERENCES = 3
"""Number of ordinary epochs before a spike whose mean per-image loss is the reference for its rise."""
FEW = 0.02
"""Fraction of the validation images that counts as a few."""
FEW_GROUPS = 20
"""With fewer groups of validation images than this, almost any rise could be chance; other causes are then considered first."""
CERTAIN = 3.3
"""A rise below this many standard errors may be chance. An alarm is the worst of up to 100 epochs, and chance alone produces a
rise of this size in 5 % of runs."""
RESAMPLES = 1000

Values = np.ndarray | float


def forecast(epochs: np.ndarray, losses: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """What the mean losses [..., k] of earlier `epochs` [k], k >= 1, predict for `epoch`: baseline and noise scale, both [...]."""
    x, y = np.asarray(epochs, float)[-WINDOW:], losses[..., -WINDOW:]
    slope, level = line(x, y)
    baseline = np.maximum(level + np.maximum(slope, 0) * (epoch - x[-1]), 0) if len(x) > 2 else y.mean(-1)
    prior, k = PRIOR * baseline, losses.shape[-1] - 2
    if k < 1:
        return baseline, prior
    # If the last epochs are calmer than those before, only they count, so that a wild start is soon forgotten.
    noise_scale = np.minimum(_noise_scale(losses, MEMORY), 1.5 * _noise_scale(losses, WINDOW))
    k = min(k, MEMORY)
    return baseline, np.sqrt((PRIOR_WEIGHT * prior**2 + k * noise_scale**2) / (PRIOR_WEIGHT + k))


def _noise_scale(losses: np.ndarray, memory: int) -> np.ndarray:
    """Standard deviation [...] of losses [..., k], k > 2, around a straight trend, from the last `memory` second differences."""

    def deviation(lag: int) -> np.ndarray:
        differences = losses[..., 2 * lag :] - 2 * losses[..., lag:-lag] + losses[..., : -2 * lag]
        return np.asarray(1.4826 * np.median(np.abs(differences[..., -memory:]), -1) / np.sqrt(6))

    # Neighbouring differences miss autocorrelated noise; distant ones mistake a fall that flattens for noise.
    return np.minimum(deviation(2), 2 * deviation(1)) if losses.shape[-1] > 4 else deviation(1)


def line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The robust line (Theil-Sen) through y [..., k] at x [k]: slope and level at the last x, both [...]."""
    if len(x) < 2:
        return np.zeros(y.shape[:-1]), y[..., -1]
    i, j = np.triu_indices(len(x), 1)
    slope = np.median((y[..., j] - y[..., i]) / (x[j] - x[i]), -1)
    return slope, np.median(y + slope[..., None] * (x[-1] - x), -1)


def threshold(baseline: Values, scale: Values, smallest_fraction: float = SMALLEST_FRACTION, multiple: float = MULTIPLE) -> Values:
    """The rise [...] above which an epoch is a spike, given the expected loss and the noise scale [...]."""
    return np.maximum(np.maximum(multiple * scale, smallest_fraction * baseline), SMALLEST_RISE)


class Resampler:
    """Bootstrap over the validation images, by group where groups are known. All intervals of a run use the same r draws."""

    def __init__(self, images: int, groups: Sequence[Hashable] | None = None, resamples: int = RESAMPLES) -> None:
        """`groups` [n]: images of the same group are drawn together; images whose group is None or "" are drawn on their own."""
        numbers: dict[tuple[Hashable, int], int] = {}
        keys = [(g, i if g in (None, "") else -1) for i, g in enumerate(groups or [None] * images)]
        self._members = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
        self.groups = count = len(numbers)
        self._names = [name for name, _ in numbers]
        self._weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), resamples).astype(np.float32)
        self._sizes = self._weights @ np.bincount(self._members).astype(np.float32)

    def means(self, values: np.ndarray) -> np.ndarray:
        """The mean of values [n] in each draw [r]."""
        return (self._weights @ np.bincount(self._members, values)) / self._sizes

    def largest(self, values: np.ndarray) -> tuple[str | None, float]:
        """The group with the largest sum of values [n], and its fraction of the total; None for a single image."""
        sums = np.bincount(self._members, values)
        number = int(np.argmax(sums))
        name = self._names[number]
        return None if name in (None, "") else str(name), float(sums[number] / sums.sum())


class Update(NamedTuple):
    """What the detector found in an epoch."""

    spike: Spike | None
    """A new spike."""
    resolved: Spike | None
    """An earlier spike whose outcome is now known."""


class Detector:
    """Judges one epoch after another. Everything it knows is in `state`, so a resumed run finds what an undisturbed one would."""

    def __init__(self, groups: Sequence[Hashable] | None = None, *, smallest_fraction: float = SMALLEST_FRACTION) -> None:
        """`groups` [n]: see Resampler; `smallest_fraction`: a rise below this fraction of the expected loss does not matter."""
        self.means: list[float] = []
        self.spikes: list[Spike] = []
        self.ordinary: list[int] = []
        """Numbers of the epochs that the trend is fitted to."""
        self._recent: dict[int, np.ndarray] = {}
        """Losses [n] of the last ordinary epochs, by epoch."""
        self._groups = groups
        self._smallest_fraction = smallest_fraction
        self._resampler: Resampler | None = None

    @property
    def epoch(self) -> int:
        """The last epoch seen; 0 before the first."""
        return len(self.means)

    @property
    def due(self) -> bool:
        """Whether the open spike must be resolved by the next epoch: as recovered, a level shift or a divergence."""
        return bool(self.spikes) and self.spikes[-1].outcome == "open" and self.epoch + 1 - self.spikes[-1].epoch >= PATIENCE

    def update(self, losses: np.ndarray, *, lost: bool | None = None) -> Update:
        """Judges the next epoch from the loss of each validation image [n], the images in the same order every time. `lost` counts
        only if a spike is `due`: whether the network has lost its training images as well, which makes a lasting rise a
        divergence; None if unknown."""
        losses = np.asarray(losses, float)
        self.means.append(float(np.mean(losses)))
        open_ = self.spikes[-1] if self.spikes and self.spikes[-1].outcome == "open" else None
        spike = self._judge(losses, MULTIPLE if open_ is None else BACK)
        resolved = None
        if open_ is not None:
            outcome = self._outcome(open_, spike, lost)
            if outcome == "open":
                return Update(None, None)
            self.spikes[-1] = resolved = replace(open_, outcome=outcome, outcome_epoch=self.epoch)
            spike = None
            if outcome != "recovered":
                self.ordinary = [e for e in range(open_.epoch, self.epoch) if np.isfinite(self.means[e - 1])]
                self._recent = {}
        if self.epoch > 1 and not np.isfinite(self.means[-2:]).any():
            spike = None  # the epoch before reported it already
        if spike is not None:
            self.spikes.append(spike)
        elif np.isfinite(self.means[-1]):
            self.ordinary.append(self.epoch)
            self._recent[self.epoch] = losses
            self._recent = dict(sorted(self._recent.items())[-REFERENCES:])
        return Update(spike, resolved)

    def reference(self) -> np.ndarray | None:
        """Loss of each image [n], averaged over the last ordinary epochs; None if there were none."""
        return np.mean(list(self._recent.values()), 0) if self._recent else None

    def resampler(self, images: int) -> Resampler:
        """The resampler for n images, created on first use."""
        if self._resampler is None:
            self._resampler = Resampler(images, self._groups)
        return self._resampler

    def state(self) -> tuple[dict[str, Any], np.ndarray]:
        """The state as JSON types, and the losses [k, n] of the last ordinary epochs as float32."""
        facts = {
            "means": self.means,
            "ordinary": self.ordinary,
            "recent": list(self._recent),
            "spikes": [asdict(s) for s in self.spikes],
        }
        return facts, np.array(list(self._recent.values()), np.float32)

    def restore(self, facts: dict[str, Any], recent: np.ndarray) -> None:
        """Restores a `state`."""
        self.means, self.ordinary = list(facts["means"]), list(facts["ordinary"])
        self.spikes = [Spike(**values) for values in facts["spikes"]]
        self._recent = dict(zip(facts["recent"], recent.astype(float), strict=True))

    def _judge(self, losses: np.ndarray, multiple: float) -> Spike | None:
        """The newest epoch as a spike, if its rise exceeds `multiple` noise scales."""
        loss = self.means[-1]
        baseline = scale = limit = np.nan
        if self.ordinary:
            history = np.array([self.means[epoch - 1] for epoch in self.ordinary])
            baseline, scale = (float(value) for value in forecast(np.array(self.ordinary), history, self.epoch))
            limit = float(threshold(baseline, scale, self._smallest_fraction, multiple))
        if loss - baseline <= limit or (not self.ordinary and np.isfinite(loss)):
            return None
        spike = Spike(
            self.epoch, loss, baseline, scale, limit, rise=np.inf, low=np.inf, high=np.inf, error=np.inf, images=len(losses)
        )
        if not np.isfinite(loss):
            lost = np.mean(~np.isfinite(losses)) > FEW
            return replace(spike, outcome="divergence", outcome_epoch=self.epoch) if lost else spike
        rise = loss - baseline
        change = losses - reference if (reference := self.reference()) is not None else losses - baseline
        resampler = self.resampler(len(losses))
        draws = rise + resampler.means(change) - change.mean()
        low, high = (float(value) for value in np.quantile(draws, [0.025, 0.975]))
        group, fraction = resampler.largest(change)
        spike = replace(spike, groups=resampler.groups, group=group, group_fraction=fraction)
        return replace(spike, rise=rise, low=low, high=high, error=float(draws.std()))

    def _outcome(self, spike: Spike, now: Spike | None, lost: bool | None) -> Outcome:
        """What has become of an open spike; `now`: the newest epoch, if it still counts as high."""
        if now is None:
            return "recovered"
        if now.outcome == "divergence":
            return "divergence"
        if self.epoch - spike.epoch < PATIENCE:
            return "open"
        if lost is None:
            lost = not now.rise < 2 * spike.rise
        return "divergence" if lost else "level shift"


def overfitting(epochs: Sequence[int], validation: np.ndarray, training: np.ndarray) -> Overfitting | None:
    """The overfitting trend, if validation losses [k] have climbed since their best while training losses [k] fell.

    `epochs` [k]: ordinary epochs only, so that a spike is not mistaken for a trend. Training losses are in inference mode.
    """
    x, validation, training = np.asarray(epochs, float), np.asarray(validation, float), np.asarray(training, float)
    if len(x) < 2 * PATIENCE:
        return None
    smooth = np.array([np.median(validation[max(0, i - 2) : i + 3]) for i in range(len(x))])
    best = int(np.argmin(smooth))
    if len(x) - best < PATIENCE:
        return None
    climb, level = line(x[best:], validation[best:])
    falls, _ = line(x[best:], training[best:])
    _, noise_scale = forecast(x, validation, int(x[-1]) + 1)
    if level - smooth[best] < max(SMALLEST_FRACTION * smooth[best], 3 * noise_scale) or climb <= 0 or falls >= 0:
        return None
    gap = float(np.median(validation[-3:]) - np.median(training[-3:]))
    return Overfitting(epoch=int(x[best]), loss=float(validation[best]), climb=float(climb), gap=gap)
