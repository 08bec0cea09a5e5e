"""Divergence: the loss is not finite or never recovered, in training mode as well as on the validation images."""

import numpy as np

from spikewise.causes.kind import CauseKind, Claim
from spikewise.records import Case


def _rule(case: Case) -> Claim | None:
    training = case.training
    if case.spike.outcome != "divergence" or training.lost is False:
        return None
    if training.lost is None and training.batch_loss <= training.usual_batch_loss:  # False for NaN
        return None
    return Claim(1.0, 1.0, 1.0, decides=True)


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    what = "The loss has not recovered" if np.isfinite(case.spike.loss) else "The loss is not finite"
    now, usual = case.training.batch_loss, case.training.usual_batch_loss
    if case.training.lost is None or not np.isfinite(usual):
        return f"{what}."
    batches = f"from {usual:.2f} to {now:.2f}" if np.isfinite(now) else f"from {usual:.2f} to a value that is not finite"
    return f"{what}, and the loss of the training batches went {batches}."


def _rate(case: Case) -> str | None:
    """A tenth of the learning rate; None if it is unknown."""
    rate = case.hyperparameters.learning_rate
    return f"{rate / 10:.2g}" if np.isfinite(rate) else None


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    rate = _rate(case)
    lower = f"a learning rate of {rate}" if rate else "a tenth of the learning rate"
    checkpoint = f" from a checkpoint before epoch {case.spike.epoch}" if case.spike.epoch > 1 else ""
    return f"restart{checkpoint} with {lower}."


def _settings(case: Case, claim: Claim) -> tuple[str, ...]:  # noqa: ARG001
    rate = _rate(case)
    return (f"optimizer.learning_rate={rate}",) if rate else ()


CAUSE = CauseKind(
    "divergence",
    "a divergence",
    harms_training=True,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
    settings=_settings,
    advice=lambda diagnoses: diagnoses[0].verdict.remedy.rstrip("."),  # before the first one
)
