"""Decides whether an epoch's validation loss is a spike. Pure NumPy: losses in, spikes out, without look-ahead.

An epoch is a spike if its mean loss lies above what the earlier epochs predict by more than MULTIPLE times the run's own noise
scale, and by enough to matter (forecast.py). The constants are calibrated: see benchmarks/false_alarms.py and
benchmarks/short_runs.py.

Shapes: n validation images, k epochs, r resamples.
"""

from collections.abc import Container, Hashable, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np

from spikewise.errors import UserError
from spikewise.forecast import FLOOR, MULTIPLE, PRIOR, SMALLEST_FRACTION, SMALLEST_RISE, forecast, line, threshold
from spikewise.records import Course, Outcome, Overfitting, Restless, Rise, Spike

BACK = 3.0
"""A spike has recovered once the rise is below this many noise scales. Between BACK and MULTIPLE it stays open; with a single
limit, a loss that stays just below it would count as recovered."""
SUSPICIOUS = 4.5
"""A rise above this many noise scales may be a spike: if the steps of the epoch were unusual and explain it (Diagnostician)."""
PATIENCE = 5
"""A spike that has not recovered after this many epochs is a level shift or a divergence."""
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
JUMP = 0.15
"""A rise by more than this fraction from one epoch to the next is a jump."""
JUMPS = 5
"""From this many jumps on, a stretch of epochs is restless."""
CALM = 8
"""Jumps more than this many epochs apart belong to different stretches."""
SENSITIVITY = (0.1, 10.0)
"""Bounds of the sensitivity."""


class Resampler:
    """Bootstrap over the validation images, by group where groups are known. All intervals of a run use the same r draws."""

    def __init__(self, images: int, groups: Sequence[Hashable] | None = None, resamples: int = RESAMPLES) -> None:
        """`groups` [n]: images of the same group are drawn together; images whose group is None or "" are drawn on their own."""
        numbers: dict[tuple[Hashable, int], int] = {}
        keys = [
            (g, i if g in (None, "") else -1)
            for i, g in enumerate(groups if groups is not None and len(groups) else [None] * images)
        ]
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
    resolved: tuple[Spike, ...]
    """Earlier spikes whose outcome is now known, the earliest first."""
    suspicion: Spike | None = None
    """What may be a spike (SUSPICIOUS), if `spike` is None and no earlier one is open. Its threshold is the lower one."""


