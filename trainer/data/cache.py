"""Keeps the local caches of packs and compiled programs within their bounds. Owns what is deleted, and when."""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

UNUSED_SECONDS = 30 * 86400.0
"""A pack or program that no job of this machine has opened for so long is deleted."""
PROGRAM_BYTES = 2**30
"""Most bytes of compiled programs."""
LOCK = "lock"
"""File in a pack's folder: locked while the pack is fetched (by one job) or checked and mapped (by any number); its time says when
the pack was last opened."""


@contextmanager
def fetching(folder: Path) -> Iterator[None]:
    """Creates a pack's folder if necessary, and keeps other jobs from using or deleting it. Raises OSError."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the process ends, even if it is killed
            if _is_at(lock, folder / LOCK):  # no other job has deleted the folder while this one waited
                yield
                return


@contextmanager
def opening(folder: Path) -> Iterator[None]:
    """Keeps other jobs from deleting a pack, and records its use. Without LOCK it is not fetched yet, or on a read-only disk."""
    with ExitStack() as stack:
        with suppress(OSError):
            lock = stack.enter_context((folder / LOCK).open("rb"))
            fcntl.flock(lock, fcntl.LOCK_SH)
        touch(folder)
        yield


def _is_at(file: IO[Any], path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def touch(folder: Path) -> None:
    """Records that a pack is used now. Does nothing on a read-only disk."""
    with suppress(OSError):
        os.utime(folder / LOCK)


def evict(cache: Path, keep: Path, max_bytes: int) -> None:
    """Deletes packs other than `keep`: those not used for UNUSED_SECONDS, and the least recently used ones until the others have at
    most `max_bytes` together. Other files and folders in `cache` stay. A job that still maps a deleted file keeps it."""
    others = sorted((_used(folder), folder) for folder in _packs(cache) if folder != keep)
    sizes = {folder: _bytes(folder) for _, folder in others}
    total = sum(sizes.values())
    for used, folder in others:
        if total <= max_bytes and used > time.time() - UNUSED_SECONDS:
            continue
        with suppress(OSError), (folder / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while a job fetches or opens it
            shutil.rmtree(folder)
            total -= sizes[folder]


def evict_programs(folder: Path) -> None:
    """Deletes compiled programs that were not used for UNUSED_SECONDS, and the least recently used ones until the others have at
    most PROGRAM_BYTES together. Programs are the files in the folders below `folder`."""
    total, oldest = 0, time.time() - UNUSED_SECONDS
    with suppress(OSError):  # another job may delete them too
        files = [(path, path.stat()) for path in folder.glob("*/*") if path.is_file()]
        for path, facts in sorted(files, key=lambda file: -max(file[1].st_atime, file[1].st_mtime)):
            total += facts.st_size
            if total > PROGRAM_BYTES or max(facts.st_atime, facts.st_mtime) < oldest:
                path.unlink(missing_ok=True)


def others_bytes(cache: Path, keep: Path) -> int:
    """Bytes of all packs other than `keep`."""
    return sum(_bytes(folder) for folder in _packs(cache) if folder != keep)


def _packs(cache: Path) -> list[Path]:
    with suppress(OSError):
        folders = [path for path in cache.iterdir() if re.fullmatch(r"[0-9a-f]{16}-\d+x\d+x3", path.name)]
        return [path for path in folders if path.is_dir() and not path.is_symlink()]
    return []


def _used(folder: Path) -> float:
    with suppress(OSError):
        return (folder / LOCK).stat().st_mtime
    return 0.0


def _bytes(folder: Path) -> int:
    with suppress(OSError):
        return sum(path.lstat().st_size for path in folder.iterdir())
    return 0
