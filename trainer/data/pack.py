"""A manifest -> uint8 shards in object storage: every image is downloaded and decoded once, in parallel, and never again.

Separation of concerns: decode.py knows images, shards.py the files; this module knows where images come from and go
to, and when a pack exists. Ray Data decodes blocks of images wherever the cluster has a core; the driver keeps the order and
writes one shard at a time, so that its memory never holds the data set.

    shards/<digest>-<H>x<W>x<C>/part-00000-<hash>.arrow
                                quarantine.json    the images that cannot be used, and why; for people
                                pack.json          put last, if absent: with it the pack exists, and it is never changed

The name of a shard holds the hash of its content: two jobs that pack the same data at the same time write the same objects, or
objects of different names. The first pack.json wins, and both train on it.
"""

import hashlib
import json
import logging
import re
import socket
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from trainer import config
from trainer.data.dataset import Image, Manifest, Pack, Quarantined, Shard
from trainer.data.decode import DecodeError, decode
from trainer.data.index import build_manifest
from trainer.data.shards import PackedRows, PackError, ShardWriter, folder_name, open_rows
from trainer.storage import Exists, NotFound, Store, StoreError, open_store
from trainer.storage.folder import FolderStore

__all__ = ["PackError", "PackedRows", "images_of", "load_pack", "open_rows", "pack"]

BLOCK_BYTES, BLOCK_IMAGES = 32_000_000, 64
"""Most pixels and most images of one task."""
READS, READ_BYTES = 8, 256_000_000
"""Most images that one task reads at the same time, and most bytes of files that it holds where they are large (but two files)."""
FILE_BYTES_PER_PIXEL, METADATA_BYTES = 8, 64_000_000
"""No uncompressed image needs more than four 16-bit channels and its metadata: larger objects are not even read."""


