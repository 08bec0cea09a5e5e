"""Reads pack.json, which anyone with access to the bucket may have written: nothing in it is used before it is checked."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from trainer.data.dataset import Pack, Quarantined, Shard
from trainer.formatting import is_plain

MOST = 2**40
"""Bound of every number in pack.json."""


def folder_name(digest: str, image_shape: tuple[int, ...]) -> str:
    """The folder of a pack, in storage and in the cache."""
    height, width = image_shape[:2]
    return f"{digest[:16]}-{height}x{width}x3"


def read_pack(document: Mapping[str, Any], digest: str, image_shape: tuple[int, ...]) -> Pack:
    """The pack that `document` describes. `digest`, `image_shape` (H, W, ...): those asked for.

    Raises ValueError when it describes another pack, or names objects outside the pack's own folder; KeyError and TypeError.
    """
    shape = tuple(document["image_shape"])
    if document["digest"] != digest or shape != (*image_shape[:2], 3):
        raise ValueError(f"it is the pack of other images: digest {document['digest']!r:.40}, image_shape {shape!r:.60}")
    classes = tuple(document["classes"])
    if not classes or not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
        raise ValueError("classes are not distinct names")
    if not all(is_plain(name) for name in classes):
        raise ValueError("a class name contains control characters")
    shards = tuple(Shard(**shard) for shard in document["shards"])
    pattern = rf"shards/{re.escape(folder_name(digest, shape))}/part-\d{{5,}}-[0-9a-f]{{16}}\.arrow"
    for shard in shards:
        if not isinstance(shard.key, str) or not re.fullmatch(pattern, shard.key):
            raise ValueError(f"{shard.key!r:.200} is no shard in the pack's own folder")
        if not isinstance(shard.sha256, str) or not re.fullmatch("[0-9a-f]{64}", shard.sha256):
            raise ValueError(f"{shard.key} has no SHA-256")
        if not (_count(shard.rows) and _count(shard.size) and 0 < shard.rows * int(np.prod(shape)) <= shard.size <= MOST):
            raise ValueError(f"{shard.key} cannot have {shard.rows!r:.40} rows in {shard.size!r:.40} bytes")
    if len({shard.key for shard in shards}) < len(shards):
        raise ValueError("a shard is listed twice")
    quarantined = tuple(Quarantined(**image) for image in document["quarantined"])
    for image in quarantined:
        if not (
            isinstance(image.key, str) and isinstance(image.reason, str) and (image.max_pixels is None or _count(image.max_pixels))
        ):
            raise ValueError(f"{image!r:.200} is no quarantined image")
    quarantined = tuple(replace(image, reason=" ".join(image.reason.split())) for image in quarantined)
    images = document["images"]
    if not _count(images) or images != sum(shard.rows for shard in shards) or not images + len(quarantined):
        raise ValueError(f"images = {images!r:.40}, but the shards have {sum(shard.rows for shard in shards)} rows")
    return Pack(digest, classes, shape, shards, images, quarantined)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST
