"""What the validation loss is made of, as text: for the log, the report and the callback's summary. Pure: values in, text out."""

import textwrap
from collections.abc import Sequence

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


def explained(found: Findings, epochs: int, course: Course | None = None, further: Sequence[str] = ()) -> list[str]:
    """What happened to the validation loss in `epochs` epochs, in sentences. The most important one comes first: a standing cause,
    or else the spikes. `further`: sentences about the spikes."""
    spikes = [*describe.sentences(found.diagnoses, found.overfitting, epochs, course), *further]
    made = sentences(found.parts, found.standing)
    return [*made, *spikes] if any(not one.over for one in found.standing) else [*spikes, *made]


def sentences(parts: Sequence[Parts], standing: Sequence[Standing]) -> list[str]:
    """The standing causes with their remedies, what the last measured loss is made of, and what makes it jump. Empty if nothing was
    measured."""
    return [*(_standing(one) for one in standing if not one.over), *made_of(parts), *jumps(parts)]


def made_of(parts: Sequence[Parts]) -> list[str]:
    """What the last measured loss is made of, in a sentence; empty without one."""
    if not parts or not np.isfinite(parts[-1].loss):
        return []
    now = parts[-1]
    errors = dict(zip(PARTS, now.errors, strict=True))
    named = [name for name in TITLES if abs(getattr(now, name)) > max(NAMED * abs(now.loss), CERTAIN * errors[name])]
    amounts = [f"{getattr(now, name):.3f} is {TITLES[name]}" for name in sorted(named, key=lambda name: -getattr(now, name))]
    return [f"Of the validation loss of {now.loss:.3f} in epoch {now.epoch}, {_list(amounts)}."] if amounts else []


def jumps(parts: Sequence[Parts]) -> list[str]:
    """What the changes of the loss from one measured epoch to the next consist of, in a sentence; empty if it hardly changes."""
    finite = [one for one in parts if np.isfinite(one.loss)]
    found = shares(finite)
    if found is None:
        return []
    losses = np.array([one.loss for one in finite])
    if np.sqrt(np.mean(np.diff(losses) ** 2)) < JUMPS * np.median(losses):
        return []
    named = sorted((name for name in found if found[name] > NAMED), key=lambda name: -found[name])
    if not named:
        return []
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
    return f"{title} ({since}): {one.finding[0].lower()}{one.finding[1:]} Fix: {one.remedy}"


def _list(texts: Sequence[str]) -> str:
    *most, last = list(texts)
    return f"{', '.join(most)} and {last}" if most else last
