"""What is wrong with the validation loss as a whole, where no single epoch is a spike: one part of it that stays high. Pure.

Rules in, sentences out: `find` names the standing causes of the measured epochs so far. curve.py defines the parts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from spikewise.curve import Parts
from spikewise.records import Hyperparameters

NOTABLE = 0.2
"""A part is notable above this fraction of the loss ..."""
SMALLEST = 0.1
"""... and above this many nats."""
MOST = 0.5
"""A part that is more than this fraction of a loss above guessing is said after one measurement, otherwise after two in a row."""
CERTAIN = 3.3
"""A part, or a difference between two sets of images, counts above this many standard errors."""
LEARNED = 0.9
"""Training images whose loss is above this fraction of that of guessing have not been learned."""
EARLY = 5
"""Epochs in which a network need not have learned anything."""
WARMUP, SHIFT, PATIENCE = 3, 4, 10
"""Values that remedies suggest: epochs of warm-up, pixels, epochs."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """Images that the network had not seen, evaluated in the same way: the last batches of the first epoch, with weights from
    before them, and validation images."""

    step: int
    """Steps done when the weights were copied."""
    training: float
    validation: float
    """Mean losses."""
    error: float
    """Standard error of their difference."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Tried:
    """Losses of the same validation images with other moving statistics, measured with the weights as they are."""

    now: float
    precise: float
    """With statistics estimated anew."""
    momenta: Mapping[float, float] = field(default_factory=dict)
    """With the statistics that training with another momentum would have given."""

    def settings(self) -> tuple[str, ...]:
        """The settings with which the loss is lower than it is, the lowest first."""
        losses = {f"model.momentum={momentum:g}": loss for momentum, loss in self.momenta.items()}
        losses["model.statistics=precise"] = self.precise
        return tuple(name for name, loss in sorted(losses.items(), key=lambda pair: pair[1]) if loss < self.now)


