"""Shards: writing packed rows to Arrow files, and reading them back through a local cache.

Separation of concerns: trainer.data.pack decides what a shard contains and when a pack exists. This module owns the file format
(Arrow IPC, one uncompressed record batch, so that a file can be memory-mapped) and the local disk.

Shapes: N images of all shards, n of one shard or one call, H W C one image (C = 3).
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from trainer.data.cache import LOCK, evict, fetching, opening, others_bytes, touch
from trainer.data.dataset import DataError, Pack, Shard
from trainer.data.pack_file import folder_name
from trainer.formatting import plain
from trainer.storage import NotFound, Store, StoreError
from trainer.storage.files import scratch

SHARD_BYTES = 96_000_000
"""Bytes of pixels in one shard: large enough to download at full speed, small enough to fit into the driver's memory."""
TMPDIR, CACHE_DIR = "TMPDIR", "pipeline.cache_dir"
"""The settings that move the files elsewhere."""


class PackError(DataError):
    """The images cannot be packed, or the pack cannot be opened; the one-line message names the problem and the fix."""


class ShardWriter:
    """Collects rows; writes and uploads a shard whenever one is full."""

    def __init__(self, storage: Store, folder: str, image_shape: tuple[int, int, int], classes: tuple[str, ...]) -> None:
        self.storage, self.folder = storage, folder
        self.metadata = {"shape": json.dumps(image_shape), "classes": json.dumps(classes)}
        self.image_bytes = int(np.prod(image_shape))
        self.capacity = max(1, SHARD_BYTES // self.image_bytes)
        self.pixels = np.empty((0, self.image_bytes), np.uint8)  # [capacity, H*W*C] after the first row
        self.shards: list[Shard] = []
        self._empty()

    def _empty(self) -> None:
        self.columns: dict[str, list[Any]] = {"label": [], "key": [], "group": [], "content": [], "side": []}
        self.rows = 0

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        with _disk(Path(tempfile.gettempdir()), 0, TMPDIR):
            self.temporary = self._stack.enter_context(scratch())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, table: pa.Table) -> None:
        """Adds decoded rows. Copies them, so that Ray can free its shared memory for the next blocks."""
        if len(table) and not len(self.pixels):
            self.pixels = np.empty((self.capacity, self.image_bytes), np.uint8)
        while len(table):
            part = table.slice(0, self.capacity - self.rows).combine_chunks()
            self.pixels[self.rows : self.rows + len(part)] = _bytes(part["image"].chunk(0))
            for name, column in self.columns.items():
                column += part[name].to_pylist()
            self.rows += len(part)
            if self.rows == self.capacity:
                self._write()
            table = table.slice(len(part))

    def finish(self) -> list[Shard]:
        """Writes the last shard; returns all shards in order."""
        if self.rows:
            self._write()
        return self.shards

    def _write(self) -> None:
        image_type = pa.binary(self.image_bytes)
        pixels = pa.py_buffer(self.pixels[: self.rows])
        batch = pa.record_batch(
            {
                "image": pa.FixedSizeBinaryArray.from_buffers(image_type, self.rows, [None, pixels]),
                "label": pa.array(self.columns["label"], pa.int32()),
                **{name: pa.array(self.columns[name], pa.string()) for name in ("key", "group", "content", "side")},
            }
        ).replace_schema_metadata(self.metadata)
        path = self.temporary / "shard.arrow"
        with _disk(path.parent, batch.nbytes, TMPDIR):
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
                writer.write_batch(batch)
            size, sha256 = path.stat().st_size, _sha256(path)
        key = f"{self.folder}/part-{len(self.shards):05}-{sha256[:16]}.arrow"
        self.storage.upload(key, path)
        self.shards.append(Shard(key, self.rows, size, sha256))
        self._empty()


