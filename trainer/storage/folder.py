"""A folder as a store: owns atomic writes to files, and the mapping of keys to paths."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from trainer.formatting import one_line
from trainer.storage.files import PARTIAL, write_file
from trainer.storage.store import PART, Exists, NotFound, Object, Store, StoreError

NO_LINKS = "use a folder on a file system with hard links; FAT, exFAT and some network file systems have none"
FIXES = {
    errno.ENOSPC: "free space on that disk, or use another folder",
    errno.EDQUOT: "raise the quota, or use another folder",
    errno.EROFS: "use a folder that can be written",
    errno.EACCES: "give this user the right to it, or use another folder",
    **dict.fromkeys((errno.EPERM, errno.ENOTSUP, errno.EMLINK), NO_LINKS),
}
"""What to do about an error of the operating system."""


class FolderStore(Store):
    """A folder that behaves like a bucket. The first put creates it; symbolic links are followed."""

    def __init__(self, folder: str | Path) -> None:
        self.root = Path(os.path.expanduser(folder)).absolute()  # workers run in other working directories
        super().__init__(str(self.root))

    def __reduce__(self) -> tuple[Any, ...]:
        return FolderStore, (self.root,)

    def list(self, prefix: str = "") -> Iterator[Object]:
        self._count("list")
        with self._explained(prefix):
            if not self.root.is_dir():
                raise NotFound(f"{self.url}: no such folder. Fix: correct the path or create the folder.")
            yield from self._walk(self.root, "", prefix, ())

    def _walk(self, folder: Path, below: str, prefix: str, above: tuple[str, ...]) -> Iterator[Object]:
        real = os.path.realpath(folder)
        if real in above:
            return  # a symbolic link to one of its own parents
        try:
            # With a `/` after each folder's name, this order sorts the whole listing by key.
            entries = sorted((below + entry.name + "/" * entry.is_dir(), entry) for entry in os.scandir(folder))
        except FileNotFoundError:
            return  # deleted in the meantime
        for key, entry in entries:
            if key.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._walk(folder / entry.name, key, prefix, (*above, real))
            elif key.startswith(prefix) and entry.is_file() and not entry.name.startswith(PARTIAL):
                try:
                    key.encode()
                    state = entry.stat()
                except UnicodeEncodeError:
                    raise StoreError(f"{self.url}: the file name {os.fsencode(key)!r} is not UTF-8. Fix: rename it.") from None
                except FileNotFoundError:
                    continue  # deleted in the meantime
                yield Object(key, state.st_size, f"{state.st_size:x}-{state.st_mtime_ns:x}")

    def get(self, key: str) -> bytes:
        with self._explained(key), self._open(key) as file:
            return file.read()

    def download(self, key: str, path: Path) -> None:
        with self._explained(key), self._open(key) as file:
            write_file(path, lambda copy: shutil.copyfileobj(file, copy, PART))

    def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str | None = None) -> None:  # noqa: ARG002
        self._count("put")
        with self._explained(key):
            if not self._write(self._path(key), lambda file: file.write(data), if_absent, durable=if_absent):
                raise Exists(f"{self._where(key)}: already exists")

    def upload(self, key: str, path: Path, *, content_type: str | None = None) -> None:  # noqa: ARG002
        self._count("put")
        with self._explained(key), path.open("rb") as file:
            self._write(self._path(key), lambda copy: shutil.copyfileobj(file, copy, PART), durable=True)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._count("delete")
            with self._explained(key):
                path = self._path(key)
                self._check_guard()
                with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    path.unlink()
                with suppress(OSError):  # empty folders go, since a bucket has none; stops at the first that is not empty
                    for folder in path.parents[: -len(self.root.parts)]:
                        folder.rmdir()

    def sweep(self, prefix: str, older: float) -> int:
        swept, last = 0, time.time() - older
        with self._explained(prefix):
            for folder, _, names in os.walk(self.root / prefix.rpartition("/")[0]):
                for path in (Path(folder, name) for name in names if name.startswith(PARTIAL)):
                    with suppress(FileNotFoundError):  # finished in the meantime
                        if path.stat().st_mtime <= last:
                            self._check_guard()
                            path.unlink()
                            swept += 1
        return swept

    def _explain(self, error: Exception, where: str) -> StoreError | None:
        fix = FIXES.get(error.errno or 0) if isinstance(error, OSError) else None
        return StoreError(f"{where}: {one_line(error)}. Fix: {fix}.") if fix else super()._explain(error, where)

    def _path(self, key: str) -> Path:
        if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
            raise StoreError(f"{self._where(key)}: not a valid file name. Fix: use a key without empty parts, `.` and `..`.")
        return self.root / key

    def _open(self, key: str) -> BinaryIO:
        self._count("get")
        try:
            return self._path(key).open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"{self._where(key)}: no such file") from None

    def _write(self, path: Path, fill: Callable[[BinaryIO], Any], if_absent: bool = False, *, durable: bool = False) -> bool:
        # Files and commit objects are flushed to the disk: a commit object must not outlive the files that it vouches for.
        return write_file(path, fill, if_absent, durable=durable, guard=self._check_guard)
