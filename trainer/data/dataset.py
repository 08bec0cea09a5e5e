"""The immutable values that describe a data set, from its listing to its split.

Shapes: N images, H W C one image, K classes.
"""

from dataclasses import dataclass, field
from typing import Any

from trainer import UserError


class DataError(UserError):
    """The data cannot be trained on; the one-line message names the problem and the fix."""


@dataclass(frozen=True, slots=True)
class Image:
    """One object of the data source."""

    key: str
    """Relative to the source's prefix."""
    size: int
    """Bytes."""
    etag: str
    label: int
    group: str
    """The source photograph. Images of one group stay on one side of the split. Empty: the image has no group."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The labelled listing of a data source, ordered by key."""

    source: str
    classes: tuple[str, ...]
    images: tuple[Image, ...]
    digest: str
    """SHA-256 (hex) of classes and images. Equal digests mean equal data."""
    ignored: int = 0
    """Number of objects below the source that belong to no class."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One Arrow IPC file of packed images (columns image, label, key, group, content)."""

    key: str
    """Key in the run's storage."""
    rows: int
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An image that cannot be used."""

    key: str
    reason: str
    """Why, as a sentence that follows the key."""
    max_pixels: int | None = None
    """The data.max_pixels that the image exceeded; None if it was refused for another reason."""


@dataclass(frozen=True, slots=True)
class Pack:
    """A packed data set, as stored in its commit object `pack.json`."""

    digest: str
    """Digest of the manifest."""
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """H W C."""
    shards: tuple[Shard, ...]
    images: int
    """Total number of rows in the shards."""
    quarantined: tuple[Quarantined, ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """The row numbers of each side, counted over all shards in order, and what the split found."""

    training: tuple[int, ...]
    validation: tuple[int, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    """For report.json: see `trainer.data.index.split`."""
