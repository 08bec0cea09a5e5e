"""What the validation loss is made of, as text: for the log, the report and the callback's summary. Pure: values in, text out."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spikewise import describe
from spikewise.curve import PARTS, TITLES, Parts, shares
from spikewise.describe import WIDTH, command_options, printable
from spikewise.findings import Findings
from spikewise.records import Course
from spikewise.standing import CERTAIN, Standing

JUMPS = 0.05
"""The changes from one measured epoch to the next are described if their root mean square is above this fraction of the loss."""
NAMED = 0.1
"""A part is named in a sentence above this fraction."""
SMALL = 0.01
"""The parts that are not named are mentioned if they add up to at least this fraction of the loss."""


class Answers(NamedTuple):
    """What there is to say about the curve, in sentences, by the question that they answer."""

    made_of: list[str]
    """What is the validation loss made of?"""
    why: list[str]
    """What happened to it, and why?"""
    change: list[str]
    """What should be changed?"""
    settings: tuple[str, ...]
    """The most important change as settings of the training job: its alternatives."""
    tried: list[str]
    """What is known about these changes from trying them?"""


def answers(found: Findings, epochs: int, course: Course | None = None, proofs: Sequence[str] = ()) -> Answers:
    """What happened to the validation loss in `epochs` epochs. `proofs`: sentences about remedies that were tried by a replay."""
    active = [one for one in found.standing if not one.over]
    known = {setting for one in found.diagnoses for setting in one.verdict.settings}
    remedies = [f"{one.remedy[0].upper()}{one.remedy[1:]}" for one in active if not known & set(one.settings)]
    return Answers(
        made_of=_made_of(found),
        why=[*map(_standing, active), *describe.happened(found.diagnoses, found.overfitting, epochs, course), *_over(found)],
        change=[*remedies, *describe.advice(found.diagnoses, found.overfitting, course, sound=not active)],
        settings=active[0].settings if active else describe.settings(found.diagnoses),
        tried=[*proofs, *(one.evidence for one in active if one.name == "statistics")],
    )


def explained(found: Findings, epochs: int, course: Course | None = None, proofs: Sequence[str] = ()) -> list[str]:
    """The same as sentences for one paragraph. The most important one comes first: a standing cause, or else the spikes."""
    standing = [f"{_standing(one)} Fix: {one.remedy}" for one in found.standing if not one.over]
    spikes = [
        *describe.happened(found.diagnoses, found.overfitting, epochs, course),
        *describe.advice(found.diagnoses, found.overfitting, course, sound=not standing),
        *proofs,
        *_over(found),
    ]
    return [*standing, *_made_of(found), *spikes] if standing else [*spikes, *_made_of(found)]


def _made_of(found: Findings) -> list[str]:
    """What the loss is made of. Losses of another loss function do not compare, and are left out."""
    changed = [one.spike.epoch for one in found.diagnoses if one.verdict.event == "loss"]
    return [*made_of(found.parts), *jumps([one for one in found.parts if one.epoch >= max(changed, default=0)])]


def made_of(parts: Sequence[Parts]) -> list[str]:
    """What the last measured loss is made of, in a sentence whose numbers add up; empty without one."""
    if not parts or not np.isfinite([parts[-1].loss, *parts[-1].errors]).all():
        return []
    now = parts[-1]
    errors = dict(zip(PARTS, now.errors, strict=True))
    named = sorted((name for name in TITLES if abs(getattr(now, name)) > NAMED * abs(now.loss)), key=lambda one: -getattr(now, one))
    if not named:
        return []
    amounts = []
    for name in named:
        value = getattr(now, name)
        doubt = f" (±{describe.nats(2 * errors[name])})" if abs(value) <= CERTAIN * errors[name] else ""
        amounts.append(f"{describe.nats(value)}{doubt} is {TITLES[name]}")
    rest = now.loss - sum(round(getattr(now, name), 3) for name in named)
    if abs(rest) >= SMALL * abs(now.loss):
        amounts.append(f"{describe.nats(rest)} the rest")
    return [f"Of the validation loss of {describe.nats(now.loss)} in epoch {now.epoch}, {_list(amounts)}."]


def jumps(parts: Sequence[Parts]) -> list[str]:
    """What the changes of the loss from one measured epoch to the next consist of, in a sentence; empty if it hardly changes. A
    part that moves against the loss has a negative fraction."""
    finite = [one for one in parts if np.isfinite(one.loss)]
    found = shares(finite)
    if found is None:
        return []
    losses = np.array([one.loss for one in finite])
    if np.sqrt(np.mean(np.diff(losses) ** 2)) < JUMPS * np.median(losses):
        return []
    named = sorted((name for name in found if abs(found[name]) > NAMED), key=lambda name: -found[name])
    listed = [f"{found[name]:.0%} is {TITLES[name]}" for name in named]
    return [f"Of its changes between epochs {finite[0].epoch} and {finite[-1].epoch}, {_list(listed)}."]


def block(standing: Standing, *, options: bool = False) -> str:
    """The log's text about a new standing cause: several lines. `options`: also the remedy as options of the training job."""
    lines = [f"STANDING CAUSE in epoch {standing.epoch}: {standing.title}"]
    for text in (f"{standing.finding} {standing.evidence}", f"-> {standing.remedy}"):
        lines += textwrap.wrap(printable(text), WIDTH, initial_indent="     ", subsequent_indent="     ", break_on_hyphens=False)
    if options:
        for other, text in enumerate(command_options(standing.settings) or ["No setting does this."]):
            lines.append(f"     {'or ' if other else '   '}{text}")
    return "\n".join(lines)


def _standing(one: Standing) -> str:
    title = f"{one.title[0].upper()}{one.title[1:]}"
    since = f"since epoch {one.since}" if one.epoch > one.since else f"in epoch {one.epoch}"
    if one.over:
        since = f"{f'epochs {one.since} to' if one.epoch > one.since else 'epoch'} {one.epoch}, over since"
    return f"{title} ({since}): {one.finding[0].lower()}{one.finding[1:]}"


def _over(found: Findings) -> list[str]:
    """The standing causes that are over, except while a spike was open that explains them."""
    spikes = [one.spike for one in found.diagnoses]
    return [
        _standing(one)
        for one in found.standing
        if one.over and not any(one.since <= spike.epoch <= one.epoch + 1 for spike in spikes)
    ]


def _list(texts: Sequence[str]) -> str:
    *most, last = list(texts)
    return f"{', '.join(most)} and {last}" if most else last
