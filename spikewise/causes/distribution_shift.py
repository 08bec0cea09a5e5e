"""The validation images or their preparation changed, or the validation images differ from the training images."""

from dataclasses import replace

from spikewise.causes.kind import CauseKind, Claim, all_images_rose, claim_from
from spikewise.causes.overfitting import only_validation_rose, rises
from spikewise.records import Case, Diagnosis
from spikewise.suspects import HALF


def _rule(case: Case) -> Claim | None:
    return claim_from(
        case.probes.get("earlier_weights"),
        unless=[
            (case.fraction("precision") >= HALF, "in float32 the same weights do not show the rise"),
            (
                all_images_rose(case),
                "training images rose as well: the evaluation of all images changed, such as the loss or their preparation",
            ),
        ],
    )


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    facts = case.probes["earlier_weights"].facts
    return f"Evaluated again, the earlier weights have a loss of {facts['today']:.3f}; it was {facts['recorded']:.3f} then."


def _remedy(case: Case, claim: Claim) -> str:
    return f"{_short_remedy(case, claim)} (size, colors, scaling)."


def _short_remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    return "find what changed in the validation images or their preparation since then"


def _only_validation_rule(case: Case) -> Claim | None:
    return None if case.overfitting else only_validation_rose(case)


def _only_validation_evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    return rises(case)


def _only_validation_remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    return "compare validation with training images: source, camera, compression, class frequencies."


def _specific_title(diagnosis: Diagnosis) -> str | None:
    """If earlier weights have the losses today that they had then, the images did not change."""
    same = any(probe.name == "earlier_weights" and probe.fraction < HALF for probe in diagnosis.probes)
    return "a rise of the validation images alone" if same else None


CAUSE = CauseKind(
    "distribution_shift",
    "a shift of the validation images",
    harms_training=True,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
    short_remedy=_short_remedy,
    specific_title=_specific_title,
)
ONLY_VALIDATION_ROSE = replace(
    CAUSE,
    rule=_only_validation_rule,
    evidence=_only_validation_evidence,
    remedy=_only_validation_remedy,
    short_remedy=None,
)
"""Training images do not show the rise, and there was no overfitting trend before."""
