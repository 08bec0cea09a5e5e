"""Judges a remedy that was tried: the epochs of a spike, trained again from the checkpoint before it. Pure.

The control is trained again with nothing changed. Only if it repeats the recorded losses to the last bit does a difference between
it and the treatment, trained again with one thing changed, come from that change.

Shapes: n validation images, k epochs trained again, starting with that of the spike.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from spikewise.detect import Resampler
from spikewise.records import Spike
from spikewise.suspects import HALF

Verdict = Literal["proven", "helps in part", "does not help"]
NOTABLE = 0.1
"""A remedy that removes less than this fraction of the rise does not help."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A remedy that was tried."""

    settings: str
    """What was changed: one or more `section.key=value`, separated by spaces."""
    verdict: Verdict
    """proven: the loss that is left raises no alarm in any of the epochs, and at least half of the rise is gone, with the interval
    above 0. helps in part: at least NOTABLE of the rise is gone, with the interval above 0."""
    losses: tuple[float, ...]
    """Mean validation loss of each epoch [k] with the change."""
    removed: float
    """By how much the change lowers the loss of the spike's epoch, in nats; infinite if only the control's is not finite."""
    low: float
    high: float
    """`low` to `high`: 95 % interval of `removed` over other draws of the validation images (paired bootstrap)."""
    fraction: float
    """`removed` as a fraction of the spike's rise."""
    left: float
    """Largest rise above the spike's baseline in any of the epochs, in nats."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """A spike that was trained again, with and without its remedies."""

    epoch: int
    """The spike's."""
    loss: float
    """Its recorded validation loss, by which `is_about` recognizes the spike."""
    start: int
    """The epoch after which training began again; 0: with the initial weights."""
    epochs: tuple[int, ...]
    """The epochs that were judged [k]."""
    control: tuple[float, ...]
    """Mean validation loss of each of them [k] with nothing changed."""
    problem: str | None = None
    """Why nothing can be proven, as a sentence; None if the control is equal to the record to the last bit."""
    proofs: tuple[Proof, ...] = ()
    """In the order in which they were tried."""
    skipped: tuple[str, ...] = ()
    """Remedies that were not tried and why, as sentences."""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for losses that do not fit the epochs."""
        if any(len(losses) != len(self.epochs) for losses in (self.control, *(one.losses for one in self.proofs))):
            raise ValueError(f"there are {len(self.epochs)} epochs, but not as many losses")

    @property
    def best(self) -> Proof | None:
        """The first remedy that is proven, else the one that helps most; None if none helps."""
        proven = [proof for proof in self.proofs if proof.verdict == "proven"]
        helping = [proof for proof in self.proofs if proof.verdict == "helps in part"]
        return proven[0] if proven else max(helping, key=lambda proof: proof.removed, default=None)

    def is_about(self, spike: Spike) -> bool:
        """Whether this experiment is about `spike`."""
        return self.epoch == spike.epoch and np.array_equal(self.loss, spike.loss, equal_nan=True)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Where a control first differs from the record."""

    epoch: int
    images: int
    """Validation images whose loss differs in that epoch."""
    largest: float
    """The largest difference among them, in nats; infinite if one of the two is not finite."""


def mismatch(recorded: Mapping[int, np.ndarray], control: Mapping[int, np.ndarray]) -> Mismatch | None:
    """Compares the losses [n] of each epoch, bit for bit; None if all that are recorded are equal. NaN equals NaN."""
    for epoch in sorted(recorded):
        then, now = recorded[epoch], control[epoch]
        differs = ~((then == now) | (np.isnan(then) & np.isnan(now)))
        if differs.any():
            with np.errstate(invalid="ignore"):
                distance = np.abs(then[differs].astype(float) - now[differs])
            return Mismatch(epoch, int(differs.sum()), float(np.nan_to_num(distance, nan=np.inf).max()))
    return None


def judge(spike: Spike, settings: str, control: np.ndarray, treatment: np.ndarray, resampler: Resampler) -> Proof:
    """The verdict on a change. `control`, `treatment` [k, n]: the losses without and with it. `resampler`: of the n images."""
    means = treatment.mean(1, dtype=float)
    baseline = spike.baseline if np.isfinite(spike.baseline) else np.inf  # without earlier epochs every finite loss is fine
    left = float(np.max(means - baseline)) if np.isfinite(means).all() else np.inf
    removed, low, high, fraction = _removed(spike, control[0].astype(float), treatment[0].astype(float), resampler)
    alarm = left == np.inf or left > spike.threshold
    verdict: Verdict = "does not help"
    if low > 0 and fraction >= NOTABLE:
        verdict = "proven" if fraction >= HALF and not alarm else "helps in part"
    return Proof(settings, verdict, tuple(means.tolist()), removed, low, high, fraction, left)


def _removed(spike: Spike, control: np.ndarray, treatment: np.ndarray, resampler: Resampler) -> tuple[float, float, float, float]:
    """What the change removes from the loss of the spike's epoch [n]: the mean, its 95 % interval, and its fraction of the rise."""
    if not np.isfinite(treatment).all():
        return (-np.inf, -np.inf, -np.inf, 0.0) if np.isfinite(control).all() else (0.0, 0.0, 0.0, 0.0)
    if not np.isfinite(control).all():
        return np.inf, np.inf, np.inf, 1.0
    change = control - treatment
    low, high = (float(value) for value in np.quantile(resampler.means(change), [0.025, 0.975]))
    removed = float(change.mean())
    return removed, low, high, removed / spike.rise if np.isfinite(spike.rise) else 0.0


def sentence(experiment: Experiment, proof: Proof) -> str:
    """`Proven: with model.statistics=precise the loss of epoch 46 is 1.71 instead of 2.06.`"""
    now, was = _loss(proof.losses[0]), _loss(experiment.control[0])
    what = f"{proof.verdict[0].upper()}{proof.verdict[1:]}: with {proof.settings}"
    later = f" Later it is up to {_loss(max(proof.losses))}." if proof.verdict == "helps in part" and _later(proof) else ""
    return f"{what} the loss of epoch {experiment.epoch} is {now} instead of {was}.{later}"


def sentences(experiment: Experiment) -> list[str]:
    """All that was found: that nothing can be proven, or a sentence for each remedy that was tried or skipped."""
    if experiment.problem is not None:
        return [experiment.problem]
    return [*(sentence(experiment, proof) for proof in experiment.proofs), *experiment.skipped]


def _later(proof: Proof) -> bool:
    """Whether a later epoch has a higher loss than the spike's epoch."""
    return len(proof.losses) > 1 and max(proof.losses) > proof.losses[0]


def _loss(loss: float) -> str:
    if not np.isfinite(loss):
        return "not finite"
    return f"{loss:,.2f}" if loss >= 0.1 else f"{loss:.2g}"


def merged(before: Experiment | None, now: Experiment) -> Experiment:
    """`now`, with what an earlier experiment about the same epochs proved and was not tried again."""
    if before is None or before.problem or now.problem or (before.epochs, before.control) != (now.epochs, now.control):
        return now
    tried = {proof.settings for proof in now.proofs}
    return replace(now, proofs=(*(proof for proof in before.proofs if proof.settings not in tried), *now.proofs))
