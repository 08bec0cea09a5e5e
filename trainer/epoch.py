"""The summary of one epoch, and which epoch of a run is the best."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class EpochReport:
    """The results of one epoch, as printed, exported and stored. Losses are the mean cross-entropy in nats per image."""

    epoch: int
    """Counted from 1."""
    step: int
    """Updates since the start of the run."""
    train_loss: float
    """Mean over the epoch's batches, in training mode, while the weights change; without regularization, label smoothing and class
    weights."""
    train_accuracy: float
    train_loss_inference: float
    """Loss of a fixed sample of training images after the epoch, in inference mode: comparable with `validation_loss`."""
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    gradient_norm: float
    """L2 norm of the global gradient, mean over the epoch's steps."""
    update_norm: float
    """L2 norm of one step's change of the trainable weights, mean over the epoch's steps."""
    images_per_second: float
    """Training throughput of all workers together, without evaluation."""
    input_wait: float
    """Fraction of the training time that the slowest worker waited for input, 0..1."""
    step_seconds: float
    """Mean duration of one step."""
    seconds: float
    """Duration of the whole epoch: training, evaluation and bookkeeping."""
    regularization: float = 0.0
    """What the network adds to the training loss, such as L2 terms, mean over the epoch's steps; not part of `train_loss`."""
    restarts: int = 0
    """How often the run had been resumed before this epoch ended."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def best(history: Iterable[EpochReport]) -> EpochReport | None:
    """The epoch with the lowest finite validation loss, the earlier of equal ones; None if no loss is finite."""
    finite = [report for report in history if math.isfinite(report.validation_loss)]
    return min(finite, key=lambda report: (report.validation_loss, report.epoch), default=None)
