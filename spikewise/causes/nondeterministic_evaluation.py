"""The evaluation is at fault: the same weights, evaluated again, have different losses."""

from spikewise.causes.kind import CauseKind, Claim, claim_from
from spikewise.records import Case

ROUNDING = 0.01
"""Rounding on an accelerator explains a mean difference of an image's loss between two evaluations of the same weights up to this
fraction of the rise."""
LARGE = 0.1
"""If the same weights differ by less than this fraction of the rise, what happened to earlier weights has another reason."""


def _rule(case: Case) -> Claim | None:
    again, earlier = case.probes.get("repetition"), case.probes.get("earlier_weights")
    if again is None or earlier is None or again.facts["difference"] < ROUNDING * case.spike.rise:
        return None
    small = again.facts["difference"] < LARGE * case.spike.rise
    return claim_from(again if small else max(again, earlier, key=lambda probe: probe.fraction))


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    difference = case.probes["repetition"].facts["difference"]
    return f"Two evaluations of the same weights differ by {difference:.3f} per image."


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    return "evaluate every validation image once, in inference mode, without augmentation, shuffling or sampling."


CAUSE = CauseKind(
    "nondeterministic_evaluation",
    "an evaluation that is not repeatable",
    harms_training=False,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
)
