"""The values of a data set on its way from a listing to a split. Plain and immutable.

Shapes: N images, H W C one image, K classes.
"""

from dataclasses import dataclass, field
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
