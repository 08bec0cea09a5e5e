"""Gradient noise: with weights averaged over the epoch, there is no rise."""

from dataclasses import replace

from spikewise.causes.kind import CauseKind, Claim, claim_from, percent, recovers
from spikewise.records import Case

LARGER = 2.0
"""Gradients this many times larger than usual are unusual."""
MENTIONED = 1.5
"""Gradients this many times larger than usual are mentioned."""
STRAIGHT = 0.7
"""Weights oscillate if their path through the epoch is at most this straight."""


def _rule(case: Case) -> Claim | None:
    return _averaged(case, noisy=case.training.gradient >= LARGER)


def _oscillation_rule(case: Case) -> Claim | None:
    # An average contains little of a change that comes late in the epoch, so it would prove nothing.
    path = case.probes.get("path")
    late = path is not None and path.facts["first"] > case.hyperparameters.steps / 2
    return _averaged(case, noisy=case.training.straightness <= STRAIGHT and not late)


def _averaged(case: Case, *, noisy: bool) -> Claim | None:
    probe = case.probes.get("averaged")
    return claim_from(probe, given=noisy and recovers(case, probe)) if probe else None


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    larger = case.training.gradient
    evidence = f"With weights averaged over the epoch, {percent(case.fraction('averaged'))} of the rise disappears"
    return evidence + (f"; gradients were {larger:.1f} times as large as before." if larger >= MENTIONED else ".")


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    batch = case.hyperparameters.batch_size
    larger = f"a batch of {4 * batch} instead of {batch} images" if batch else "a larger batch"
    return f"average the weights, use {larger}, or lower the learning rate."


CAUSE = CauseKind("gradient_noise", "gradient noise", harms_training=True, rule=_rule, evidence=_evidence, remedy=_remedy)
OSCILLATION = replace(CAUSE, rule=_oscillation_rule)
"""Gradients were as large as usual, but the weights oscillate."""