class Images:
    """The pixels of all shards, memory-mapped."""

    def __init__(self, shards: list[np.ndarray], image_shape: tuple[int, int, int]) -> None:
        self.shards = tuple(shards)
        """Read-only views uint8 [n, H, W, C] of the files."""
        self._ends = np.cumsum([len(shard) for shard in shards])
        self.shape = (int(self._ends[-1]), *image_shape)
        """N H W C."""
        self.nbytes = int(np.prod(self.shape))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Copies rows [n], in any order and with repeats, into a new array uint8 [n, H, W, C]. Raises IndexError."""
        rows = np.asarray(rows)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} are not in 0..{len(self) - 1}")
        taken = np.empty((len(rows), *self.shape[1:]), np.uint8)
        shards = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(shards):
            here = shards == number
            taken[here] = self.shards[number][rows[here] - (self._ends[number] - len(self.shards[number]))]
        return taken

    def __len__(self) -> int:
        return self.shape[0]


class PackedRows:
    """All rows of a pack in order, shard after shard."""

    def __init__(self, batches: list[pa.RecordBatch], image_shape: tuple[int, int, int]) -> None:
        self._batches = batches
        self.images = Images([_bytes(batch["image"]).reshape(-1, *image_shape) for batch in batches], image_shape)
        self.labels = np.concatenate([batch["label"].to_numpy() for batch in batches])
        """int32 [N]."""

    @cached_property
    def keys(self) -> list[str]:
        return self._strings("key")

    @cached_property
    def groups(self) -> list[str]:
        """The group of each row; empty if it has none."""
        return self._strings("group")

    @cached_property
    def contents(self) -> list[str]:
        """The hash of each row's original file."""
        return self._strings("content")

    @cached_property
    def sides(self) -> list[str]:
        """The side of each row, as Image.side. Packs of earlier versions have no such column, and no given sides."""
        return self._strings("side") if "side" in self._batches[0].schema.names else [""] * len(self.labels)

    def _strings(self, name: str) -> list[str]:
        return [value for batch in self._batches for value in batch[name].to_pylist()]


def _bytes(images: pa.FixedSizeBinaryArray) -> np.ndarray:
    """The Arrow column as a view uint8 [n, H*W*C]."""
    width = images.type.byte_width
    view = np.frombuffer(images.buffers()[1], np.uint8, count=len(images) * width, offset=images.offset * width)
    return view.reshape(-1, width)


def open_rows(pack: Pack, storage: Store, cache_dir: Path, cache_max_bytes: int | None = None) -> PackedRows:
    """Maps the shards into memory, after downloading the ones that `cache_dir` lacks, and deletes packs that have not been used for
    long or exceed `cache_max_bytes` (None: no bound).

    Workers that start together on a machine download once: the others wait for the first. Every file's checksum is verified, and
    an incomplete or altered file is downloaded again. Every table is checked before its rows are used.

    Raises PackError when the disk is full or a shard differs from the packed one; StoreError.
    """
    if not re.fullmatch("[0-9a-f]{64}", pack.digest) or not all(isinstance(side, int) for side in pack.image_shape):
        raise PackError(f"{pack.digest!r:.80} is not the digest of a pack. Fix: choose another run.name.")
    folder = cache_dir.absolute() / folder_name(pack.digest, pack.image_shape)
    paths = [folder / Path(shard.key).name for shard in pack.shards]
    with opening(folder):  # the checksums take minutes, and a file that is mapped may be deleted
        batches = None if _damaged(pack, paths) else _mapped(pack, paths, storage)
    if batches is None:
        with _disk(folder, 0, CACHE_DIR), fetching(folder):
            _fetch(pack, paths, storage, folder)
            batches = _mapped(pack, paths, storage)
        touch(folder)
    if cache_max_bytes is not None:
        evict(folder.parent, folder, cache_max_bytes - sum(shard.size for shard in pack.shards))
    return PackedRows(batches, pack.image_shape)


def _mapped(pack: Pack, paths: list[Path], storage: Store) -> list[pa.RecordBatch]:
    """The tables of all shards, whose checksums are verified. Raises PackError: for a local file that cannot be read, or for a
    table that cannot be that of a pack."""
    batches = []
    for shard, path in zip(pack.shards, paths, strict=True):
        try:
            batches.append(_read(path, shard, pack))
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, OSError) and error.errno:  # Arrow raises an OSError without a number for wrong content
                raise PackError(
                    f"{path}: cannot be read ({os.strerror(error.errno)}). Fix: run again, which downloads what is missing, or set "
                    f"{CACHE_DIR} to another folder."
                ) from None
            raise PackError(
                f"{storage.url}/{shard.key} is not a shard of its pack ({plain(error)}). Fix: {_repack(storage, shard)}."
            ) from None
    return batches


