"""What the validation loss is made of: four parts for each epoch, which add up to it. Pure NumPy.

With "clean" for moving statistics estimated anew on training images, and "averaged" for weights averaged over the epoch:

    validation loss = [validation - validation, clean]                          statistics
                    + [validation, clean - validation, clean and averaged]      wandering
                    + [validation - training, both clean and averaged]          generalization
                    + training, clean and averaged                              fit

Measuring them takes a few passes over fixed subsets of the images, so `Budget` decides in which epochs that is done.

Shapes: v validation images of the subset, t training images, k measured epochs.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

PARTS = ("statistics", "wandering", "generalization", "fit")
TITLES = {
    "statistics": "what BatchNorm's moving statistics add",
    "wandering": "what the last steps' to and fro adds",
    "generalization": "what does not carry over to unseen images",
    "fit": "what the network has not learned",
}
"""Each part for people."""
BUDGET = 0.05
"""Fraction of the training time that measuring the parts, and probes of rises that are no spikes, may take."""
FORWARD = 1 / 3
"""Time of a forward pass as a fraction of a training step on the same images."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one epoch's validation loss, in nats per image; their sum is `loss`."""

    epoch: int
    loss: float
    """The mean over all validation images."""
    statistics: float
    """What BatchNormalization's moving averages add: the loss with them minus that with statistics estimated anew. May be
    negative."""
    wandering: float
    """What the last steps' to and fro adds: the loss of the weights at the end minus that of their average over the epoch."""
    generalization: float
    """What does not carry over from training images to unseen ones."""
    fit: float
    """The loss of training images, in inference mode, with averaged weights and statistics estimated anew."""
    errors: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Standard errors of the four parts over other draws of the images."""
    training: float = float("nan")
    """Mean loss of the epoch's batches in training mode, for comparison."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def parts_from(values: dict[str, Any]) -> Parts:
    """The inverse of `Parts.as_dict`, also after a round trip through JSON."""
    return Parts(**{**values, "errors": tuple(values["errors"])})


def parts(
    epoch: int, loss: float, raw: np.ndarray, clean: np.ndarray, averaged: np.ndarray, sample: np.ndarray, training: float
) -> Parts:
    """The parts of an epoch. Losses of the same v validation images: `raw` [v] as the run evaluates them, `clean` [v], and
    `averaged` [v], which is clean too. `sample` [t]: losses of training images, clean and averaged. `training`: mean loss of the
    epoch's batches."""
    statistics, wandering, fit = float(np.mean(raw - clean)), float(np.mean(clean - averaged)), float(np.mean(sample))
    rest = loss - float(np.mean(raw))  # of the images outside the subset; it is not known which part it belongs to
    generalization = float(np.sqrt(_error(averaged) ** 2 + _error(sample) ** 2 + rest**2))
    errors = [_error(raw - clean), _error(clean - averaged), generalization, _error(sample)]
    return Parts(epoch, loss, statistics, wandering, loss - statistics - wandering - fit, fit, tuple(errors), training)  # type: ignore[arg-type]


def _error(values: np.ndarray) -> float:
    return float(np.std(values) / np.sqrt(max(len(values), 1)))


def shares(measured: Sequence[Parts]) -> dict[str, float] | None:
    """The fraction that each part has in the changes of the loss from one measured epoch to the next: its covariance with them over
    their variance; the four add up to 1. None with fewer than 4 epochs, or if the loss did not change."""
    if len(measured) < 4:
        return None
    changes = np.diff([one.loss for one in measured])
    variance = float(np.mean(changes**2))
    if not np.isfinite(variance) or variance <= 0:
        return None
    return {name: float(np.mean(changes * np.diff([getattr(one, name) for one in measured])) / variance) for name in PARTS}


class Sizes(NamedTuple):
    """How many images a measurement uses."""

    statistics: int
    """Training images that statistics are estimated on, twice."""
    losses: int
    """Validation images, evaluated twice, and training images, evaluated once."""

    @property
    def cost(self) -> float:
        """In training images."""
        return FORWARD * (2 * self.statistics + 3 * self.losses)


def sizes(images: int) -> Sizes:
    """The sizes that suit an epoch of so many training images."""
    return Sizes(int(np.clip(images // 16, 128, 512)), int(np.clip(images // 16, 96, 384)))


class Budget:
    """Decides in which epochs the parts are measured, within a fraction of the training time.

    Time is counted in training images, so that the decision depends neither on the machine nor on the number of workers. Every
    epoch earns its part; what is not spent is saved for up to two measurements. The second one is kept for an epoch in which the
    loss moves. Two more may be made on credit where it is urgent.
    """

    def __init__(self, fraction: float = BUDGET) -> None:
        self.fraction = fraction
        self.saved: float | None = None
        """In training images; None before the first epoch."""

    def due(self, images: int, *, moved: bool, urgent: bool = False, always: bool = False) -> bool:
        """Whether to measure the epoch that has just ended, with `images` trained. `moved`: whether its loss is unusual. `urgent`:
        whether the user should not wait for an explanation. `always`: a spike or the last epoch, which are not counted."""
        if self.fraction <= 0:
            return False
        cost = sizes(images).cost
        saved = (cost if self.saved is None else self.saved) + self.fraction * images
        first = self.saved is None
        self.saved = min(saved, 2 * cost)
        if always:
            return True
        if urgent and self.saved > -cost:
            self.saved -= cost
            return True
        if self.saved < cost or not (first or moved or self.saved >= 2 * cost or self.fraction * images >= cost):
            return False
        self.saved -= cost
        return True

    def charge(self, images: int) -> None:
        """Takes forward passes over so many images beside a measurement off what is saved."""
        self.saved = (self.saved or 0.0) - FORWARD * images
