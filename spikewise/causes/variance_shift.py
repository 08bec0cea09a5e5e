"""Dropout before BatchNormalization gives its statistics another variance in training than in inference."""

from spikewise.causes.kind import CauseKind, Claim, claim_from
from spikewise.records import Case


def _rule(case: Case) -> Claim | None:
    return claim_from(case.probes.get("variance_shift"))


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    facts = case.probes["variance_shift"].facts
    return (
        f"The loss is {facts['without']:.3f} with statistics estimated without dropout, {facts['with_dropout']:.3f} with dropout."
    )


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    return "move dropout after the last BatchNormalization or lower its rate: it changes the variance that the statistics measure."


CAUSE = CauseKind(
    "variance_shift", "dropout before BatchNorm", harms_training=False, rule=_rule, evidence=_evidence, remedy=_remedy
)