def _read(path: Path, shard: Shard, pack: Pack) -> pa.RecordBatch:
    """The mapped table of a shard. Raises ValueError or an error of Arrow unless columns, types and labels are those asked for."""
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        if reader.num_record_batches != 1:
            raise ValueError(f"{reader.num_record_batches} record batches")
        batch = reader.get_batch(0)
    batch.validate(full=True)
    types = {"image": pa.binary(int(np.prod(pack.image_shape))), "label": pa.int32()}
    types |= dict.fromkeys(("key", "group", "content"), pa.string())
    types |= {"side": pa.string()} if "side" in batch.schema.names else {}  # packs of earlier versions have none
    if dict(zip(batch.schema.names, batch.schema.types, strict=True)) != types or batch.num_rows != shard.rows:
        raise ValueError(f"{batch.num_rows} rows of {', '.join(map(str, batch.schema))}"[:300])
    if any(column.null_count for column in batch.columns):
        raise ValueError("empty cells")
    labels = batch["label"].to_numpy()
    if labels.min() < 0 or labels.max() >= len(pack.classes):
        raise ValueError(f"labels {labels.min()} to {labels.max()} of {len(pack.classes)} classes")
    return batch


def _repack(storage: Store, shard: Shard) -> str:
    return f"delete the folder {storage.url}/{Path(shard.key).parent} to pack the images again"


def _damaged(pack: Pack, paths: list[Path]) -> list[tuple[Shard, Path]]:
    """The shards whose files are missing or have another size or checksum."""
    with ThreadPoolExecutor(4) as pool:
        intact = list(pool.map(_intact, pack.shards, paths))
    return [(shard, path) for shard, path, good in zip(pack.shards, paths, intact, strict=True) if not good]


def _intact(shard: Shard, path: Path) -> bool:
    with suppress(OSError):  # an unreadable file counts as missing
        return path.stat().st_size == shard.size and _sha256(path) == shard.sha256
    return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(pack: Pack, paths: list[Path], storage: Store, folder: Path) -> None:
    """Downloads what `folder` lacks, and deletes what does not belong into it. The folder must be locked."""
    missing = _damaged(pack, paths)  # again: another worker may have fetched them meanwhile
    for stray in set(folder.iterdir()) - set(paths) - {folder / LOCK} | {path for _, path in missing}:
        with suppress(IsADirectoryError, PermissionError):
            stray.unlink(missing_ok=True)  # damaged, or left by a killed download
    needed = sum(shard.size for shard, _ in missing)
    if (lacking := needed - shutil.disk_usage(folder).free) > 0:
        evict(folder.parent, folder, others_bytes(folder.parent, folder) - lacking)
    if needed > shutil.disk_usage(folder).free:
        raise _full(folder, needed, CACHE_DIR)
    for shard, path in missing:
        try:
            with _disk(folder, needed, CACHE_DIR):
                storage.read_again(lambda shard=shard, path=path: _download(shard, path, storage), NotFound, PackError)  # type: ignore[misc]
        except NotFound as error:
            raise NotFound(f"{error}, although pack.json lists it. Fix: {_repack(storage, shard)}.") from None


def _download(shard: Shard, path: Path, storage: Store) -> None:
    """Raises PackError when what arrives is not what was packed, and OSError when the local file cannot be read."""
    storage.download(shard.key, path)
    if (path.stat().st_size, _sha256(path)) != (shard.size, shard.sha256):
        path.unlink()
        raise PackError(f"{storage.url}/{shard.key} differs from the packed shard (checksum). Fix: {_repack(storage, shard)}.")


@contextmanager
def _disk(folder: Path, needed: int, setting: str) -> Iterator[None]:
    """Converts the errors of a local disk to a PackError. `needed`: bytes; `setting`: what moves the folder elsewhere."""
    try:
        yield
    except (OSError, StoreError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__  # the exception that a StoreError was raised for
        if cause is None:
            raise
        if cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _full(folder, needed, setting) from None
        if isinstance(error, OSError):
            raise PackError(
                f"{folder}: cannot be written ({os.strerror(error.errno or 0)}). Fix: set {setting} to a writable folder."
            ) from None
        raise


def _full(folder: Path, needed: int, setting: str) -> PackError:
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    return PackError(
        f"{folder}: the disk is full ({needed} bytes are needed, {free} are free). "
        f"Fix: free some space or set {setting} to a folder on a larger disk."
    )
