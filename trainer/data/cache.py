"""Keeps the local cache of packs within its bounds. Owns which packs are deleted, and when."""

import fcntl
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

UNUSED_SECONDS = 30 * 86400.0
"""A pack that no job of this machine has opened for so long is deleted."""
LOCK = "lock"
"""File in a pack's folder: locked while the pack is fetched; its time says when the pack was last opened."""


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
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while a job fetches it
            shutil.rmtree(folder)
            total -= sizes[folder]


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
