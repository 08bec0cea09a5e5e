"""Dropout before BatchNormalization gives its statistics another variance in training than in inference."""

from spikewise.causes.kind import TOO_HIGH, CauseKind, Claim, acceptable, claim_from, no_step_needed
from spikewise.records import Case
from spikewise.suspects import HALF


def _rule(case: Case) -> Claim | None:
    probe = case.probes.get("variance_shift")
    if probe is None:
        return None
    # Statistics of changed images also differ from earlier ones; then dropout makes no difference between the two losses of today.
    effect = probe.facts["with_dropout"] - probe.facts["without"]
    none = effect < HALF * case.rise
    return claim_from(
        probe,
        unless=[
            no_step_needed(case),
            (none, f"dropout raises the loss by {max(effect, 0):.3f} only"),
            (not acceptable(case, probe.facts["without"], probe.facts["before"]), TOO_HIGH),
        ],
        listed=effect > 0,
    )


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    facts = case.probes["variance_shift"].facts
    return (
        f"The loss is {facts['with_dropout']:.3f} with statistics estimated with dropout, {facts['without']:.3f} with statistics "
        f"estimated without it, which gave {facts['before']:.3f} before."
    )


def _rate(case: Case) -> str | None:
    """Half of the highest dropout rate; None if it is unknown or there is none."""
    rate = case.hyperparameters.dropout
    return f"{rate / 2:.2g}" if rate > 0 else None  # False for NaN


def _remedy(case: Case, claim: Claim) -> str:
    return f"{_short_remedy(case, claim)}: dropout changes the variance that the statistics measure."


def _short_remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    rate = _rate(case)
    lower = f"lower dropout to {rate}" if rate else "lower the dropout rate"
    return f"re-estimate BatchNormalization's statistics without dropout before evaluating, or {lower}"


def _settings(case: Case, claim: Claim) -> tuple[str, ...]:  # noqa: ARG001
    rate = _rate(case)
    return ("model.statistics=precise", *((f"model.dropout={rate}",) if rate else ()))


CAUSE = CauseKind(
    "variance_shift",
    "dropout before BatchNorm",
    harms_training=False,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
    short_remedy=_short_remedy,
    settings=_settings,
)
