"""No cause explains half of the rise."""

from spikewise.causes.kind import CauseKind, Claim, percent
from spikewise.probes import title
from spikewise.records import Case, Probe
from spikewise.suspects import HALF

UNDECIDED = {
    "before_event": "the event left no trace in the steps after it",
    "few_examples": "without them there would still be an alarm, or the steps were so long that these images suffered first",
    "statistics": "the training loss of the last batches was unusually high, or the loss is still far too high",
    "line": "no step was twice as long as its gradient and the schedule of the learning rate explain",
    "averaged": "gradients were not unusual, or the loss is still far too high",
}
"""Why a probe that removes half of the rise may still not decide."""


def _rule(case: Case) -> Claim | None:  # noqa: ARG001
    return Claim(0.0, 0.0, 0.0, decides=True)


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    changed = [probe for probe in case.probes.values() if probe.name != "path"]  # `path` changes no condition
    best = max(changed, key=lambda probe: probe.fraction, default=None)
    if best is None:
        return "No single changed condition accounts for half of the rise."
    if best.fraction < HALF:
        most = f"most, {percent(best.fraction)}: {title(best.name)}"
        return f"No single changed condition accounts for half of the rise ({most})."
    return (
        f"No single changed condition explains the rise: one ({title(best.name)}) removes {percent(best.fraction)} of it, "
        f"but {_why_not(best)}."
    )


def _why_not(probe: Probe) -> str:
    return "its interval includes 0" if probe.low <= 0 else UNDECIDED.get(probe.name, "other signs of that cause are missing")


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    return "compare code, data and settings of this epoch with those of the epoch before."


CAUSE = CauseKind("unexplained", "unexplained", harms_training=True, rule=_rule, evidence=_evidence, remedy=_remedy)
