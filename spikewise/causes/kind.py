"""What defines a kind of cause, and the helpers that several causes share. Pure.

Each module beside this one defines one kind: its CAUSE, and, if a second rule with another precedence leads to the same verdict,
a second constant. `spikewise.causes` puts them in order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from spikewise.records import Case, Diagnosis, Event, Probe
from spikewise.suspects import HALF


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
    specific_title: Callable[[Diagnosis], str | None] = lambda _: None
    """A more specific title for a diagnosis whose verdict this is, or None."""


def claim_from(probe: Probe | None, *, given: bool = True, event: Event | None = None) -> Claim | None:
    """Claims the fraction that a probe removes; None without the probe. It decides if the fraction is at least half, its interval
    lies above 0, and the further condition `given` holds."""
    if probe is None:
        return None
    decides = probe.fraction >= HALF and probe.low > 0 and given
    return Claim(probe.fraction, probe.low, probe.high, decides, event)


def recovers(case: Case, probe: Probe) -> bool:
    """Whether the loss under the changed condition is acceptable: no longer an alarm, or at most twice the loss before the rise. A
    probe removes most of a rise of 60 nats even if the weights are broken; this condition rules that out."""
    return bool(probe.facts["now"] - probe.facts["before"] <= max(case.spike.threshold, probe.facts["before"]))


def percent(fraction: float) -> str:
    """A fraction of the rise as a percentage, clipped to 0 % to 100 %. A changed condition may lower the loss below its value
    before the rise (above 100 %), or make the rise larger (below 0 %)."""
    return f"{min(max(fraction, 0), 1):.0%}"
