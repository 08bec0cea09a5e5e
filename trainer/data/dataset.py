"""The immutable values that describe a data set, from its listing to its split.

Shapes: N images, H W C one image, K classes.
"""

from dataclasses import dataclass, field
from typing import Any

from trainer import UserError

PIXELS_VERSION = 2
"""Part of a data set's digest, to be raised with every change of decode.py that changes pixels: packs of another version are not
used for new runs, and a run keeps its own pack when it is resumed."""


class DataError(UserError):
    """The data cannot be trained on; the one-line message names the problem and the fix."""


class DecodeError(ValueError):
    """An image cannot be used; the one-line message follows the image's key in a sentence."""

    def __init__(self, reason: str, max_pixels: int | None = None) -> None:
        super().__init__(reason)
        self.max_pixels = max_pixels
        """The bound that the image exceeds, if that is the reason."""


@dataclass(frozen=True, slots=True)
class Image:
    """One object of a data source."""

    key: str
    """Relative to the prefix of its source."""
    size: int
    """Bytes."""
    etag: str
    label: int
    group: str
    """The source photograph. Images of one group stay on one side of the split. Empty: the image has no group."""
    source: str = "source"
    """The key of [data] that names its source: source, validation or test."""
    side: str = ""
    """training, validation or test if that is given, empty if the split decides between training and validation."""

    @property
    def name(self) -> str:
        """The key as packs, reports and the labels file have it: the keys of data.validation and data.test begin with
        `validation:` and `test:`."""
        return self.key if self.source == "source" else f"{self.source}:{self.key}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The labelled listing of all data sources, ordered by source and key."""

    source: str
    """URL of data.source."""
    classes: tuple[str, ...]
    images: tuple[Image, ...]
    digest: str
    """SHA-256 (hex) of classes and images. Equal digests mean equal data."""
    ignored: int = 0
    """Number of objects below the sources that belong to no class."""
    junk: int = 0
    """Number of objects that are no images for their names, such as .DS_Store."""
    archived: int = 0
    """Number of images in an archive storage class: unreadable unless they have been restored."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One Arrow IPC file of packed images (columns image, label, key, group, content, side)."""

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
    """Image.name."""
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
    """For report.json: see `trainer.data.split.split`."""
    test: tuple[int, ...] = ()
