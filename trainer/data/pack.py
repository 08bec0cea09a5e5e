"""Packs the images of a manifest into uint8 shards in storage. Every image is downloaded and decoded once, in parallel.

Separation of concerns: decoder.py knows images and shards.py knows shard files. This module knows where images come from,
where they go, and when a pack exists. Ray Data decodes blocks of images on any core of the cluster. The driver keeps the order and
writes one shard at a time, so its memory never holds the whole data set.

    shards/<digest>-<H>x<W>x<C>/part-00000-<hash>.arrow
                                quarantine.json    the images that cannot be used, and why; for people
                                pack.json          written last, only if absent; once it exists, the pack exists and never changes

A shard's name contains the hash of its content. Two jobs that pack the same data at the same time write the same objects, or
objects of different names. The first pack.json wins, and both jobs train on it.
"""

import hashlib
import json
import logging
import threading
import warnings
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from itertools import groupby
from queue import Empty, Queue
from typing import Any

import numpy as np
import pyarrow as pa

from trainer import config
from trainer.data.dataset import DecodeError, Image, Manifest, Pack, Quarantined
from trainer.data.decoder import Decoder, DecoderError
from trainer.data.index import build_manifest
from trainer.data.original import decoded
from trainer.data.pack_file import folder_name, read_pack
from trainer.data.shards import PackError, ShardWriter
from trainer.data.sources import Sources
from trainer.formatting import plain
from trainer.storage import Exists, NotFound, Store, StoreError
from trainer.storage.parsing import Damaged, parsed

RETRIES = 3
"""How often Ray repeats a task whose process or machine died. An image cannot cause that: decoder.py decodes in another process."""
POLL_SECONDS, CLOSE_SECONDS = 0.5, 2.0
"""Longest time between two calls of `progress`; longest wait for the block that is being decoded when packing is stopped."""
BLOCK_BYTES, BLOCK_IMAGES = 32_000_000, 64
"""Maximum bytes of pixels, and number of images, that one task decodes."""
READS, READ_BYTES = 8, 256_000_000
"""Maximum number of concurrent reads of one task, and bytes of files that it holds (it always holds two files)."""
FILE_BYTES_PER_PIXEL, METADATA_BYTES = 8, 64_000_000
"""No uncompressed image needs more than four 16-bit channels and its metadata. Larger objects are not read."""
FAILURE, TRANSIENT = "failure", "transient"
"""Columns of the block that stands for a failed store or machine: the error's message and whether it is transient."""


def pack(
    manifest: Manifest,
    sources: Sources,
    storage: Store,
    data: config.Data,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Pack:
    """Packs the images. If the pack exists already, returns it without reading an image or calling `progress`.

    Ray must be initialized, unless the pack exists. Calls progress(images done, total images) at least once a second, whether
    images are done or not; an exception raised by `progress` stops the packing. A pack with too many unusable images is kept, so
    that they are found and listed once.

    Raises PackError when more than `data.max_quarantined` of the images cannot be used or Ray fails repeatedly; StoreError.
    """
    found = load_pack(storage, manifest.digest, (*data.image_size, 3))
    if found is None:
        found = _pack(manifest, sources, storage, data, progress)
    _check_quarantine(found, storage, data)
    return found


def images_of(
    run: str,
    sources: Sources,
    storage: Store,
    data: config.Data,
    previous: Mapping[str, Any] | None,
    local: Collection[str] = (),
) -> Manifest | Pack:
    """The images that a run uses. A new run: the listing of `sources`. A resumed run: its original pack, even if the sources have
    changed since. `previous`: the run.json of the run to resume, None for a new run. `local`: folders of this machine that runs
    write to.

    Raises PackError when that pack is gone and the source has changed; DataError and StoreError.
    """
    if previous and (known := load_pack(storage, previous["manifest"], (*data.image_size, 3))):
        return known
    manifest = build_manifest(sources, data, storage, local)
    if previous and manifest.digest != previous["manifest"]:
        raise PackError(
            f"Run {run} began with images other than those now in {manifest.source}, or with a version that decodes them to other "
            f"pixels (digest {previous['manifest'][:16]} then, {manifest.digest[:16]} now), and its packed images are gone. Fix: "
            "restore the source and the version, or choose another run.name."
        )
    return manifest


def load_pack(storage: Store, manifest_digest: str, image_shape: tuple[int, ...]) -> Pack | None:
    """The pack of a data set for images of a shape (H, W, ...); None if it does not exist yet. Raises StoreError and PackError."""
    key = f"{_folder(manifest_digest, image_shape)}/pack.json"
    try:
        return storage.read_again(
            lambda: parsed(storage.get(key), lambda document: read_pack(document, manifest_digest, image_shape)), NotFound, Damaged
        )
    except NotFound:
        return None
    except Damaged as error:
        raise PackError(f"{storage.url}/{key} is damaged ({plain(error)}). Fix: delete it to pack the images again.") from None


def _folder(digest: str, image_shape: tuple[int, ...]) -> str:
    return f"shards/{folder_name(digest, image_shape)}"


def _pack(
    manifest: Manifest, sources: Sources, storage: Store, data: config.Data, progress: Callable[[int, int], None] | None
) -> Pack:
    image_shape = (*data.image_size, 3)
    folder = _folder(manifest.digest, image_shape)
    quarantined: list[Quarantined] = []
    done = 0
    with (
        ShardWriter(storage, folder, image_shape, manifest.classes) as writer,
        closing(_polled(_decoded(manifest, sources, image_shape, data))) as blocks,
    ):
        for block in blocks:
            if block is not None and FAILURE in block.column_names:
                failure = block.to_pylist()[0]
                raise StoreError(failure[FAILURE], transient=failure[TRANSIENT])
            if block is not None:
                bad = block.filter(block["reason"].is_valid())
                quarantined += [Quarantined(**row) for row in bad.select(["key", "reason", "max_pixels"]).to_pylist()]
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
        if image.max_pixels is not None and image.max_pixels < data.max_pixels:
            raise PackError(
                f"{image.key!r} {image.reason}, the bound when the images were packed. Fix: delete the folder {where} to pack them "
                f"again with data.max_pixels = {data.max_pixels}, or restore the old bound."
            )
    total = found.images + len(found.quarantined)
    fraction = len(found.quarantined) / total
    if fraction > data.max_quarantined or not found.images:
        examples = "; ".join(f"{image.key!r} {image.reason}" for image in found.quarantined[:3])
        raise PackError(
            f"{len(found.quarantined)} of {total} images ({fraction:.2%}) cannot be used, above data.max_quarantined = "
            f"{data.max_quarantined:.2%}: {examples}. Fix: delete or replace them ({where}/quarantine.json lists all), or raise "
            "data.max_quarantined."
        )


# Decoding, in Ray's workers

_stores: dict[str, Store] = {}
"""The stores of this process by URL, kept so that connections outlive a block."""
_decoders: dict[tuple[tuple[int, int, int], int], Decoder] = {}
"""The decoder of this process by its image shape and max_pixels, kept for the same reason. It ends with this process."""


def _polled(blocks: Generator[pa.Table]) -> Generator[pa.Table | None]:
    """The blocks, and None whenever a second has passed without one. Ray Data waits for a block without end, deaf to signals."""
    ready: Queue[pa.Table | BaseException | None] = Queue(1)
    ended = threading.Event()

    def read() -> None:
        with closing(blocks):
            try:
                for block in blocks:
                    ready.put(block)
                    if ended.is_set():
                        return
                ready.put(None)
            except BaseException as error:
                ready.put(error)

    reader = threading.Thread(target=read, name="packing", daemon=True)
    reader.start()
    try:
        while True:
            try:
                block = ready.get(timeout=POLL_SECONDS)
            except Empty:
                yield None
                continue
            if isinstance(block, BaseException):
                raise block
            if block is None:
                return
            yield block
    finally:
        ended.set()
        with suppress(Empty):
            ready.get_nowait()
        reader.join(CLOSE_SECONDS)


def _decoded(manifest: Manifest, sources: Sources, image_shape: tuple[int, int, int], data: config.Data) -> Generator[pa.Table]:
    """The decoded blocks in the order of the manifest; see _decode_block."""
    import ray.data

    rows = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // int(np.prod(image_shape))))
    blocks = [
        _listed(images[start : start + rows])
        for images in (tuple(each) for _, each in groupby(manifest.images, lambda image: image.source))
        for start in range(0, len(images), rows)
    ]
    with _quiet():
        dataset: Any = ray.data.from_arrow(blocks)
        dataset.context.enable_progress_bars = False
        dataset.context.execution_options.preserve_order = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # max_retries is deprecated as of Ray 2.60 and has no successor there
            dataset = dataset.map_batches(
                _decode_block,
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
                num_cpus=1,
                max_retries=RETRIES,
                fn_kwargs={"stores": sources.images, "image_shape": image_shape, "max_pixels": data.max_pixels},
            )
        try:
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.RayTaskError):  # raised by our own code
                raise
            raise PackError(
                f"Packing ended because Ray lost a task {1 + RETRIES} times ({str(error).strip().splitlines()[0]}). Fix: see Ray's "
                "logs; if machines ran out of memory, give them more or lower data.max_pixels.",
                transient=True,
            ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Ray Data's log: `progress` tells the user enough."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _listed(images: tuple[Image, ...]) -> pa.Table:
    """A block to decode, of images of one source: columns source, name, key, size, label, group and side."""
    return pa.table(
        {
            "source": [image.source for image in images],
            "name": [image.name for image in images],
            "key": [image.key for image in images],
            "size": [image.size for image in images],
            "label": pa.array([image.label for image in images], pa.int32()),
            "group": [image.group for image in images],
            "side": [image.side for image in images],
        }
    )


def _decode_block(block: pa.Table, stores: Mapping[str, Store], image_shape: tuple[int, int, int], max_pixels: int) -> pa.Table:
    """Decodes a block of `_listed` from the `stores` of Sources. Columns of the result: image, label, key (Image.name), group, side
    and content; for an image that cannot be used reason and max_pixels instead of image and content.

    A store that fails, or a machine that cannot start a decoder, ends the job. The result then has the columns FAILURE and
    TRANSIENT, because Ray would print a raised exception with several tracebacks.
    """
    keys, sizes = block["key"].to_pylist(), block["size"].to_pylist()
    most = FILE_BYTES_PER_PIXEL * max_pixels + METADATA_BYTES
    wanted = {key: size for key, size in zip(keys, sizes, strict=True) if size <= most}
    threads = READ_BYTES // (2 * max(wanted.values(), default=1) or 1)  # get_many holds two objects for each thread
    setting = block["source"][0].as_py()
    source = _stores.setdefault(stores[setting].url, stores[setting])
    read = source.get_many(wanted, threads=max(1, min(READS, threads)))
    if (image_shape, max_pixels) not in _decoders:
        while _decoders:
            _decoders.popitem()[1].close()
        _decoders[image_shape, max_pixels] = Decoder(image_shape, max_pixels)
    decoder = _decoders[image_shape, max_pixels]
    rows: list[tuple[bytes | None, str | None, str | None, int | None]] = []
    for size in sizes:
        try:
            if size > most:
                raise DecodeError(f"has {size} bytes, too many for an image within data.max_pixels = {max_pixels}", max_pixels)
            content, pixels = decoded(*next(read), size, source, setting, decoder)
            rows.append((pixels, hashlib.blake2b(content, digest_size=16).hexdigest(), None, None))
        except DecodeError as error:
            rows.append((None, None, str(error), error.max_pixels))
        except (StoreError, DecoderError) as error:
            return pa.table({FAILURE: [str(error)], TRANSIENT: [error.transient]})
    images, contents, reasons, bounds = zip(*rows, strict=True)
    return pa.table(
        {
            "image": pa.array(images, pa.binary(int(np.prod(image_shape)))),
            "label": block["label"],
            "key": block["name"],
            "group": block["group"],
            "side": block["side"],
            "content": pa.array(contents, pa.string()),
            "reason": pa.array(reasons, pa.string()),
            "max_pixels": pa.array(bounds, pa.int64()),
        }
    )
