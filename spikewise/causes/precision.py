"""Too few bits: in float32 the same weights do not show the rise, or the loss scale of float16 training collapsed."""

from dataclasses import replace

from spikewise.causes.kind import CauseKind, Claim, claim_from, percent, too_high
from spikewise.records import Case

COLLAPSED = 1.0
"""A loss scale below this one no longer keeps small gradients from becoming 0 in float16."""


def _rule(case: Case) -> Claim | None:
    probe = case.probes.get("precision")
    return claim_from(probe, unless=[too_high(case, probe)])


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    facts = case.probes["precision"].facts
    return (
        f"Evaluated in float32, the loss of the same weights is {facts['now']:.3f} (before: {facts['before']:.3f}): "
        f"{percent(case.fraction('precision'))} of the rise disappears."
    )


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    return "evaluate in float32, and look for activations that the lower precision cannot hold (float16 ends at 65,504)."


def _settings(case: Case, claim: Claim) -> tuple[str, ...]:  # noqa: ARG001
    return ("model.precision=float32",)


def _scale_rule(case: Case) -> Claim | None:
    before, now = case.training.loss_scale or (0.0, 0.0)
    return Claim(1.0, 1.0, 1.0, decides=True) if before >= COLLAPSED > now else None


def _scale_evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    before, now = case.training.loss_scale or (0.0, 0.0)
    return f"The loss scale fell from {before:g} to {now:g}, so gradients overflowed in many steps, which then changed nothing."


def _scale_remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    return "train in bfloat16 or float32, or clip gradients."


CAUSE = CauseKind(
    "precision",
    "too low a precision",
    harms_training=False,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
    settings=_settings,
)
LOSS_SCALE = replace(CAUSE, rule=_scale_rule, evidence=_scale_evidence, remedy=_scale_remedy)
"""No probe shows the rise, but the loss scale collapsed. Other causes are considered first."""
