"""BatchNormalization's moving statistics do not fit the weights: they lag behind, or a few batches shocked them, or it is not known
which of both.

Lag is a bias: the weights move faster than the statistics follow, so a lower momentum helps. Shock is a variance: the average holds
too few batches for units that fire rarely, so a higher momentum helps. Re-estimating the statistics removes both; only the sign of
the momentum's effect tells them apart.
"""

from typing import Any

import numpy as np

from spikewise.advice import is_set
from spikewise.causes.kind import CauseKind, Claim, claim_from, no_step_needed, percent, too_high
from spikewise.records import Case, Hyperparameters, Probe
from spikewise.steps import ASTRAY
from spikewise.suspects import HALF

CLEAR = 0.25
"""One momentum is better than the other if it removes more of the rise by at least this fraction."""


def _momentum(case: Case) -> tuple[Probe | None, Probe | None]:
    return case.probes.get("lower_momentum"), case.probes.get("higher_momentum")


def _removes(case: Case, probe: Probe | None) -> float:
    """The fraction of the rise that a momentum removes, but no more than it lowers the loss: statistics that never fit the weights
    do not rise either."""
    if probe is None or not case.rise > 0:
        return 0.0
    lowered: float = (case.spike.loss - probe.facts["now"]) / case.rise
    return max(min(probe.fraction, lowered), 0.0)


def which(case: Case) -> str:
    """What the momenta tell: lag, shock, or statistics if they do not."""
    lower, higher = (_removes(case, probe) for probe in _momentum(case))
    if lower >= HALF and lower - higher >= CLEAR:
        return "lag"
    if higher >= HALF and higher - lower >= CLEAR:
        return "shock"
    return "statistics"


def claim(case: Case) -> Claim | None:
    """The stronger of the two measurements: statistics estimated anew, and the better momentum."""
    probe, (lower, higher) = case.probes.get("statistics"), _momentum(case)
    better = {"lag": lower, "shock": higher, "statistics": None}[which(case)]
    facts = [no_step_needed(case), (case.training.astray >= ASTRAY, "the training loss of the last batches was unusually high")]
    claims = [claim_from(one, unless=[*facts, too_high(case, one)]) for one in (probe, better)]
    return max((claim for claim in claims if claim), key=lambda claim: (claim.decides, claim.fraction), default=None)


def _rule(case: Case) -> Claim | None:
    return claim(case) if which(case) == "statistics" else None


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    tested = [_tested(name, probe) for name, probe in _measured(case).items()]
    evidence = (
        f"With the moving statistics as they are, the loss went from {case.spike.loss - case.rise:.3f} to {case.spike.loss:.3f}; "
        f"with the same weights, {_joined(tested)}."
    )
    if which(case) != "lag" and (mover := _mover(case)):
        batch = f"Batch {mover['step'] + 1} of {case.hyperparameters.steps}"
        evidence += f" {batch} alone makes up more than half of the variance of {_units(mover)}."
    return evidence


def _measured(case: Case) -> dict[str, Probe]:
    """The conditions with other statistics that were measured, by their name in a sentence."""
    found = {}
    for probe in _momentum(case):
        if probe is not None:
            value = probe.facts["momentum"]
            which = "lower" if probe.name == "lower_momentum" else "higher"
            found[f"a {which} momentum" if value is None else f"a momentum of {value:g}"] = probe
    if "statistics" in case.probes:
        dropout = " with dropout" if case.hyperparameters.dropout > 0 else ""  # as in training; model.statistics=precise has none
        found[f"statistics estimated anew{dropout}"] = case.probes["statistics"]
    return found


def _tested(condition: str, probe: Probe) -> str:
    gone = f"{percent(probe.fraction)} of the rise is gone"
    return f"from {probe.facts['before']:.3f} to {probe.facts['now']:.3f} with {condition} ({gone})"


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _mover(case: Case) -> dict[str, Any] | None:
    """The batch that alone makes up most of the most variances."""
    _, higher = _momentum(case)
    movers = higher.facts["movers"] if higher else []
    return movers[0] if movers else None


def _units(mover: dict[str, Any]) -> str:
    """How many units a batch moved, and which, as far as they are listed."""
    count, channels = mover["units"], mover.get("channels", {})
    units = f"{count} units" if count > 1 else "a unit"
    if not channels:
        return units
    listed = [f"{', '.join(map(str, numbers))} of {layer}" for layer, numbers in channels.items()]
    if count > sum(map(len, channels.values())):
        listed.append("...")
    return f"{units} (channel{'s' * (count > 1)} {'; '.join(listed)})"


def _half_life(momentum: float) -> float:
    """Steps until the moving statistics have followed half of a change."""
    return float(np.log(0.5) / np.log(momentum))


def _options(case: Case) -> list[tuple[float, str]]:
    """Loss now and setting of each tried condition that lowers the loss, the lowest first."""
    found = [
        (probe.facts["now"], f"model.momentum={probe.facts['momentum']:g}")
        for probe in _momentum(case)
        if probe is not None and probe.facts["momentum"] is not None and _removes(case, probe) >= HALF
    ]
    if "statistics" in case.probes:
        found.append((case.probes["statistics"].facts["now"], "model.statistics=precise"))
    return sorted(option for option in found if not is_set(case.hyperparameters, option[1]))


def _settings(case: Case, claim: Claim) -> tuple[str, ...]:  # noqa: ARG001
    return tuple(setting for _, setting in _options(case))


def _short_remedy(case: Case, claim: Claim) -> str:
    words = []
    for setting in _settings(case, claim):
        name, _, value = setting.partition("=")
        words.append(
            f"set BatchNormalization's momentum to {value}"
            if name == "model.momentum"
            else "re-estimate BatchNormalization's statistics on training batches before evaluating"
        )
    return ", or ".join(words) or "re-estimate BatchNormalization's statistics on training batches before evaluating"


def _remedy(case: Case, claim: Claim) -> str:
    now = case.hyperparameters
    return f"{_short_remedy(case, claim)}{_reason(which(case), now)}."


def _reason(kind: str, now: Hyperparameters) -> str:
    if kind == "statistics" or not (np.isfinite(now.momentum) and now.steps):
        return ""
    if kind == "lag":
        half = f"{_half_life(now.momentum):.0f} steps to follow half of a change"
        return f" (at {now.momentum:g} the statistics need {half}; an epoch has {now.steps})"
    batches = 1 / (1 - now.momentum)
    return f" (at {now.momentum:g} the statistics average over about {batches:.0f} batches, too few for units that fire rarely)"


CAUSE = CauseKind(
    "batchnorm_statistics",
    "BatchNorm statistics that do not fit the weights",
    harms_training=False,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
    short_remedy=_short_remedy,
    settings=_settings,
)
