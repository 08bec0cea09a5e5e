"""What is wrong with the validation loss as a whole, where no single epoch is a spike: one part of it that stays high. Pure.

Rules in, sentences out: `find` names the standing causes of the measured epochs so far. curve.py defines the parts.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from spikewise import advice
from spikewise.curve import PARTS, Parts
from spikewise.looks import Look
from spikewise.records import Hyperparameters

NOTABLE = 0.2
"""A part is notable above this fraction of the loss ..."""
SMALLEST = 0.1
"""... and above this many nats."""
MOST = 0.5
"""A part that is more than this fraction of a loss above guessing is said after one measurement, otherwise after two in a row. That
nothing was learned is said after one, if the training loss of the epoch confirms it."""
CERTAIN = 3.3
"""A part, or a difference between two sets of images, counts above this many standard errors."""
LEARNED = 0.9
"""Training images whose loss is above this fraction of that of guessing have not been learned."""
EASED = 0.7
"""A cause that stands is over below this fraction of its limits: one that hovers about them would come and go."""
EARLY = 5
"""Epochs in which a network need not have learned anything."""


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
    ranks: float = 0.0
    """How many standard errors validation images rank above training images (Mann-Whitney). A few huge losses make the means
    uncertain, but not the ranks."""


@dataclass(frozen=True, slots=True)
class Matched:
    """How validation images differ from training images to look at, and what that costs."""

    look: Look
    own: float
    """Mean loss of validation images."""
    changed: float
    """That of the same images with the mean and the deviation of the training images."""
    error: float
    """Standard error of the difference."""

    @property
    def gain(self) -> float:
        """By how much the loss falls."""
        return self.own - self.changed


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
    """statistics, wandering, generalization or fit, as the parts; appearance or preparation."""
    title: str
    since: int
    """The first epoch in which it was measured; after a pause, the first one since then."""
    epoch: int
    """The last one."""
    finding: str
    """One short sentence with its numbers."""
    evidence: str
    """What was measured to find it, in one or two further sentences."""
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


class Text(NamedTuple):
    """The part of a standing cause that is made of numbers; see Standing."""

    finding: str
    evidence: str
    remedy: str
    settings: tuple[str, ...] = ()


TITLES = {
    "statistics": "BatchNorm statistics that do not fit the weights",
    "wandering": "the last steps' to and fro",
    "generalization": "overfitting",
    "fit": "a network that has not learned its training images",
    "appearance": "validation images of another brightness or contrast",
    "preparation": "validation images unlike the training images",
}


def find(measured: Sequence[Parts], guess: float = np.inf, active: Collection[str] = ()) -> set[str]:
    """The parts that stand out in the newest of the measured epochs. `guess`: the loss of always predicting the class frequencies;
    infinite if unknown. `active`: those that did so before, which are over only well below the limits. A loss that stays above
    guessing although the training images are learned has a cause, even if none of the parts is large alone."""
    now = measured[-1] if measured else None
    found = {name for name in PARTS if measured and _stands(name, measured, guess)}
    found |= {name for name in PARTS if now and name in active and _high(name, now, guess, EASED)}
    if now is None or found or len(measured) < 2 or now.fit > LEARNED * guess or not all(one.loss > guess for one in measured[-2:]):
        return found
    name, error = max(zip(PARTS[:3], now.errors[:3], strict=True), key=lambda pair: float(getattr(now, pair[0])))
    return {name} if getattr(now, name) > CERTAIN * error else set()


def _stands(name: str, measured: Sequence[Parts], guess: float) -> bool:
    now = measured[-1]
    if not np.isfinite(now.loss):
        return False
    twice = len(measured) > 1 and _high(name, measured[-2], guess) and _high(name, now, guess)
    once = name in ("statistics", "wandering") and now.loss > guess and getattr(now, name) > MOST * now.loss
    once |= name == "fit" and now.training > LEARNED * guess  # it is no fluctuation: the epoch's batches say the same
    return twice or (once and _high(name, now, guess))


def _high(name: str, one: Parts, guess: float, eased: float = 1.0) -> bool:
    """Whether the part is above its limits, times `eased`."""
    value: float = getattr(one, name)
    if name == "fit":
        return one.epoch >= EARLY and value > eased * LEARNED * guess  # never above an infinite one
    error = one.errors[("statistics", "wandering", "generalization").index(name)]
    fraction = MOST if name == "generalization" else NOTABLE
    return value > eased * max(fraction * one.loss, SMALLEST, CERTAIN * error)


def differs(unseen: Unseen) -> bool:
    """Whether the validation images differ from training images that the network had not seen either."""
    gap = unseen.validation - unseen.training
    certain = gap > CERTAIN * unseen.error or unseen.ranks > CERTAIN
    return certain and gap > max(NOTABLE * unseen.validation, SMALLEST)


def costs(matched: Matched, *, active: bool = False) -> bool:
    """Whether the difference in looks costs loss. `active`: it did so before."""
    limit = max(NOTABLE * matched.own, SMALLEST, CERTAIN * matched.error)
    return matched.gain > (EASED if active else 1.0) * limit


def say(
    name: str, parts: Parts, now: Hyperparameters, guess: float, tried: Tried, unseen: Unseen | None, matched: Matched | None = None
) -> Text:
    """What to say about the standing cause `name` in the epoch of `parts`."""
    if name == "statistics":
        return _statistics(parts, tried, now, guess)
    if name == "wandering":
        return _wandering(parts, now, guess)
    if name == "generalization":
        return _generalization(parts, now, guess)
    if name == "fit":
        return _fit(parts, now, guess)
    if name == "appearance":
        assert matched is not None
        return _appearance(matched)
    assert unseen is not None
    return _preparation(unseen)


def _statistics(parts: Parts, tried: Tried, now: Hyperparameters, guess: float) -> Text:
    settings = tried.settings()
    tests = [f"{value:.3f} with momentum {momentum:g}" for momentum, value in tried.momenta.items()]
    tests.append(f"{tried.precise:.3f} with statistics estimated anew")
    finding = f"In epoch {parts.epoch} they add {parts.statistics:.3f} to {_loss(parts, guess)}."
    evidence = (
        f"In training mode, which does not use the moving statistics, the loss is {parts.training:.3f}. The same weights on a "
        f"fixed part of the validation images: {tried.now:.3f} as it is, {', '.join(tests)}."
    )
    if not settings:
        return Text(finding, evidence, "lower the learning rate, so that the statistics can follow the weights.")
    name, _, value = settings[0].partition("=")
    if name == "model.statistics":
        remedy = "re-estimate BatchNormalization's statistics on training images before evaluating."
    else:
        was = f" (now {now.momentum:g})" if np.isfinite(now.momentum) else ""
        remedy = f"set BatchNormalization's momentum to {value}{was}."
    return Text(finding, evidence, remedy, settings)


def _wandering(parts: Parts, now: Hyperparameters, guess: float) -> Text:
    averages, half = advice.averages(now), advice.half_rate(now)
    decay = None if averages else advice.decay(now)
    average = "" if averages else f"average the weights over about an epoch{f' (a decay of {decay})' if decay else ''}, or "
    return Text(
        f"In epoch {parts.epoch} it adds {parts.wandering:.3f} to {_loss(parts, guess)}.",
        "Measured with weights averaged over the epoch.",
        f"{average}halve the learning rate{f' to {half}' if half else ''}.",
        (*((f"optimizer.ema={decay}",) if decay else ()), *((f"optimizer.learning_rate={half}",) if half else ())),
    )


def _generalization(parts: Parts, now: Hyperparameters, guess: float) -> Text:
    ways = [] if advice.stops(now) else [f"keep the best epoch and stop {advice.PATIENCE} epochs after it"]
    ways += [] if advice.shifts(now) else ["shift the training images at random"]
    return Text(
        f"In epoch {parts.epoch}, {parts.generalization:.3f} of {_loss(parts, guess)} does not carry over from training images.",
        f"Their loss under the same conditions is {parts.fit:.3f}.",
        f"{', '.join([*ways, 'or add training images']) if ways else 'add training images'}.",
        (*(() if advice.stops(now) else (advice.STOP,)), *(() if advice.shifts(now) else (advice.MOVE,))),
    )


def _fit(parts: Parts, now: Hyperparameters, guess: float) -> Text:
    faster = f"{3 * now.learning_rate:.2g}" if np.isfinite(now.learning_rate) else None
    return Text(
        f"After {parts.epoch} epochs the loss of training images is {parts.fit:.3f}; guessing costs {guess:.3f}.",
        "Measured in inference mode with averaged weights and clean statistics.",
        "check that labels belong to their images; then train longer, or raise the learning rate with a warm-up.",
        (f"optimizer.learning_rate={faster} optimizer.warmup_epochs={advice.WARMUP}",) if faster else (),
    )


def _preparation(unseen: Unseen) -> Text:
    return Text(
        f"After step {unseen.step} of the first epoch, validation images had a loss of {unseen.validation:.3f}, but training "
        f"images that the network had not seen either had {unseen.training:.3f}.",
        f"The standard error of the difference is {unseen.error:.3f}.",
        "compare both sets: size, colors, scaling, compression, source, class frequencies.",
    )


def _appearance(matched: Matched) -> Text:
    look = matched.look
    channel = "" if look.channel is None else f" in channel {look.channel}"
    return Text(
        f"Their {look.feature}{channel} is {look.validation:.3g} on average, that of training images {look.training:.3g}; with "
        f"mean and deviation of those, their loss is {matched.changed:.3f} instead of {matched.own:.3f}.",
        f"The difference is {look.distance:.1f} standard deviations of single images.",
        "prepare both sets in the same way: look for a scaling, normalization or conversion that only one of them gets.",
    )


def _loss(parts: Parts, guess: float) -> str:
    above = f" (guessing costs {guess:.3f})" if parts.loss > guess else ""
    return f"the validation loss of {parts.loss:.3f}{above}"


def update(
    known: Sequence[Standing], names: set[str], epoch: int, say: Callable[[str], Text]
) -> tuple[list[Standing], list[Standing]]:
    """The standing causes after the measurement of `epoch`, and those of them that are new. `names`: what it shows; `say`:
    the text about one of them. A cause that was over and returns is a new one, in place of the earlier one."""
    active = {one.name: one for one in known if not one.over}
    now = []
    for one in known:
        if one.name == "preparation":  # measured once, in the first epoch
            now.append(one)
        elif one.name not in names:
            now.append(replace(one, over=True))
        elif one.name in active:
            now.append(Standing(one.name, one.title, one.since, epoch, *say(one.name)))
    new = [Standing(name, TITLES[name], epoch, epoch, *say(name)) for name in sorted(names - set(active))]
    return [*now, *new], new
