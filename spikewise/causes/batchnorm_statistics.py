"""BatchNormalization's moving statistics lag behind the weights."""

import numpy as np

from spikewise.causes.kind import CauseKind, Claim, claim_from, no_step_needed, percent, too_high
from spikewise.records import Case, Hyperparameters

ASTRAY = 3.0
"""If the training loss of the last batches lies this many standard deviations above the usual one, the weights themselves are to
blame."""
LOWEST = 0.8
"""The lowest momentum that is suggested."""


def _rule(case: Case) -> Claim | None:
    probe = case.probes.get("statistics")
    astray = (case.training.astray >= ASTRAY, "the training loss of the last batches was unusually high")
    return claim_from(probe, unless=[no_step_needed(case), astray, too_high(case, probe)])


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    probe = case.probes["statistics"]
    return (
        f"With moving statistics re-estimated on training batches the loss is {probe.facts['now']:.3f}: "
        f"{percent(probe.fraction)} of the rise disappears."
    )


def _half_life(momentum: float) -> float:
    """Steps until the moving statistics have followed half of a change."""
    return float(np.log(0.5) / np.log(momentum))


def _better(now: Hyperparameters) -> str | None:
    """A lower momentum that suits the epoch; None if the present one is unknown, differs between layers, or is low already."""
    if not (now.momentum > LOWEST and now.steps > 0):  # a momentum of NaN is not above LOWEST
        return None
    return f"{next((m for m in (0.99, 0.97, 0.9) if m < now.momentum and _half_life(m) < now.steps / 5), LOWEST):g}"


def _short_remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    again = "re-estimate BatchNormalization's statistics on training batches before evaluating"
    better = _better(case.hyperparameters)
    return f"{again}, or set its momentum to {better}" if better else again


def _remedy(case: Case, claim: Claim) -> str:
    now, short = case.hyperparameters, _short_remedy(case, claim)
    if not _better(now):
        return f"{short}."
    lag = f"at {now.momentum:g} the statistics need {_half_life(now.momentum):.0f} steps to follow half of a change"
    return f"{short} ({lag}; an epoch has {now.steps})."


def _settings(case: Case, claim: Claim) -> tuple[str, ...]:  # noqa: ARG001
    better = _better(case.hyperparameters)
    return ("model.statistics=precise", *((f"model.momentum={better}",) if better else ()))


CAUSE = CauseKind(
    "batchnorm_statistics",
    "lagging BatchNorm statistics",
    harms_training=False,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
    short_remedy=_short_remedy,
    settings=_settings,
)
