"""Chance: with another draw of the validation images there might be no rise."""

from dataclasses import replace

import numpy as np

from spikewise.causes.kind import CauseKind, Claim, no_step_needed, percent, training_images_share
from spikewise.detect import CERTAIN, FEW_GROUPS
from spikewise.records import Case, Spike
from spikewise.suspects import HALF

FAR_LONGER = 30.0
"""A step this many times longer than its gradient explains rules chance out."""
MOST = 0.5
"""The highest fraction of the images that should validate."""


def _rule(case: Case) -> Claim | None:
    return None if _from_few_groups(case.spike) or case.training.length >= FAR_LONGER else _chance(case)


def _few_groups_rule(case: Case) -> Claim | None:
    return _chance(case) if _from_few_groups(case.spike) else None


def _from_few_groups(spike: Spike) -> bool:
    return spike.groups is not None and spike.groups < min(FEW_GROUPS, spike.images)


def _chance(case: Case) -> Claim | None:
    """A claim if the rise is within what another draw of the validation images may give, and nothing measured says otherwise:
    training images that share it, to which an accident of the validation draw does not happen; earlier weights that show it today;
    a bad batch; too low a precision. That other statistics remove it says little: the images were unlucky with these weights, and
    most others give them lower losses."""
    spike = case.spike
    if not np.isfinite(spike.error) or spike.rise >= CERTAIN * spike.error or training_images_share(case):
        return None
    if no_step_needed(case)[0]:
        return None
    if any((probe := case.probes.get(name)) is not None and probe.low >= HALF for name in ("bad_batches", "precision")):
        return None
    chance = float(np.clip(1.96 * spike.error / spike.rise, 0, 1))
    return Claim(chance, chance, chance, decides=True)


def _drawn(spike: Spike) -> tuple[int, str]:
    """What a draw consists of: how many units, and what they are."""
    if spike.groups is not None and spike.groups < spike.images:
        return spike.groups, "groups of validation images"
    return spike.images, "validation images"


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    spike = case.spike
    count, what = _drawn(spike)
    evidence = f"With another draw of {count} {what}, the rise could lie between {spike.low:.3f} and {spike.high:.3f}"
    if spike.group is not None and spike.group_fraction >= HALF:
        evidence += f"; {percent(spike.group_fraction)} of it comes from the images of {spike.group}"
    if spike.low > 0:
        evidence += f"; the rise is {spike.rise / spike.error:.1f} standard errors, and chance alone produces {CERTAIN} "
        evidence += "in one of 20 runs of 100 epochs"
    return f"{evidence}."


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    spike = case.spike
    count, what = _drawn(spike)
    if _from_few_groups(spike):
        return f"use at least {FEW_GROUPS} {what}: with only {count}, a single group can move the mean."
    return f"use about {_needed(spike):,} {what} instead of {count:,}: then a rise of {spike.rise:.3f} would be more than chance."


def _needed(spike: Spike) -> int:
    """How many units a draw should consist of, so that the rise would be more than chance."""
    if _from_few_groups(spike):  # too few to estimate how many would do
        return FEW_GROUPS
    return int(10 * np.ceil(_drawn(spike)[0] * (CERTAIN * spike.error / spike.rise) ** 2 / 10))


def _settings(case: Case, claim: Claim) -> tuple[str, ...]:  # noqa: ARG001
    # The fraction that gives as many images as the remedy asks for. Where that is most of them, only more images help.
    fraction = case.hyperparameters.validation_fraction * _needed(case.spike) / _drawn(case.spike)[0]
    return (f"data.validation_fraction={np.ceil(100 * fraction) / 100:g}",) if fraction <= MOST else ()


CAUSE = CauseKind(
    "sampling_noise",
    "chance, with so few validation images",
    harms_training=False,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
    settings=_settings,
)
FEW_GROUPS_ONLY = replace(CAUSE, rule=_few_groups_rule)
"""The validation images come from so few groups that almost any rise could be chance. Other causes are considered first."""
