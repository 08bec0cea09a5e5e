"""Training steps were too long."""

from spikewise.causes.kind import CauseKind, Claim, claim_from
from spikewise.records import Case

LONGER = 2.0
"""A step this many times longer than its gradient explains is too long."""


def _rule(case: Case) -> Claim | None:
    return claim_from(case.probes.get("line")) if case.training.length >= LONGER else None


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    facts, training = case.probes["line"].facts, case.training
    return (
        f"Steps were up to {training.length:.1f} times as long as their gradients explain (step {training.length_at + 1}); "
        f"with steps of the usual length the loss would be {facts['losses'][facts['at']]:.3f}."
    )


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    return "lower the learning rate, warm it up, or limit the length of a step."


CAUSE = CauseKind("overshoot", "steps that were too long", harms_training=True, rule=_rule, evidence=_evidence, remedy=_remedy)
