"""Something happened to the run: an event that its caller reported, or weights that something other than training wrote."""

from typing import NamedTuple

import numpy as np

from spikewise.advice import WARMUP, is_set
from spikewise.causes.kind import CauseKind, Claim, all_images_rose, came_afterwards, claim_from, no_step_needed
from spikewise.records import Case, Diagnosis, Event
from spikewise.steps import JUMP
from spikewise.suspects import HALF

TRACE = 1.5
"""An event left a trace if the steps after it were this many times longer than their gradients explain."""
SYNCHRONIZED = "model.batch_normalization=synchronized"
"""The setting with which BatchNormalization's statistics are those of all workers' images together."""


class _Wording(NamedTuple):
    title: str
    what: str
    remedy: str
    """`{before:g}` and `{after:g}` stand for the values before and after the event."""
    settings: tuple[str, ...] = ()
    """The same as settings, with the same placeholders."""


WORDING = {
    "restart": _Wording(
        "a restart", "The run was restarted", "restore weights, moving statistics, optimizer and position in the data together."
    ),
    "optimizer_reset": _Wording(
        "a lost optimizer state",
        "The optimizer state was lost",
        "restore it together with the weights.",
    ),
    "learning_rate": _Wording(
        "a raised learning rate",
        "The learning rate was changed",
        f"go back to {{before:g}}, or start again and warm up to {{after:g}} over {WARMUP} epochs.",
        ("optimizer.learning_rate={before:g}", f"optimizer.learning_rate={{after:g}} optimizer.warmup_epochs={WARMUP}"),
    ),
    "world_size": _Wording(
        "a changed number of workers",
        "The number of workers was changed",
        "synchronize BatchNorm across workers.",
        (SYNCHRONIZED,),
    ),
    "batch_size": _Wording(
        "a changed batch size",
        "The batch size was changed",
        "go back to a batch of {before:g} images.",
        ("training.batch_size={before:g}",),
    ),
    "data": _Wording("changed training data", "The training data were changed", "compare the new data with the old."),
    "frozen_layers": _Wording(
        "layers frozen or unfrozen",
        "Layers were frozen or unfrozen, and the number of variables that train changed",
        "train the new ones at a learning rate ten times lower, and keep BatchNormalization of a pretrained base frozen (call the "
        "base with training=False).",
    ),
    "loss": _Wording(
        "another loss function",
        "The loss function was changed",
        "compare losses of the same function only: start a new callback, or judge this run from here on.",
    ),
    "optimizer": _Wording(
        "another optimizer",
        "The optimizer was changed",
        f"go back to the one before, or warm the new one up over {WARMUP} epochs: it has no state yet.",
        (f"optimizer.warmup_epochs={WARMUP}",),
    ),
}


def _rule(case: Case) -> Claim | None:
    for event in case.events:
        if event.kind == "loss":  # losses of two functions do not compare, whatever the probes say
            return Claim(1.0, 1.0, 1.0, decides=True, event=event)
    if no_step_needed(case)[0]:  # no reported event caused it
        return claim_from(case.probes["earlier_weights"]) if all_images_rose(case) else None
    if case.training.foreign is not None and case.fraction("bad_batches") < HALF:
        return Claim(
            1.0, 1.0, 1.0, decides=not _elsewhere(case), against="the loss rose at other steps" if _elsewhere(case) else None
        )
    probe = case.probes.get("before_event")
    if probe is None:
        return None
    there = [(number, event) for number, event in enumerate(case.events) if probe.facts["step"] == event.step]
    for number, event in sorted(there, key=lambda pair: _turn(case, *pair)):
        if _left_a_trace(case, event, number):
            return claim_from(probe, event=event)
    return claim_from(probe, unless=[(True, "the event left no trace in the steps after it")], listed=False)


def _elsewhere(case: Case) -> bool:
    """Whether the loss jumped at other steps than those between which the weights moved too far."""
    start, stop, _ = case.training.foreign or (0, 0, 0.0)
    path = case.probes.get("path")
    return path is not None and path.fraction >= HALF and (path.facts["last"] <= start or path.facts["first"] > stop)


def _turn(case: Case, number: int, event: Event) -> int:
    """The order in which events are considered. A raised learning rate leaves its trace on other changes of the same moment, and
    comes first. A change made at a restart leaves the same trace as a restart that lost something, and comes before it; a change
    made in an earlier epoch comes after a restart that lost its statistics."""
    if event.kind == "restart":
        return 2 if case.training.jumps[number] >= JUMP else 4
    if event.epoch != case.spike.epoch:
        return 3
    return 0 if event.raises_rate else 1


