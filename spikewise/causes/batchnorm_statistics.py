"""BatchNormalization's moving statistics lag behind the weights."""

import numpy as np

from spikewise.causes.kind import CauseKind, Claim, claim_from, percent, recovers
from spikewise.records import Case, Hyperparameters

ASTRAY = 3.0
"""If the training loss of the last batches lies this many standard deviations above the usual one, the weights themselves are to
blame."""
LOWEST = 0.8
"""The lowest momentum that is suggested."""


def _rule(case: Case) -> Claim | None:
    probe = case.probes.get("statistics")
    return claim_from(probe, given=case.training.astray < ASTRAY and recovers(case, probe)) if probe else None


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    probe = case.probes["statistics"]
    return (
        f"With moving statistics re-estimated on training batches the loss is {probe.facts['now']:.3f}: "
        f"{percent(probe.fraction)} of the rise disappears."
    )


def _half_life(momentum: float) -> float:
    """Steps until the moving statistics have followed half of a change."""
    return float(np.log(0.5) / np.log(momentum))


def _adjustable(hyperparameters: Hyperparameters) -> bool:
    """Whether the momentum is known and can be lowered."""
    return hyperparameters.momentum > LOWEST and hyperparameters.steps > 0  # False for a momentum of NaN


def _short_remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    now = case.hyperparameters
    if not _adjustable(now):
        return "lower BatchNormalization's momentum, or re-estimate its statistics before evaluating"
    better = next((m for m in (0.99, 0.97, 0.9) if m < now.momentum and _half_life(m) < now.steps / 5), LOWEST)
    return f"set BatchNormalization's momentum to {better:g}"


def _remedy(case: Case, claim: Claim) -> str:
    now, short = case.hyperparameters, _short_remedy(case, claim)
    if not _adjustable(now):
        return f"{short}."
    lag = f"at {now.momentum:g} the statistics need {_half_life(now.momentum):.0f} steps to follow half of a change"
    return f"{short} ({lag}; an epoch has {now.steps})."


CAUSE = CauseKind(
    "batchnorm_statistics",
    "lagging BatchNorm statistics",
    harms_training=False,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
    short_remedy=_short_remedy,
)