@dataclass(frozen=True, slots=True)
class Standing:
    """A standing cause."""

    name: str
    """statistics, wandering, generalization or fit, as the parts; or preparation."""
    title: str
    since: int
    """The first epoch in which it was measured."""
    epoch: int
    """The last one."""
    evidence: str
    """One or two sentences with their numbers."""
    remedy: str
    """One concrete action, in lower case, with a full stop."""
    settings: tuple[str, ...] = ()
    """The remedy as settings of the training job: its alternatives."""
    over: bool = False
    """Whether the last measurement no longer shows it."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def standing_from(values: Mapping[str, Any]) -> Standing:
    """The inverse of `Standing.as_dict`, also after a round trip through JSON."""
    return Standing(**{**values, "settings": tuple(values["settings"])})


TITLES = {
    "statistics": "BatchNorm statistics that do not fit the weights",
    "wandering": "weights that wander from step to step",
    "generalization": "overfitting",
    "fit": "a network that has not learned its training images",
    "preparation": "validation images unlike the training images",
}


def find(measured: Sequence[Parts], guess: float = np.inf) -> set[str]:
    """The parts that stand out in the newest of the measured epochs. `guess`: the loss of always predicting the class frequencies;
    infinite if unknown."""
    return {name for name in ("statistics", "wandering", "generalization", "fit") if measured and _stands(name, measured, guess)}


def _stands(name: str, measured: Sequence[Parts], guess: float) -> bool:
    now = measured[-1]
    if not np.isfinite(now.loss):
        return False
    twice = len(measured) > 1 and _high(name, measured[-2], guess) and _high(name, now, guess)
    once = name in ("statistics", "wandering") and now.loss > guess and getattr(now, name) > MOST * now.loss
    return twice or (once and _high(name, now, guess))


def _high(name: str, one: Parts, guess: float) -> bool:
    value = getattr(one, name)
    if name == "fit":
        return one.epoch >= EARLY and np.isfinite(guess) and value > LEARNED * guess
    error = one.errors[("statistics", "wandering", "generalization").index(name)]
    fraction = MOST if name == "generalization" else NOTABLE
    return value > max(fraction * one.loss, SMALLEST, CERTAIN * error)


def differs(unseen: Unseen) -> bool:
    """Whether the validation images differ from training images that the network had not seen either."""
    gap = unseen.validation - unseen.training
    return gap > max(NOTABLE * unseen.validation, SMALLEST, CERTAIN * unseen.error)


def say(
    name: str, parts: Parts, now: Hyperparameters, guess: float, tried: Tried, unseen: Unseen | None
) -> tuple[str, str, tuple[str, ...]]:
    """Evidence, remedy and settings of the standing cause `name` in the epoch of `parts`."""
    if name == "statistics":
        return _statistics(parts, tried, now, guess)
    if name == "wandering":
        return _wandering(parts, now, guess)
    if name == "generalization":
        return _generalization(parts, guess)
    if name == "fit":
        return _fit(parts, now, guess)
    assert unseen is not None
    return _preparation(unseen)


def _statistics(parts: Parts, tried: Tried, now: Hyperparameters, guess: float) -> tuple[str, str, tuple[str, ...]]:
    settings = tried.settings()
    tests = [f"{value:.3f} with momentum {momentum:g}" for momentum, value in tried.momenta.items()]
    tests.append(f"{tried.precise:.3f} with statistics estimated anew")
    evidence = (
        f"BatchNorm's moving statistics add {parts.statistics:.3f} to the validation loss of {parts.loss:.3f} in epoch "
        f"{parts.epoch}{_guessing(parts, guess)}; in training mode, which does not use them, the loss is {parts.training:.3f}. "
        f"Measured with the same weights: {tried.now:.3f} as it is, {', '.join(tests)}."
    )
    if not settings:
        return evidence, "lower the learning rate, so that the statistics can follow the weights.", ()
    name, _, value = settings[0].partition("=")
    if name == "model.statistics":
        return evidence, "re-estimate BatchNormalization's statistics on training images before evaluating.", settings
    was = f" (now {now.momentum:g})" if np.isfinite(now.momentum) else ""
    return evidence, f"set BatchNormalization's momentum to {value}{was}.", settings


def _wandering(parts: Parts, now: Hyperparameters, guess: float) -> tuple[str, str, tuple[str, ...]]:
    decay = f"{1 - float(f'{np.clip(1 / now.steps, 1e-4, 0.1):.0e}'):g}" if now.steps else None
    evidence = (
        f"With weights averaged over epoch {parts.epoch} the validation loss is {parts.wandering:.3f} lower than {parts.loss:.3f}"
        f"{_guessing(parts, guess)}: the last steps move the weights to and fro."
    )
    half = f"{now.learning_rate / 2:.2g}" if np.isfinite(now.learning_rate) else None
    settings = tuple(
        one for one in (f"optimizer.ema={decay}" if decay else "", f"optimizer.learning_rate={half}" if half else "") if one
    )
    return (
        evidence,
        f"average the weights over about an epoch{f' (ema {decay})' if decay else ''}, or halve the learning rate.",
        settings,
    )


def _generalization(parts: Parts, guess: float) -> tuple[str, str, tuple[str, ...]]:
    evidence = (
        f"Of the validation loss of {parts.loss:.3f} in epoch {parts.epoch}{_guessing(parts, guess)}, {parts.generalization:.3f} "
        f"does not carry over from training images, whose loss is {parts.fit:.3f} under the same conditions."
    )
    remedy = (
        f"keep the best epoch and stop {PATIENCE} epochs after it, shift the training images at random, or add training images."
    )
    return evidence, remedy, (f"training.keep=best training.early_stopping={PATIENCE}", f"augmentation.shift={SHIFT}")


def _fit(parts: Parts, now: Hyperparameters, guess: float) -> tuple[str, str, tuple[str, ...]]:
    evidence = (
        f"After {parts.epoch} epochs the loss of training images, in inference mode with clean statistics, is {parts.fit:.3f}; "
        f"guessing costs {guess:.3f}."
    )
    faster = f"{3 * now.learning_rate:.2g}" if np.isfinite(now.learning_rate) else None
    settings = (f"optimizer.learning_rate={faster} optimizer.warmup_epochs={WARMUP}",) if faster else ()
    return (
        evidence,
        "check that labels belong to their images; then train longer, or raise the learning rate with a warm-up.",
        settings,
    )


def _preparation(unseen: Unseen) -> tuple[str, str, tuple[str, ...]]:
    evidence = (
        f"After step {unseen.step} of the first epoch, validation images had a loss of {unseen.validation:.3f}, and training "
        f"images that the network had not seen either {unseen.training:.3f} (standard error of the difference {unseen.error:.3f})."
    )
    return evidence, "compare both sets: size, colors, scaling, compression, source, class frequencies.", ()


def _guessing(parts: Parts, guess: float) -> str:
    return f" (guessing costs {guess:.3f})" if parts.loss > guess else ""


def update(
    known: Sequence[Standing], names: set[str], epoch: int, say: Callable[[str], tuple[str, str, tuple[str, ...]]]
) -> tuple[list[Standing], list[Standing]]:
    """The standing causes after the measurement of `epoch`, and those of them that are new. `names`: what it shows; `say`:
    evidence, remedy and settings of one of them."""
    now = []
    for one in known:
        if one.name == "preparation":
            now.append(one)
        elif one.name in names:
            now.append(Standing(one.name, one.title, one.since, epoch, *say(one.name)))
        else:
            now.append(Standing(**{**one.as_dict(), "over": True}))
    new = [Standing(name, TITLES[name], epoch, epoch, *say(name)) for name in sorted(names - {one.name for one in known})]
    return [*now, *new], new
