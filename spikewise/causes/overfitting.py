"""The network memorizes training images: only the validation images show the rise, on top of an overfitting trend."""

import numpy as np

from spikewise.causes.kind import CauseKind, Claim
from spikewise.records import Case
from spikewise.suspects import HALF

SHARED = 0.2
"""If the training images rise by at most this fraction of the validation rise, they do not share it."""
PATIENCE = 10
"""Epochs without a better one after which to stop, as suggested."""
SHIFT = 4
"""Pixels by which to shift training images, as suggested."""


def only_validation_rose(case: Case) -> Claim | None:
    """A claim if training images, in inference mode, do not show the rise; None if they do or are not known."""
    training, rise = case.training, _validation_rise(case)
    if rise < HALF * case.spike.rise:  # most of the rise happened before the epoch that training images are compared with
        return None
    shared = training.train_rise / rise
    if not np.isfinite(training.train_loss) or shared > SHARED or training.train_rise > 0.1 * max(training.train_loss, 0.05):
        return None
    fraction = float(np.clip(1 - shared, 0, 1))
    return Claim(fraction, fraction, fraction, decides=True)


def rises(case: Case) -> str:
    """A sentence with the rise on training images and that on validation images."""
    change = case.training.train_rise
    did = f"rose by {change:.3f}" if change > 0 else f"fell by {-change:.3f}"
    rise = _validation_rise(case)
    return f"In inference mode, the loss on training images {did} while that on validation images rose by {rise:.3f}."


def _validation_rise(case: Case) -> float:
    rise = case.training.validation_rise
    return case.spike.rise if rise is None else rise


def _rule(case: Case) -> Claim | None:
    return only_validation_rose(case) if case.overfitting else None


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    return rises(case)


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    best = f"the best epoch (so far {case.overfitting.epoch})" if case.overfitting else "the best epoch"
    return (
        f"keep {best} and stop {PATIENCE} epochs after it, or shift the training images at random by up to {SHIFT} pixels; "
        "more training images, which no setting adds, help most."
    )


def _settings(case: Case, claim: Claim) -> tuple[str, ...]:  # noqa: ARG001
    return (f"training.keep=best training.early_stopping={PATIENCE}", f"augmentation.shift={SHIFT}")


CAUSE = CauseKind(
    "overfitting", "overfitting", harms_training=True, rule=_rule, evidence=_evidence, remedy=_remedy, settings=_settings
)