def _left_a_trace(case: Case, event: Event, number: int) -> bool:
    """Whether the event changed anything: a restart that restored everything did not."""
    if event.kind == "learning_rate" and event.before and event.after:
        return event.raises_rate
    if np.isnan(case.training.length_after[number]):  # the first epoch that was watched: there is nothing to compare its steps with
        return case.fraction("bad_batches") < HALF
    if case.training.length_after[number] >= TRACE or case.training.jumps[number] >= JUMP:
        return True
    if event.kind == "frozen_layers" and case.fraction("statistics") >= HALF:  # they began to move, or stopped
        return case.fraction("bad_batches") < HALF
    path = case.probes.get("path")
    sudden = path is not None and path.fraction >= HALF and path.facts["first"] <= event.step < path.facts["last"]
    return sudden and event.kind in ("batch_size", "data")


def _evidence(case: Case, claim: Claim) -> str:
    event = claim.event
    if claim.probe == "earlier_weights":
        facts = case.probes[claim.probe].facts
        return (
            f"Evaluated again, the earlier weights have a loss of {facts['today']:.3f}; it was {facts['recorded']:.3f} then. "
            "Training images rose as well, so it is not the validation images that changed."
        )
    if event is None:
        start, stop, excess = case.training.foreign or (0, 0, 0.0)
        return f"Between steps {start} and {stop} the weights moved {excess:.3g} farther than these steps account for."
    values = f" from {event.before:g} to {event.after:g}" if event.before is not None and event.after is not None else ""
    when = f"before step {event.step + 1} of the epoch" if event.epoch == case.spike.epoch else f"in epoch {event.epoch}"
    detail = f" ({event.detail})" if event.detail else ""
    evidence = f"{WORDING[event.kind].what}{values} {when}{detail}"
    if event.kind == "loss":
        return f"{evidence}, so the loss before and after it does not compare."
    evidence += f"; {came_afterwards(case, 'before_event')}"
    number = list(case.events).index(event)
    if (longer := case.training.length_after[number]) >= TRACE:
        evidence += f", with steps up to {longer:.1f} times as long as their gradients explain"
    if (jump := case.training.jumps[number]) >= JUMP:
        evidence += f"; there BatchNorm's moving statistics moved {jump:.0f} times as far as anywhere else in the epoch"
    return f"{evidence}."


def _remedy(case: Case, claim: Claim) -> str:
    if claim.probe == "earlier_weights":
        return "find what changed in the evaluation of all images: the loss function, its weights, regularization, preparation."
    if claim.event is None:
        return "find what else writes the weights: a restore, a callback, another process, faulty memory."
    wording, (before, after) = WORDING[claim.event.kind], _values(claim.event)
    if claim.event.kind == "world_size" and is_set(case.hyperparameters, SYNCHRONIZED):
        return (
            "undo the change." if np.isnan(before) else f"go back to {before:g} workers: their statistics are synchronized already."
        )
    if np.isnan(before) and "{before" in wording.remedy:
        return "undo the change."
    return wording.remedy.format(before=before, after=after)


def _settings(case: Case, claim: Claim) -> tuple[str, ...]:
    if claim.event is None:
        return ()
    before, after = _values(claim.event)
    if claim.event.kind == "world_size" and is_set(case.hyperparameters, SYNCHRONIZED):
        return () if np.isnan(before) else (f"launch.workers={before:g}",)
    found = [line.format(before=before, after=after) for line in WORDING[claim.event.kind].settings]
    return tuple(line for line in found if "nan" not in line)


def _values(event: Event) -> tuple[float, float]:
    """The values before and after; NaN if unknown."""
    before, after = (np.nan if value is None else value for value in (event.before, event.after))
    return before, after


def _specific_title(diagnosis: Diagnosis) -> str | None:
    event = diagnosis.verdict.event
    if event in WORDING:
        return WORDING[event].title
    if event is None and any(probe.name == "earlier_weights" and probe.fraction >= HALF for probe in diagnosis.probes):
        return "another way of evaluating"
    return "weights written from outside" if diagnosis.training.foreign and not event else None


CAUSE = CauseKind(
    "run_event",
    "an event in the run",
    harms_training=True,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
    settings=_settings,
    specific_title=_specific_title,
)
