"""Adam's second moments are too small for the gradients: they were lost, or decayed while gradients were small.

Adam divides the mean gradient by the root of the mean squared gradient, so it moves each weight by at most about one learning rate
(Kingma & Ba 2015). A step moves the weights farther only where the second moment does not contain the recent gradients.
"""

from spikewise.advice import WARMUP
from spikewise.causes.kind import CauseKind, Claim, claim_from, no_step_needed
from spikewise.causes.overshoot import loss_at
from spikewise.records import Case
from spikewise.steps import LONGER

FULL = 1.5
"""A step moves the weights by less than this many learning rates (root mean square) if the second moments contain its gradients:
about 0.1 in ordinary training, 1 right after a start, 0.7 with a dropout rate of 0.9, whose gradients are sparse."""
FASTER = 0.99
"""Decay of the second moments that is suggested."""


def _rule(case: Case) -> Claim | None:
    training = case.training
    if not (training.stride >= FULL and training.stride >= LONGER * training.usual_stride):  # False for NaN
        return None
    return claim_from(
        case.probes.get("line"),
        unless=[
            no_step_needed(case),
            (training.length < LONGER, "no step was twice as long as its gradient explains"),
            (training.raised >= LONGER, "the learning rate had risen at once"),
        ],
    )


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    training, facts = case.training, case.probes["line"].facts
    return (
        f"Step {training.stride_at + 1} moved the weights by {training.stride:.2g} learning rates each (usual: "
        f"{training.usual_stride:.2g}), so Adam's second moments were smaller than the squared gradients; with steps of the usual "
        f"length the loss would have gone from {loss_at(facts, 0.0):.3f} to {loss_at(facts, facts['at']):.3f}."
    )


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    beta = case.hyperparameters.beta_2
    decay = f"lower Adam's beta_2 from {beta:g} to {FASTER:g}" if beta > FASTER else "raise Adam's epsilon to 1e-4"
    return f"restore the optimizer together with the weights, {decay}, or warm up over {WARMUP} epochs after each start."


def _settings(case: Case, claim: Claim) -> tuple[str, ...]:  # noqa: ARG001
    faster = case.hyperparameters.beta_2 > FASTER
    return (
        f"optimizer.arguments.beta_2={FASTER:g}" if faster else "optimizer.arguments.epsilon=1e-4",
        f"optimizer.warmup_epochs={WARMUP}",
    )


CAUSE = CauseKind(
    "stale_optimizer_state",
    "a stale optimizer state",
    harms_training=True,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
    settings=_settings,
)