def pack(
    manifest: Manifest,
    source: Store,
    storage: Store,
    data: config.Data,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Pack:
    """Packs the images, or returns the pack that is there already: then no image is read and `progress` is never called.

    Ray must be initialized unless the pack is there. Calls progress(images done, images in all); what it raises stops the work.
    A pack with too many unusable images is kept all the same, so that they are found and listed once.

    Raises PackError when more than `data.max_quarantined` of the images cannot be used; StoreError when a store fails.
    """
    found = load_pack(storage, manifest.digest, (*data.image_size, 3))
    if found is None:
        found = _pack(manifest, source, storage, data, progress)
    _check_quarantine(found, storage, data)
    return found


def images_of(run: str, settings: config.Settings, storage: Store, previous: Mapping[str, Any] | None) -> Manifest | Pack:
    """What a run is to train on: what its source lists; where it began before (`previous`: its run.json), the pack that it began
    with, even if the source has changed meanwhile.

    Raises PackError when that one is gone and the source has changed; DataError and StoreError.
    """
    data = settings.data
    if previous and (known := load_pack(storage, previous["manifest"], (*data.image_size, 3))):
        return known
    manifest = build_manifest(open_store(data.source, settings.s3), data)
    if previous and manifest.digest != previous["manifest"]:
        raise PackError(
            f"run {run} began with other images than are at {manifest.source} now (digest {previous['manifest'][:16]}, now "
            f"{manifest.digest[:16]}), and its packed ones are gone: bring the source back, or choose another run.name"
        )
    return manifest


def load_pack(storage: Store, manifest_digest: str, image_shape: tuple[int, ...]) -> Pack | None:
    """The pack of a data set at a size (H, W, ...), or None when there is none yet. Raises StoreError, PackError."""
    key = f"{_folder(manifest_digest, image_shape)}/pack.json"
    try:
        text = storage.get(key)
    except NotFound:
        return None
    try:
        found = json.loads(text)
        return Pack(
            digest=found["digest"],
            classes=tuple(found["classes"]),
            image_shape=tuple(found["image_shape"]),
            shards=tuple(Shard(**shard) for shard in found["shards"]),
            images=found["images"],
            quarantined=tuple(Quarantined(**image) for image in found["quarantined"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise PackError(f"{storage.url}/{key} is damaged ({error!r}): delete it to pack again") from None


def _folder(digest: str, image_shape: tuple[int, ...]) -> str:
    return f"shards/{folder_name(digest, image_shape)}"


def _pack(
    manifest: Manifest, source: Store, storage: Store, data: config.Data, progress: Callable[[int, int], None] | None
) -> Pack:
    image_shape = (*data.image_size, 3)
    folder = _folder(manifest.digest, image_shape)
    quarantined: list[Quarantined] = []
    done = 0
    with (
        ShardWriter(storage, folder, image_shape, manifest.classes) as writer,
        closing(_decoded(manifest, source, image_shape, data)) as blocks,
    ):
        for block in blocks:
            if "failure" in block.column_names:
                failure = block.to_pylist()[0]
                raise StoreError(failure["failure"], transient=failure["transient"])
            bad = block.filter(block["reason"].is_valid())
            quarantined += [Quarantined(row["key"], row["reason"]) for row in bad.select(["key", "reason"]).to_pylist()]
            writer.add(block.filter(block["reason"].is_null()))
            done += len(block)
            if progress:
                progress(done, len(manifest.images))
        shards = writer.finish()
    made = Pack(
        manifest.digest, manifest.classes, image_shape, tuple(shards), sum(shard.rows for shard in shards), tuple(quarantined)
    )
    as_json = asdict(made)
    storage.put(f"{folder}/quarantine.json", _json(as_json["quarantined"]), content_type="application/json")
    try:
        storage.put(f"{folder}/pack.json", _json(as_json), if_absent=True, content_type="application/json")
    except Exists:
        made = load_pack(storage, manifest.digest, image_shape) or made
        storage.delete(shard.key for shard in shards if shard not in made.shards)
    return made


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _check_quarantine(found: Pack, storage: Store, data: config.Data) -> None:
    where = f"{storage.url}/{_folder(found.digest, found.image_shape)}"
    for image in found.quarantined:
        bound = re.search(r"data\.max_pixels = (\d+)", image.reason)
        if bound and int(bound[1]) < data.max_pixels:
            raise PackError(
                f"{image.key!r} {image.reason}, as it was when the images were packed: delete the folder {where} to pack them "
                f"again with data.max_pixels = {data.max_pixels}, or set it back"
            )
    total = found.images + len(found.quarantined)
    fraction = len(found.quarantined) / total
    if fraction > data.max_quarantined or not found.images:
        examples = "; ".join(f"{image.key!r} {image.reason}" for image in found.quarantined[:3])
        raise PackError(
            f"{len(found.quarantined)} of {total} images ({fraction:.2%}) cannot be used, above data.max_quarantined = "
            f"{data.max_quarantined:.2%}: {examples}: delete or replace them (all are listed in {where}/quarantine.json), or raise "
            "data.max_quarantined"
        )


# Decoding, in Ray's workers

_stores: dict[str, Store] = {}
"""By URL; those of this process: their connections outlive a block."""


def _decoded(manifest: Manifest, source: Store, image_shape: tuple[int, int, int], data: config.Data) -> Generator[pa.Table]:
    """The decoded blocks in the manifest's order; see _decode_block."""
    import ray.data

    rows = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // int(np.prod(image_shape))))
    images = manifest.images
    blocks = [_listed(images[start : start + rows]) for start in range(0, len(images), rows)]
    with _quiet():
        dataset: Any = ray.data.from_arrow(blocks)
        dataset.context.enable_progress_bars = False
        dataset.context.execution_options.preserve_order = True
        dataset = dataset.map_batches(
            _decode_block,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=1,
            fn_kwargs={"source": source, "image_shape": image_shape, "max_pixels": data.max_pixels},
        )
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray Data's account of its own doings: `progress` says what a user wants to know."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _listed(images: tuple[Image, ...]) -> pa.Table:
    return pa.table(
        {
            "key": [image.key for image in images],
            "size": [image.size for image in images],
            "label": pa.array([image.label for image in images], pa.int32()),
            "group": [image.group for image in images],
        }
    )


def _decode_block(block: pa.Table, source: Store, image_shape: tuple[int, int, int], max_pixels: int) -> pa.Table:
    """Columns key, label, group and image, content; or a `reason` why there is no image; or a `failure` of the store, which ends
    the job. A failure is handed on as a value, because Ray would print a raised one with several tracebacks."""
    keys, sizes = block["key"].to_pylist(), block["size"].to_pylist()
    most = FILE_BYTES_PER_PIXEL * max_pixels + METADATA_BYTES
    wanted = {key: size for key, size in zip(keys, sizes, strict=True) if size <= most}
    threads = READ_BYTES // (2 * max(wanted.values(), default=1) or 1)  # get_many holds two objects for each
    source = _stores.setdefault(source.url, source)
    read = source.get_many(wanted, threads=max(1, min(READS, threads)))
    rows: list[tuple[bytes | None, str | None, str | None]] = []
    for size in sizes:
        try:
            if size > most:
                raise DecodeError(f"has {size} bytes, more than an image within data.max_pixels = {max_pixels} takes")
            content = _whole(next(read)[1], size, source)
            pixels = decode(content, image_shape, max_pixels).tobytes()
            rows.append((pixels, hashlib.blake2b(content, digest_size=16).hexdigest(), None))
        except DecodeError as error:
            rows.append((None, None, str(error)))
        except StoreError as error:
            return pa.table({"failure": [str(error)], "transient": [error.transient]})
    images, contents, reasons = zip(*rows, strict=True)
    return pa.table(
        {
            "image": pa.array(images, pa.binary(int(np.prod(image_shape)))),
            "label": block["label"],
            "key": block["key"],
            "group": block["group"],
            "content": pa.array(contents, pa.string()),
            "reason": pa.array(reasons, pa.string()),
        }
    )


def _whole(found: bytes | StoreError, size: int, source: Store) -> bytes:
    """Raises DecodeError for what cost this image only, StoreError for what would cost every other one too."""
    if isinstance(found, NotFound):
        machine = socket.gethostname()
        if isinstance(source, FolderStore) and not _has_anything(source):  # or a pack without these images would be kept for ever
            raise StoreError(f"{source.url}: machine {machine} finds nothing there: mount data.source on every machine")
        raise DecodeError(f"was listed and is gone (seen from machine {machine})")
    if isinstance(found, StoreError):
        raise found
    if len(found) != size:
        raise DecodeError(f"changed after it was listed ({size} bytes then, {len(found)} now)")
    return found


def _has_anything(source: Store) -> bool:
    try:
        return any(True for _ in source.list())
    except NotFound:
        return False
