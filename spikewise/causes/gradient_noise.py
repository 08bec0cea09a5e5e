"""Gradient noise: with weights averaged over the epoch, there is no rise."""

from dataclasses import replace

from spikewise import advice
from spikewise.causes import batchnorm_statistics
from spikewise.causes.kind import CauseKind, Claim, Fact, claim_from, no_step_needed, percent, too_high
from spikewise.records import Case

LARGER = 2.0
"""Gradients this many times larger than usual are unusual."""
MENTIONED = 1.5
"""Gradients this many times larger than usual are mentioned."""
ADDS = 0.25
"""Averaging the weights must remove more of the rise, by this fraction of it, than estimating the statistics anew does alone."""
STRAIGHT = 0.7
"""Weights oscillate if their path through the epoch is at most this straight."""


def _rule(case: Case) -> Claim | None:
    return _averaged(case, noisy=case.training.gradient >= LARGER)


def _oscillation_rule(case: Case) -> Claim | None:
    return _averaged(case, noisy=case.training.straightness <= STRAIGHT and not _late(case))


def _late(case: Case) -> bool:
    """Whether the rise came in the second half of the epoch. An average contains little of so late a change, and proves nothing."""
    path = case.probes.get("path")
    return path is not None and path.facts["first"] > case.hyperparameters.steps / 2


def _averaged(case: Case, *, noisy: bool) -> Claim | None:
    probe = case.probes.get("averaged")
    why = "the rise came too late for an average over the epoch to show it" if _late(case) else "the weights did not oscillate"
    facts = [no_step_needed(case), too_high(case, probe), _statistics_do_it(case)]
    return claim_from(probe, unless=[*facts, (not noisy, f"gradients were not unusual, and {why}")])


def _statistics_do_it(case: Case) -> Fact:
    """The fact that the weights as they are show no rise with statistics estimated anew. Averaged weights have such statistics too,
    so their average proves nothing then."""
    alone = batchnorm_statistics.claim(case)
    enough = alone is not None and alone.decides and alone.fraction > case.fraction("averaged") - ADDS
    return enough, "other statistics alone remove as much, with the weights as they are"


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    larger, facts = case.training.gradient, case.probes["averaged"].facts
    evidence = (
        f"With weights averaged over the epoch, the loss went from {facts['before']:.3f} to {facts['now']:.3f}: "
        f"{percent(case.fraction('averaged'))} of the rise disappears"
    )
    return evidence + (f"; gradients were {larger:.1f} times as large as before." if larger >= MENTIONED else ".")


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    now = case.hyperparameters
    batch, decay, rate = now.batch_size, advice.decay(now), advice.half_rate(now)
    average = "average the weights" + (f" with a decay of {decay}" if decay else "")
    larger = f"use a batch of {4 * batch} instead of {batch} images" if batch else "use a larger batch"
    halve = f"halve the learning rate{f' to {rate}' if rate else ''}"
    if advice.averages(now):
        return f"{larger}, or {halve}."
    return f"{average}, {larger}, or {halve}."


def _settings(case: Case, claim: Claim) -> tuple[str, ...]:  # noqa: ARG001
    now = case.hyperparameters
    batch, decay, rate = now.batch_size, advice.decay(now), advice.half_rate(now)
    average = (f"optimizer.ema={decay}",) if decay and not advice.averages(now) else ()
    larger = (f"training.batch_size={4 * batch}",) if batch else ()
    return (*average, *larger, *((f"optimizer.learning_rate={rate}",) if rate else ()))


CAUSE = CauseKind(
    "gradient_noise", "gradient noise", harms_training=True, rule=_rule, evidence=_evidence, remedy=_remedy, settings=_settings
)
OSCILLATION = replace(CAUSE, rule=_oscillation_rule)
"""Gradients were as large as usual, but the weights oscillate."""
