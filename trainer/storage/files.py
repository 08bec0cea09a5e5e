"""Local files: written whole or not at all, and temporary folders that the next process removes if this one is killed."""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".spikewise-"
"""Prefix of the name of a file that is still being written."""
SCRATCH = "spikewise-"
"""Prefix of the name of a temporary folder; the process number follows."""
ABANDONED_SECONDS = 3600.0
"""Age from which the temporary folder of a process that no longer exists is removed."""


def write_file(
    path: Path,
    fill: Callable[[BinaryIO], Any],
    if_absent: bool = False,
    *,
    durable: bool = False,
    guard: Callable[[], None] = lambda: None,
) -> bool:
    """Writes a temporary file and renames it, so that no reader sees half a file. False: `if_absent`, and the file exists.

    `durable`: returns when the file is on the disk, because a later file may vouch for it. `guard`: called before the rename;
    an exception that it raises leaves everything as it was. Raises OSError.
    """
    partial = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}")
    try:
        with _create(partial) as file:
            fill(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        guard()
        if if_absent:
            try:
                os.link(partial, path)  # unlike a rename, fails if the file exists
            except FileExistsError:
                return False
        else:
            partial.replace(path)
        if durable:
            _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    return True


def _create(path: Path) -> BinaryIO:
    """Creates a file and its folder. Retries if a concurrent delete removes the folder because it is still empty."""
    for _ in range(20):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
        except (FileNotFoundError, FileExistsError) as error:
            last = error
    raise last


def _flush(folder: Path) -> None:
    """Flushes the names in a folder to the disk. A rename may otherwise be lost in a power failure."""
    with suppress(OSError):  # the folder is gone, or its file system has no such operation
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty temporary folder, removed at the end. Also removes those of killed processes of this machine. Raises OSError."""
    _sweep(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-") as folder:
        yield Path(folder)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{SCRATCH}*-*"):
        process = folder.name.removeprefix(SCRATCH).partition("-")[0]
        with suppress(OSError):  # another user's, or already gone
            if process.isdecimal() and not _lives(int(process)) and folder.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
