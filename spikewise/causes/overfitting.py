"""The network memorizes training images: only the validation images show the rise, on top of an overfitting trend."""

import numpy as np

from spikewise.advice import MOVE, PATIENCE, SHIFT, STOP, shifts, stops
from spikewise.causes.kind import SHARED, CauseKind, Claim, no_step_needed
from spikewise.records import Case
from spikewise.suspects import HALF


def only_validation_rose(case: Case) -> Claim | None:
    """A claim if training images, in inference mode, do not show the rise; None if they do or are not known."""
    training, rise = case.training, case.rise
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
    rise = case.rise
    return f"In inference mode, the loss on training images {did} while that on validation images rose by {rise:.3f}."


def _rule(case: Case) -> Claim | None:
    return only_validation_rose(case) if case.overfitting and not no_step_needed(case)[0] else None


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    return rises(case)


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    best = f"the best epoch (so far {case.overfitting.epoch})" if case.overfitting else "the best epoch"
    ways = [f"keep {best} and stop {PATIENCE} epochs after it"] if not stops(case.hyperparameters) else []
    ways += [f"shift the training images at random by up to {SHIFT} pixels"] if not shifts(case.hyperparameters) else []
    if not ways:
        return "add training images, which no setting does."
    return f"{', or '.join(ways)}; more training images, which no setting adds, help most."


def _settings(case: Case, claim: Claim) -> tuple[str, ...]:  # noqa: ARG001
    now = case.hyperparameters
    return (*(() if stops(now) else (STOP,)), *(() if shifts(now) else (MOVE,)))


CAUSE = CauseKind(
    "overfitting", "overfitting", harms_training=True, rule=_rule, evidence=_evidence, remedy=_remedy, settings=_settings
)
