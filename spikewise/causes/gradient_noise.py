"""Gradient noise: with weights averaged over the epoch, there is no rise."""

from dataclasses import replace

import numpy as np

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


def _decay(case: Case) -> str | None:
    """The decay of a moving average over about one epoch, as the probe averaged; None if the epoch's steps are unknown."""
    steps = case.hyperparameters.steps
    return f"{1 - float(f'{np.clip(1 / steps, 1e-4, 0.1):.0e}'):g}" if steps else None


def _rate(case: Case) -> str | None:
    """Half of the learning rate; None if it is unknown."""
    rate = case.hyperparameters.learning_rate
    return f"{rate / 2:.2g}" if np.isfinite(rate) else None


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    batch, decay, rate = case.hyperparameters.batch_size, _decay(case), _rate(case)
    average = "average the weights" + (f" with a decay of {decay}" if decay else "")
    larger = f"a batch of {4 * batch} instead of {batch} images" if batch else "a larger batch"
    return f"{average}, use {larger}, or halve the learning rate{f' to {rate}' if rate else ''}."


def _settings(case: Case, claim: Claim) -> tuple[str, ...]:  # noqa: ARG001
    batch, decay, rate = case.hyperparameters.batch_size, _decay(case), _rate(case)
    average = (f"optimizer.ema={decay}",) if decay else ()
    larger = (f"training.batch_size={4 * batch}",) if batch else ()
    return (*average, *larger, *((f"optimizer.learning_rate={rate}",) if rate else ()))


CAUSE = CauseKind(
    "gradient_noise", "gradient noise", harms_training=True, rule=_rule, evidence=_evidence, remedy=_remedy, settings=_settings
)
OSCILLATION = replace(CAUSE, rule=_oscillation_rule)
"""Gradients were as large as usual, but the weights oscillate."""
