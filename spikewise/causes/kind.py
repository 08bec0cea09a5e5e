"""What defines a kind of cause, and the helpers that several causes share. Pure.

Each module beside this one defines one kind: its CAUSE, and, if a second rule with another precedence leads to the same verdict,
a second constant. `spikewise.causes` puts them in order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from spikewise.records import Case, Diagnosis, Event, Probe
from spikewise.suspects import HALF

TOO_HIGH = "the loss would still be far too high"
SHARED = 0.2
"""Training images share a rise if they rise by more than this fraction of it."""


class Claim(NamedTuple):
    """What a rule claims: that its cause explains a fraction of the rise."""

    fraction: float
    low: float
    high: float
    """`low` to `high`: 95 % interval of the fraction; both equal to it if no probe measured it."""
    decides: bool
    """Whether the evidence is sufficient for a verdict."""
    event: Event | None = None
    """The event that caused the rise."""
    against: str | None = None
    """The measured fact that keeps it from deciding, as a clause: "no step was long"."""
    probe: str | None = None
    """The probe that measured it."""
    listed: bool = True
    """Whether it may be listed behind another verdict."""


Rule = Callable[[Case], Claim | None]
"""Judges a case; None if nothing supports the cause."""
Sentence = Callable[[Case, Claim], str]
"""Puts a claim into words, with the numbers of the case."""
SettingsOf = Callable[[Case, Claim], tuple[str, ...]]
"""The remedy as settings of the training job, as in `records.Cause.settings`: the alternatives in the order of the sentence."""


@dataclass(frozen=True, slots=True)
class CauseKind:
    """A kind of cause: when it is claimed, and what is said about it."""

    name: str
    title: str
    """Its name for people, a noun phrase: "a bad training batch"."""
    harms_training: bool
    """True: the weights were harmed. False: only the evaluation shows a rise; training is undisturbed."""
    rule: Rule
    evidence: Sentence
    """One full sentence."""
    remedy: Sentence
    """One concrete action, in lower case, with a full stop."""
    short_remedy: Sentence | None = None
    """The remedy without its explanation; None if the remedy is short already."""
    settings: SettingsOf = lambda *_: ()
    """The same remedy, with the same numbers, as settings of the training job. Default: no setting does it."""
    advice: Callable[[Sequence[Diagnosis]], str] | None = None
    """What to do after several spikes with this verdict, for a summary; None: the remedy of the last one."""
    specific_title: Callable[[Diagnosis], str | None] = lambda _: None
    """A more specific title for a diagnosis whose verdict this is, or None."""


Fact = tuple[bool, str]
"""Whether a fact holds, and the fact as a clause."""


def claim_from(
    probe: Probe | None, *, unless: Sequence[Fact] = (), event: Event | None = None, listed: bool = True
) -> Claim | None:
    """Claims the fraction that a probe removes; None without the probe. It decides if the fraction is at least half, its interval
    lies above 0, and no fact in `unless` holds."""
    if probe is None:
        return None
    against = next((clause for holds, clause in (*unless, (probe.low <= 0, "its interval includes 0")) if holds), None)
    decides = probe.fraction >= HALF and against is None
    return Claim(probe.fraction, probe.low, probe.high, decides, event, against, probe.name, listed)


def training_images_share(case: Case, fraction: float = SHARED) -> bool:
    """Whether training images, in inference mode, certainly rose by more than this fraction of the validation rise, and noticeably
    for their own loss. False if it is unknown."""
    training = case.training
    certain = training.train_rise - 1.64 * np.nan_to_num(training.train_error)
    return bool(certain > fraction * case.rise and training.train_rise > 0.1 * max(training.train_loss, 0.05))


def all_images_rose(case: Case) -> bool:
    """Whether training images, in inference mode, rose at least half as much as validation images, also in proportion to their own
    loss, which may be much lower."""
    training, before = case.training, case.spike.loss - case.rise
    if training_images_share(case, HALF):
        return True
    if not (training_images_share(case, 0.0) and training.train_loss > 0 and before > 0):
        return False
    return bool(training.train_rise / training.train_loss >= HALF * case.rise / before)


def no_step_needed(case: Case) -> Fact:
    """The fact that rules out every cause that acts through training steps."""
    return case.fraction("earlier_weights") >= HALF, "the earlier weights, evaluated again, show the rise too"


def too_high(case: Case, probe: Probe | None) -> Fact:
    """The fact that the loss under the changed condition is not acceptable."""
    return probe is not None and not recovers(case, probe), TOO_HIGH


def recovers(case: Case, probe: Probe) -> bool:
    """Whether the loss under the changed condition is acceptable."""
    return acceptable(case, probe.facts["now"], probe.facts["before"])


def acceptable(case: Case, now: float, before: float) -> bool:
    """Whether a loss `now` is acceptable: no longer an alarm, or at most twice the loss `before` the rise. A probe removes most of
    a rise of 60 nats even if the weights are broken; this condition rules that out."""
    return bool(now - before <= max(case.spike.threshold, before))


def came_afterwards(case: Case, probe: str) -> str:
    """How much of the rise came after the moment at which a probe evaluated the weights, as a clause."""
    there = case.probes[probe].facts.get("there")  # None in a record of an earlier version
    loss = "" if there is None else f" (the loss there: {there:.3f})"
    return f"{percent(case.fraction(probe))} of the rise came afterwards{loss}"


def percent(fraction: float) -> str:
    """A fraction of the rise as a percentage, clipped to 0 % to 100 %. A changed condition may lower the loss below its value
    before the rise (above 100 %), or make the rise larger (below 0 %)."""
    return f"{min(max(fraction, 0), 1):.0%}"
