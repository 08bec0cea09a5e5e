"""Training steps were too long.

A step is judged by its length per unit of its own learning rate, so that warm-up, cosine and step schedules are no overshoot. A
learning rate that rises abruptly makes the steps too long (steps.raised).
"""

from typing import Any

import numpy as np

from spikewise.advice import WARMUP
from spikewise.causes.kind import CauseKind, Claim, claim_from, no_step_needed
from spikewise.records import Case
from spikewise.steps import LONGER


def _rule(case: Case) -> Claim | None:
    usual = case.training.length < LONGER
    unless = [
        no_step_needed(case),
        (usual, "no step was twice as long as its gradient and the schedule of the learning rate explain"),
    ]
    return claim_from(case.probes.get("line"), unless=unless, listed=not usual)


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    facts, training = case.probes["line"].facts, case.training
    rose = f", where the learning rate had risen {training.raised:.3g}-fold at once" if training.raised >= LONGER else ""
    before, usual = loss_at(facts, 0.0), loss_at(facts, facts["at"])
    return (
        f"Steps were up to {training.length:.1f} times as long as their gradients explain (step {training.length_at + 1}{rose}); "
        f"with steps of the usual length the loss would have gone from {before:.3f} to {usual:.3f}."
    )


def loss_at(facts: dict[str, Any], at: float) -> float:
    """The loss at this part of the way from the earlier weights to the current ones. JSON turns the keys into text."""
    return next(float(loss) for part, loss in facts["losses"].items() if float(part) == at)


def _rate(case: Case) -> str | None:
    """The learning rate that would have made the longest step as long as usual, but at least a tenth; None if it is unknown."""
    rate = case.hyperparameters.learning_rate / np.clip(case.training.length, LONGER, 10)
    return f"{rate:.2g}" if np.isfinite(rate) else None


def _norm(case: Case) -> str | None:
    """The gradient norm to clip at; None if it is unknown, if the steps were long although gradients were as usual, or if the run
    clips at it already."""
    norm, clipped = case.training.ordinary_gradient, case.hyperparameters.settings.get("optimizer.clip_norm") or np.inf
    return f"{norm:.2g}" if norm > 0 and case.training.raised < LONGER and norm < clipped else None  # False for NaN


def _remedy(case: Case, claim: Claim) -> str:
    norm = _norm(case)
    clip = f", or clip gradients at a norm of {norm} (95 % of the earlier ones stayed below)" if norm else ""
    return f"{_lower(case, claim)}{clip}."


def _short_remedy(case: Case, claim: Claim) -> str:
    norm = _norm(case)
    return f"{_lower(case, claim)}{f', or clip gradients at a norm of {norm}' if norm else ''}"


def _lower(case: Case, claim: Claim) -> str:  # noqa: ARG001
    rate = _rate(case)
    return f"lower the learning rate{f' to {rate}' if rate else ''} and warm it up over {WARMUP} epochs"


def _settings(case: Case, claim: Claim) -> tuple[str, ...]:  # noqa: ARG001
    rate, norm = _rate(case), _norm(case)
    lower = (f"optimizer.learning_rate={rate} optimizer.warmup_epochs={WARMUP}",) if rate else ()
    return (*lower, *((f"optimizer.clip_norm={norm}",) if norm else ()))


CAUSE = CauseKind(
    "overshoot",
    "steps that were too long",
    harms_training=True,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
    short_remedy=_short_remedy,
    settings=_settings,
)
