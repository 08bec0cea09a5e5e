"""What every store can do, and the store that is a folder.

Owns: how objects are named, what a store promises, what goes wrong with one. trainer.objectstore adds the store that is an S3
bucket and opens either; everybody else imports from there.

Keys are below the store's prefix, their parts separated by `/`. Whatever goes wrong is a StoreError of one line.
"""

import os
import secrets
import shutil
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from trainer import UserError

THREADS = 16
"""Requests that one call has under way at the same time, if it is not told otherwise."""
MAX_THREADS = 64
PART = 16 * 2**20
"""Bytes of one part of a large object, which is also the size from which an object counts as large."""
_PARTIAL = ".spikewise-"  # begins the name of a file that is still being written


class StoreError(UserError):
    """Storage did not do what was asked; one line that says what, where, and the way out."""


class NotFound(StoreError):  # noqa: N818
    """There is no such object."""


class Exists(StoreError):  # noqa: N818
    """A conditional put lost: the object is there already."""


@dataclass(frozen=True, slots=True)
class Object:
    """One line of a listing."""

    key: str
    size: int
    """Bytes."""
    etag: str
    """Changes when the content does. S3: as the server says, without quotes. Folder: size and modification time (ns), because
    a listing would have to read every file for a content hash."""
    modified: float
    """Unix time, seconds."""


class Store(ABC):
    """A bucket or folder, and a prefix in it. May be pickled, and used from several threads."""

    url: str
    requests: Counter[str]
    """Requests made by this object, by operation, repeated ones included."""
    retries: int
    """Requests repeated because the one before failed."""
    errors: int
    """Operations given up. A missing object or a lost conditional put is an answer and does not count."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests = Counter()
        self.retries = self.errors = 0
        self._lock = threading.Lock()

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Object]:
        """The objects whose keys begin with `prefix`, sorted by key (code points).

        Folder markers (objects whose keys end in `/`) are left out. Raises StoreError, NotFound for a missing folder.
        """

    @abstractmethod
    def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The content, or its bytes [start, stop) as a slice would give them. Raises NotFound."""

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Writes the content to the file `path`, which appears whole or not at all. Raises NotFound."""

    @abstractmethod
    def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str | None = None) -> None:
        """Writes an object; raises Exists if `if_absent` and there is one.

        When the server's answer is lost, only the content tells whether it was this call that wrote the object: callers that
        compete for a key put something unique into `data`.
        """

    @abstractmethod
    def upload(self, key: str, path: Path, *, content_type: str | None = None) -> None:
        """Writes an object from the file `path`; one that fails leaves nothing behind."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Deletes objects; those that are not there are no error."""

    def get_many(self, keys: Iterable[str], threads: int = THREADS) -> Iterator[tuple[str, bytes | StoreError]]:
        """Reads objects in parallel (at most MAX_THREADS); yields (key, content or what went wrong) in the order of `keys`.

        Holds at most 2 * threads objects in memory.
        """
        threads = min(threads, MAX_THREADS)
        waiting: deque[tuple[str, Future[bytes | StoreError]]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="objectstore")
        try:
            for key in keys:
                waiting.append((key, pool.submit(self._get_or_error, key)))
                if len(waiting) == 2 * threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _get_or_error(self, key: str) -> bytes | StoreError:
        try:
            return self.get(key)
        except StoreError as error:
            return error

    def _count(self, operation: str) -> None:
        with self._lock:
            self.requests[operation] += 1

    def _where(self, key: str) -> str:
        return repr(f"{self.url}/{key}")[1:-1]  # as repr does it, because keys may hold line breaks

    @contextmanager
    def _explained(self, key: str = "") -> Iterator[None]:
        """Turns what an operation raises into a StoreError, and counts it."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            explained = self._explain(error, self._where(key))
            if not isinstance(explained, NotFound):
                with self._lock:
                    self.errors += 1
            if explained is None:
                raise
            raise explained from None

    def _explain(self, error: Exception, where: str) -> StoreError | None:
        """What to tell the user; None for an error that is no user's."""
        return StoreError(f"{where}: {one_line(error)}") if isinstance(error, OSError) else None


