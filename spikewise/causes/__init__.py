"""Ranks the causes of a spike. Pure: a case with its probe results in, causes out.

Owns the precedence of the causes; each module beside this one owns one cause. The verdict is the first kind in PRECEDENCE whose
claim decides; the other causes follow in order of their fraction of the rise. What changed in this epoch comes before the mechanism
through which it acted: with steps ten times as long, BatchNormalization's statistics lag behind the weights, and re-estimating them
removes most of the rise; yet the steps are the cause.

A claim based on a probe decides if the probe removes at least half of the rise, its 95 % interval, its own noise included, lies
above 0, and no measured fact contradicts the cause. Each rule names the facts that do; a claim that removes half of the rise and
does not decide says in its evidence which fact that was.

To add a cause, write a module like those beside this one, put its CAUSE into PRECEDENCE, and describe it in the table of
docs/diagnosis.md (a test compares the table with PRECEDENCE).
"""

from spikewise.advice import is_set
from spikewise.causes import (
    bad_batch,
    batchnorm_lag,
    batchnorm_shock,
    batchnorm_statistics,
    distribution_shift,
    divergence,
    few_examples,
    gradient_noise,
    nondeterministic_evaluation,
    overconfidence,
    overfitting,
    overshoot,
    precision,
    run_event,
    sampling_noise,
    stale_optimizer_state,
    training_data_changed,
    unexplained,
    variance_shift,
)
from spikewise.causes.kind import CauseKind, Claim
from spikewise.records import Case, Cause
from spikewise.suspects import HALF

PRECEDENCE: tuple[CauseKind, ...] = (
    divergence.CAUSE,
    nondeterministic_evaluation.CAUSE,
    precision.CAUSE,
    run_event.CAUSE,
    few_examples.CAUSE,
    sampling_noise.CAUSE,
    distribution_shift.CAUSE,
    training_data_changed.CAUSE,
    bad_batch.CAUSE,
    stale_optimizer_state.CAUSE,
    batchnorm_shock.CAUSE,
    variance_shift.CAUSE,
    overshoot.CAUSE,
    gradient_noise.CAUSE,
    batchnorm_shock.MOMENTUM_ONLY,
    batchnorm_lag.CAUSE,
    batchnorm_statistics.CAUSE,
    gradient_noise.OSCILLATION,
    sampling_noise.FEW_GROUPS_ONLY,
    overconfidence.CAUSE,
    overfitting.CAUSE,
    distribution_shift.ONLY_VALIDATION_ROSE,
    precision.LOSS_SCALE,
    unexplained.CAUSE,
)
"""All kinds of causes, in order of precedence. A cause with two rules is listed twice, under the same name."""

NAMES: tuple[str, ...] = tuple(dict.fromkeys(kind.name for kind in PRECEDENCE))
"""The names of all causes, in the order of their first place in PRECEDENCE."""

LISTED = 0.1
"""Causes other than the verdict are listed if they explain at least this fraction of the rise."""


def attribute(case: Case) -> tuple[Cause, ...]:
    """The ranked causes of a spike, the verdict first; never empty."""
    claims = [(kind, claim) for kind in PRECEDENCE if (claim := kind.rule(case)) is not None]
    first, verdict = next((kind, claim) for kind, claim in claims if claim.decides)
    if first is unexplained.CAUSE:
        verdict = unexplained.with_reasons(verdict, (claim for _, claim in claims))
    ranked = {first.name: (first, verdict)}
    if verdict.event is not None and verdict.event.kind == "loss":
        claims = []  # every probe compares losses of two functions
    for kind, claim in sorted(claims, key=lambda pair: (-pair[1].fraction, not pair[1].decides)):
        if claim.fraction >= LISTED and claim.listed:
            ranked.setdefault(kind.name, (kind, claim))
    now = case.hyperparameters
    return tuple(
        Cause(
            kind.name,
            claim.fraction,
            claim.low,
            claim.high,
            evidence=_evidence(kind, case, claim),
            remedy=kind.remedy(case, claim),
            event=claim.event.kind if claim.event else None,
            short_remedy=kind.short_remedy(case, claim) if kind.short_remedy else None,
            settings=tuple(line for line in kind.settings(case, claim) if not all(is_set(now, one) for one in line.split())),
        )
        for kind, claim in ranked.values()
    )


def _evidence(kind: CauseKind, case: Case, claim: Claim) -> str:
    """The sentence of evidence, with the fact that speaks against a claim that explains half of the rise and does not decide."""
    evidence = kind.evidence(case, claim)
    if claim.decides or claim.against is None or claim.fraction < HALF:
        return evidence
    return f"{evidence.removesuffix('.')}; it is not the verdict, because {claim.against}."


def kind_of(name: str) -> CauseKind | None:
    """The kind with this name, or None: results of another version may name other causes."""
    return next((kind for kind in PRECEDENCE if kind.name == name), None)