class Detector:
    """Judges one epoch after another. Everything it knows is in `state`, so a resumed run finds what an undisturbed one would."""

    def __init__(self, groups: Sequence[Hashable] | None = None, *, sensitivity: float = 1.0) -> None:
        """`groups` [n]: see Resampler. `sensitivity`: every limit is divided by it; with 2, half the rise is an alarm. Raises
        UserError if it is not between SENSITIVITY."""
        if not SENSITIVITY[0] <= sensitivity <= SENSITIVITY[1]:
            raise UserError(
                f"sensitivity = {sensitivity!r} is not between {SENSITIVITY[0]:g} and {SENSITIVITY[1]:g}. "
                "Fix: use 1, or 2 for alarms at half the rise."
            )
        self.means: list[float] = []
        self.spikes: list[Spike] = []
        self.ordinary: list[int] = []
        """Numbers of the epochs that the trend is fitted to."""
        self.largest: Rise | None = None
        """Of the rises that raised no alarm, the largest compared with the loss expected then."""
        self._recent: dict[int, np.ndarray] = {}
        """Losses [n] of the last ordinary epochs, by epoch."""
        self._kept: tuple[list[int], dict[int, np.ndarray], Rise | None] = [], {}, None
        """`ordinary`, `_recent` and `largest` before the newest epoch."""
        self._groups = groups
        self._sensitivity = sensitivity
        self._resampler: Resampler | None = None

    @property
    def epoch(self) -> int:
        """The last epoch seen; 0 before the first."""
        return len(self.means)

    @property
    def open(self) -> list[Spike]:
        """The spikes whose outcome is not known yet, the earliest first. A second fault may come while the first is open."""
        return [spike for spike in self.spikes if spike.outcome == "open"]

    @property
    def due(self) -> bool:
        """Whether an open spike must be resolved by the next epoch: as recovered, a level shift or a divergence."""
        return any(self.epoch + 1 - spike.epoch >= PATIENCE for spike in self.open)

    def update(self, losses: np.ndarray, *, lost: bool | None = None, asked: bool = False) -> Update:
        """Judges the next epoch from the loss of each validation image [n], the images in the same order every time. `lost` counts
        only if a spike is `due`: whether the network has lost its training images as well, which makes a lasting rise a
        divergence; None if unknown. `asked`: describe the epoch as a spike if its loss is above the
        expected one at all; without an alarm it stays an ordinary epoch."""
        losses = np.asarray(losses, float)
        self.means.append(float(np.mean(losses)))
        largest = self.largest
        expected, scale = self._expected()
        before = self.open
        ends = {spike.epoch: self._outcome(spike, losses, expected, lost) for spike in before}
        self.spikes = [
            replace(spike, outcome=ends[spike.epoch], outcome_epoch=self.epoch)
            if ends.get(spike.epoch, "open") != "open"
            else spike
            for spike in self.spikes
        ]
        resolved = tuple(spike for spike in self.spikes if spike.epoch in ends and spike.outcome != "open")
        if lasting := [spike for spike in resolved if spike.outcome != "recovered"]:
            self._restart(lasting[0].epoch)
        spike = suspicion = None
        if asked or not before:
            spike = self._judge(losses, expected, scale, asked=asked)
            suspicion = None if asked or spike else self._judge(losses, expected, scale, SUSPICIOUS)
        elif ends[before[0].epoch] != "recovered":  # the loss is high since then: a second fault lies above that as well
            spike = self._judge(losses, *self._expected_above(before[0], expected))
        self._kept = list(self.ordinary), self._recent, largest
        if spike is not None and (spike.rise == np.inf or spike.rise > spike.threshold):  # a smaller one was only asked for
            self.spikes.append(spike)
        elif np.isfinite(self.means[-1]) and not self.open:
            self.ordinary.append(self.epoch)
            self._recent = dict([*self._recent.items(), (self.epoch, losses)][-REFERENCES:])
        return Update(spike, resolved, suspicion)

    def confirm(self, suspicion: Spike) -> None:
        """Makes the suspicion that `update` has just returned a spike."""
        self.ordinary, self._recent, self.largest = self._kept
        self.spikes = [*self.spikes, suspicion]

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
            "largest": self.largest and asdict(self.largest),
        }
        return facts, np.array(list(self._recent.values()), np.float32)

    def restore(self, facts: dict[str, Any], recent: np.ndarray) -> None:
        """Restores a `state`."""
        self.means, self.ordinary = list(facts["means"]), list(facts["ordinary"])
        self.spikes = [Spike(**values) for values in facts["spikes"]]
        self.largest = Rise(**facts["largest"]) if facts.get("largest") else None  # checkpoints of earlier versions have none
        self._recent = dict(zip(facts["recent"], recent.astype(float), strict=True))

    def _expected(self) -> tuple[float, float]:
        """The loss that the ordinary epochs predict for the newest epoch, and the noise scale; NaN without ordinary epochs."""
        if not self.ordinary:
            return np.nan, np.nan
        history = np.array([self.means[epoch - 1] for epoch in self.ordinary])
        baseline, scale = forecast(np.array(self.ordinary), history, self.epoch)
        return float(baseline), float(scale)

    def _expected_above(self, first: Spike, expected: float) -> tuple[float, float]:
        """The loss that a second fault must exceed while the spike `first` lasts, and the noise scale at that loss: the highest
        loss since then, and as much more as the last epoch added. It is infinite if the loss has jumped in every epoch since
        then: that is one divergence, and only a loss that is not finite is news."""
        since = np.array(self.means[first.epoch - 1 : -1])
        if len(since) > 1 and np.all(np.diff(since) > JUMP * since[:-1]):
            return np.inf, 0.0
        steps = np.diff(self.means[-3:-1])
        highest = np.max(since[np.isfinite(since)], initial=np.fmax(expected, 0))
        level = float(highest + np.max(steps[np.isfinite(steps)], initial=0))
        relative = first.scale / (first.baseline + FLOOR) if np.isfinite(first.baseline) else PRIOR
        return level, relative * (level + FLOOR)

    def _judge(
        self, losses: np.ndarray, expected: float, scale: float, multiple: float = MULTIPLE, *, asked: bool = False
    ) -> Spike | None:
        """The newest epoch as a spike, if it lies far enough above the `expected` loss; above it at all if `asked`."""
        loss = self.means[-1]
        limit = float(threshold(expected, scale, multiple, self._sensitivity))
        rise = loss - expected
        if np.isfinite(loss) and not rise > (0 if asked else limit):
            if rise > 0 and (self.largest is None or rise * self.largest.expected > self.largest.rise * expected):
                self.largest = Rise(self.epoch, rise, expected, limit)
            return None
        if self.epoch > 1 and not np.isfinite(self.means[-2:]).any():
            return None  # the epoch before reported it already
        spike = Spike(
            self.epoch, loss, expected, scale, limit, rise=np.inf, low=np.inf, high=np.inf, error=np.inf, images=len(losses)
        )
        if not np.isfinite(loss):
            return replace(spike, outcome="divergence", outcome_epoch=self.epoch) if _broken(losses) else spike
        change = losses - reference if (reference := self.reference()) is not None else losses - expected
        resampler = self.resampler(len(losses))
        draws = rise + resampler.means(change) - change.mean()
        low, high = (float(value) for value in np.quantile(draws, [0.025, 0.975]))
        group, fraction = resampler.largest(change)
        spike = replace(spike, groups=resampler.groups, group=group, group_fraction=fraction)
        return replace(spike, rise=rise, low=low, high=high, error=float(draws.std()))

    def _outcome(self, spike: Spike, losses: np.ndarray, expected: float, lost: bool | None) -> Outcome:
        """What has become of an open spike. `expected`: the loss that the ordinary epochs predict, which may climb."""
        loss, baseline = self.means[-1], float(np.fmax(spike.baseline, expected))
        rise = loss - baseline
        if np.isfinite(loss) and not rise > threshold(baseline, spike.scale, BACK, self._sensitivity):
            return "recovered"
        if not np.isfinite(loss) and _broken(losses):
            return "divergence"
        if self.epoch - spike.epoch < PATIENCE:
            return "open"
        if lost is None:
            lost = not np.fmin(rise, self.means[-2] - baseline) < 2 * spike.rise  # a second fault alone is no divergence
        return "divergence" if lost else "level shift"

    def _restart(self, first: int) -> None:
        """Makes the epochs since `first` the ordinary ones, except those of spikes after it."""
        later = [spike for spike in self.spikes if spike.epoch > first]
        among = [e for e in range(first, self.epoch) if not any(s.epoch <= e < (s.outcome_epoch or self.epoch) for s in later)]
        self.ordinary = [epoch for epoch in among if np.isfinite(self.means[epoch - 1])]
        self._recent = {}