class FolderStore(Store):
    """A folder that behaves like a bucket. Made by the first put; symbolic links are followed."""

    def __init__(self, folder: str | Path) -> None:
        self.root = Path(folder).expanduser().absolute()  # workers have other working directories
        super().__init__(str(self.root))

    def __reduce__(self) -> tuple[Any, ...]:
        return FolderStore, (self.root,)

    def list(self, prefix: str = "") -> Iterator[Object]:
        self._count("list")
        with self._explained(prefix):
            if not self.root.is_dir():
                raise NotFound(f"{self.url}: no such folder: correct the path, or make the folder")
            yield from self._walk(self.root, "", prefix, ())

    def _walk(self, folder: Path, below: str, prefix: str, above: tuple[str, ...]) -> Iterator[Object]:
        real = os.path.realpath(folder)
        if real in above:
            return  # a symbolic link to a folder that it lies in
        try:
            # A folder's keys all begin with its name and `/`: in this order the whole listing is sorted by key.
            entries = sorted((below + entry.name + "/" * entry.is_dir(), entry) for entry in os.scandir(folder))
        except FileNotFoundError:
            return  # deleted since
        for key, entry in entries:
            if key.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._walk(folder / entry.name, key, prefix, (*above, real))
            elif key.startswith(prefix) and entry.is_file() and not entry.name.startswith(_PARTIAL):
                try:
                    key.encode()
                    state = entry.stat()
                except UnicodeEncodeError:
                    raise StoreError(f"{self.url}: the file name {os.fsencode(key)!r} is not UTF-8: rename it") from None
                except FileNotFoundError:
                    continue  # deleted since
                yield Object(key, state.st_size, f"{state.st_size:x}-{state.st_mtime_ns:x}", state.st_mtime)

    def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        first = start or 0
        with self._explained(key), self._open(key) as file:
            file.seek(first)
            return file.read() if stop is None else file.read(max(0, stop - first))

    def download(self, key: str, path: Path) -> None:
        with self._explained(key), self._open(key) as file:
            self._write(path, lambda copy: shutil.copyfileobj(file, copy, PART))

    def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str | None = None) -> None:  # noqa: ARG002
        self._count("put")
        with self._explained(key):
            if not self._write(self._path(key), lambda file: file.write(data), if_absent):
                raise Exists(f"{self._where(key)}: exists already")

    def upload(self, key: str, path: Path, *, content_type: str | None = None) -> None:  # noqa: ARG002
        self._count("put")
        with self._explained(key), path.open("rb") as file:
            self._write(self._path(key), lambda copy: shutil.copyfileobj(file, copy, PART))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._count("delete")
            with self._explained(key):
                path = self._path(key)
                with suppress(FileNotFoundError, NotADirectoryError):
                    path.unlink()
                with suppress(OSError):  # a folder exists as long as something is in it, as in a bucket
                    for folder in path.parents[: -len(self.root.parts)]:
                        folder.rmdir()

    def _path(self, key: str) -> Path:
        if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
            raise StoreError(f"{self._where(key)}: cannot be a file in a folder: parts of a key may not be empty, `.` or `..`")
        return self.root / key

    def _open(self, key: str) -> BinaryIO:
        self._count("get")
        try:
            return self._path(key).open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"{self._where(key)}: no such file") from None

    def _write(self, path: Path, fill: Callable[[BinaryIO], Any], if_absent: bool = False) -> bool:
        """Writes under another name first, so that nobody sees half a file. False: `if_absent`, and there is one."""
        partial = path.with_name(f"{_PARTIAL}{secrets.token_hex(8)}")
        try:
            with _create(partial) as file:
                fill(file)
            if if_absent:
                try:
                    os.link(partial, path)  # unlike a rename, fails when there is one
                except FileExistsError:
                    return False
            else:
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return True


def _create(path: Path) -> BinaryIO:
    """Opens a new file. Tries again when a delete elsewhere takes the folder away meanwhile, because it is empty."""
    for _ in range(20):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
        except (FileNotFoundError, FileExistsError) as error:
            taken_away = error
    raise taken_away


def one_line(error: Exception) -> str:
    """What an error says, without line breaks."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename!r}" if error.filename else "")
    return " ".join(str(error).split())
