"""A run's results in memory: the input of its report. `load` reads them from storage.

Shapes: N validation images, K classes, E epochs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikewise.findings import Findings
from spikewise.proof import Experiment
from trainer.epoch import EpochReport


@dataclass(frozen=True, slots=True)
class Trained:
    """A training image of a batch, before augmentation."""

    key: str
    label: int
    """Index into the classes."""
    image: np.ndarray
    """uint8 [H, W, 3]."""


@dataclass(frozen=True)
class EvaluatedTest:
    """The predictions for the T images of the test set, of the same epoch as RunResult.probabilities."""

    groups: list[str]
    """[T]; "" for an image without a group."""
    labels: np.ndarray
    """int [T]."""
    probabilities: np.ndarray
    """float32 [T, K]."""
    losses: np.ndarray
    """float32 [T], nats."""


@dataclass(frozen=True)
class RunResult:
    """Everything a report is made of."""

    run: str
    outcome: str
    """`completed`, `stopped early`, `interrupted`, `failed: <why>`, or `in progress` while no driver has stored how it ended."""
    config: dict[str, Any]
    """The resolved settings, by section."""
    environment: dict[str, str]
    network: dict[str, Any]
    """`name`, and the fields of trainer.engine.facts.NetworkFacts; empty if unknown."""
    classes: tuple[str, ...]
    data: dict[str, Any]
    """The facts of the split, plus `images` (decoded), `manifest` (its digest) and `quarantined`, a list of {key, reason}."""
    history: list[EpochReport]
    epoch: int
    """The epoch whose predictions `probabilities` are."""
    keys: list[str]
    """Of the validation images, [N]."""
    groups: list[str]
    """Of the validation images, [N]; "" for an image without a group."""
    labels: np.ndarray
    """Of the validation images, int [N]."""
    probabilities: np.ndarray
    """float32 [N, K]; NaN where none is known."""
    losses: np.ndarray
    """float32 [E, N], nats. Row i belongs to `history[i]`; NaN if it was not stored."""
    thumbnail: Callable[[int], np.ndarray]
    """Validation index -> uint8 [H, W, 3]."""
    findings: Findings | None = None
    """What the diagnosis has found; None if the run was not diagnosed."""
    test: EvaluatedTest | None = None
    """None without a test set, and until it is evaluated at the end of the run."""
    experiments: Sequence[Experiment] = ()
    """Spikes that were trained again."""
    roll_backs: Sequence[Mapping[str, Any]] = ()
    """The divergences from which the run went back (trainer.run.divergence.roll_back), the oldest first."""
    batch: Callable[[int, int], Sequence[Trained]] | None = None
    """(epoch, batch of that epoch from 0) -> its images; None if training images cannot be looked up."""
