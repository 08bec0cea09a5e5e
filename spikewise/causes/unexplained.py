"""No cause explains half of the rise."""

from collections.abc import Iterable

from spikewise.causes.kind import CauseKind, Claim, percent
from spikewise.probes import title
from spikewise.records import Case
from spikewise.suspects import HALF


def with_reasons(verdict: Claim, claims: Iterable[Claim]) -> Claim:
    """The verdict with the reason why the strongest of the claims based on a probe does not decide."""
    strongest = max((claim for claim in claims if claim.probe), key=lambda claim: claim.fraction, default=None)
    return verdict if strongest is None else verdict._replace(against=strongest.against, probe=strongest.probe)


def _rule(case: Case) -> Claim | None:  # noqa: ARG001
    return Claim(0.0, 0.0, 0.0, decides=True)


def _evidence(case: Case, claim: Claim) -> str:
    changed = [probe for probe in case.probes.values() if probe.name != "path"]  # `path` changes no condition
    best = max(changed, key=lambda probe: probe.fraction, default=None)
    if case.rise <= 0:
        return "The loss lies above the trend, but not above that of the epoch before it, so no changed condition was tried."
    if best is None or (best.name == "few_examples" and len(changed) == 1):
        few = f"; the images that rose most account for {percent(best.fraction)} of the rise" if best else ""
        return f"The weights of the epoch before were not at hand, so no changed condition was tried{few}."
    if best.fraction < HALF:
        most = f"most, {percent(best.fraction)}: {title(best.name)}"
        return f"No single changed condition accounts for half of the rise ({most})."
    against = claim.against if claim.probe == best.name and claim.against else "other signs of that cause are missing"
    return (
        f"No single changed condition explains the rise: one ({title(best.name)}) removes {percent(best.fraction)} of it, "
        f"but {against}."
    )


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    return "compare code, data and settings of this epoch with those of the epoch before."


CAUSE = CauseKind("unexplained", "unexplained", harms_training=True, rule=_rule, evidence=_evidence, remedy=_remedy)
