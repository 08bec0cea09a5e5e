"""The values that cross module borders. Plain and immutable; no module's behaviour lives here.

Shapes: N images, H W C one image, K classes, E epochs.
"""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Image:
    """One object of the data source."""

    key: str
    """Below the source's prefix."""
    size: int
    """Bytes."""
    etag: str
    label: int
    group: str
    """The source photograph; equal groups stay on one side of the split. Empty: the image stands for itself."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the data source held when it was listed, ordered by key."""

    source: str
    classes: tuple[str, ...]
    images: tuple[Image, ...]
    digest: str
    """SHA-256 (hex) over classes and images: the same digest means the same data."""
    ignored: int = 0
    """Objects below the source that belong to no class."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One Arrow IPC file of packed images (columns image, label, key, group, content)."""

    key: str
    """In the run's storage."""
    rows: int
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Pack:
    """A packed data set: what `pack.json`, the pack's commit object, says."""

    digest: str
    """Of the manifest."""
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """H W C."""
    shards: tuple[Shard, ...]
    images: int
    """Rows in all shards together."""
    quarantined: tuple[Quarantined, ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers (over all shards, in order) of each side, and what was found on the way."""

    training: tuple[int, ...]
    validation: tuple[int, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    """For the report: counts by class and side, duplicates, keys under two labels."""


@dataclass(frozen=True, slots=True)
class Task:
    """What every worker is handed."""

    run: str
    settings: dict[str, Any]
    """Config.digestible()."""
    pack: Pack
    split: Split
    mailbox: Any
    """Handle of the actor launch.Mailbox."""
    threads: int
    """TensorFlow's threads for one operation."""


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One epoch, as reported, exported and stored. Losses are mean cross-entropy in nats per image."""

    epoch: int
    """From 1."""
    step: int
    """Updates since the start of the run."""
    train_loss: float
    """As Keras reports it: mean over the epoch's batches, dropout on, weights moving."""
    train_accuracy: float
    train_loss_inference: float
    """Of a fixed sample of training images after the epoch, in inference mode: comparable with `validation_loss`."""
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    gradient_norm: float
    """L2 norm of the global gradient, mean over the epoch's steps."""
    update_norm: float
    """L2 norm of the change that one step makes to the trainable weights, mean over the epoch's steps."""
    images_per_second: float
    """Training only, all workers."""
    input_wait: float
    """Share of the training time that the slowest worker spent waiting for input, 0..1."""
    step_seconds: float
    """Mean duration of one step."""
    seconds: float
    """The whole epoch: training, evaluation, bookkeeping."""
    restarts: int = 0
    """How often the run had been resumed before this epoch ended."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
