"""A few images, at most 2 % of the validation set, cause the rise."""

import numpy as np

from spikewise.causes.kind import CauseKind, Claim, claim_from, training_images_share
from spikewise.records import Case, Diagnosis
from spikewise.steps import LONGER
from spikewise.suspects import HALF, look, suspects

SHOWN = 7
"""Number of images that are named."""


def _rule(case: Case) -> Claim | None:
    probe = case.probes.get("few_examples")
    if probe is None:
        return None
    # Steps that are too long hurt a few images first, unless the images themselves changed.
    changed = case.fraction("earlier_weights") >= HALF
    return claim_from(
        probe,
        unless=[
            (probe.facts["left"] > case.spike.threshold, "without them there would still be an alarm"),
            (case.training.length >= LONGER and not changed, "the steps were so long that these images suffered first"),
            (training_images_share(case, HALF) and not changed, "training images rose as well"),
        ],
    )


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    facts = case.probes["few_examples"].facts
    count = len(facts["images"])
    before, now = (float(np.mean([entry[when] for entry in facts["images"]])) for when in ("before", "now"))
    them, left = "it" if count == 1 else "them", max(facts["left"], 0)
    return (
        f"The loss of {count} of {facts['of']} images went from {before:.2f} to {now:.2f}; "
        f"without {them}, {left:.3f} of the rise remains."
    )


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    images = [entry["image"] for entry in case.probes["few_examples"].facts["images"]]
    one = len(images) == 1
    looks = look(suspects(case))
    if looks == "damaged":
        what = f"{'was' if one else 'were'} replaced, damaged or relabelled since the epoch before"
    elif looks == "mislabelled":
        what = f"{'looks' if one else 'look'} mislabelled"
    else:
        what = "became much harder for the model"
    shown = ", ".join(case.keys[i] if case.keys else f"index {i}" for i in images[:SHOWN])
    shown += f" and {len(images) - SHOWN} more" if len(images) > SHOWN else ""
    return f"look at {'this image' if one else f'these {len(images)} images'}, which {what}: {shown}."


def _specific_title(diagnosis: Diagnosis) -> str | None:
    images = diagnosis.suspects
    if not images:
        return None
    count = f"{len(images):,} image{'s' if len(images) != 1 else ''}"
    what = {"mislabelled": "mislabelled", "damaged": "replaced or damaged"}.get(look(images) or "")
    return f"{count}, probably {what}" if what else count


CAUSE = CauseKind(
    "few_examples",
    "a few images",
    harms_training=False,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
    specific_title=_specific_title,
)