def _broken(losses: np.ndarray) -> bool:
    """Whether more than a few of the losses [n] are not finite."""
    return bool(np.mean(~np.isfinite(losses)) > FEW)


def replay(means: Sequence[float], sensitivity: float = 1.0, confirmed: Container[int] = ()) -> Detector:
    """A detector that has seen these mean losses, epoch by epoch. It has no intervals. `confirmed`: epochs whose suspicions, if
    there are any, were confirmed."""
    detector = Detector(sensitivity=sensitivity)
    for mean in means:
        suspicion = detector.update(np.array([mean])).suspicion
        if suspicion is not None and suspicion.epoch in confirmed:
            detector.confirm(suspicion)
    return detector


def course(detector: Detector, guess: float = np.nan) -> Course:
    """What there is to say about the curve besides its spikes. `guess`: the loss of predicting the class frequencies, if known."""
    means = np.array(detector.means)
    lowest = float(np.min(means[np.isfinite(means)], initial=np.inf))
    return Course(lowest if np.isfinite(lowest) else np.nan, guess, detector.largest, restless(means))


def restless(means: np.ndarray) -> tuple[Restless, ...]:
    """The stretches of epochs in which the mean losses [k] kept jumping: at least JUMPS rises by more than JUMP, not more than CALM
    epochs apart. This asks what a person sees in the curve, whatever the detector took for noise, a spike or a new level."""
    before, rises = means[:-1], np.diff(means)
    with np.errstate(invalid="ignore"):
        epochs = np.flatnonzero((rises > np.maximum(JUMP * before, SMALLEST_RISE)) & np.isfinite(rises)) + 2
    parts = np.split(epochs, np.flatnonzero(np.diff(epochs) > CALM) + 1)
    return tuple(
        Restless(int(part[0]), int(part[-1]), len(part), float(rises[part - 2].max())) for part in parts if len(part) >= JUMPS
    )


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
    if level - smooth[best] < max(SMALLEST_FRACTION * smooth[best], 3 * noise_scale) or climb <= 0 or not falls < 0:
        return None
    gap = float(np.median(validation[-3:]) - np.median(training[-3:]))
    return Overfitting(epoch=int(x[best]), loss=float(validation[best]), climb=float(climb), gap=gap)
