"""What every store can do, and the store that is a folder.

Owns: how objects are named, what a store promises, what goes wrong with one. trainer.storage.s3 adds the store that is an S3
bucket and opens either; everybody else imports from there.

Keys are below the store's prefix, their parts separated by `/`. Whatever goes wrong is a StoreError of one line.
"""

import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer import UserError
from trainer.formatting import one_line

THREADS = 16
"""Requests that one call has under way at the same time, if it is not told otherwise."""
MAX_THREADS = 64
PART = 16 * 2**20
"""Bytes of one part of a large object, which is also the size from which an object counts as large."""


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


def list_keys(store: Store, prefix: str) -> list[str]:
    """Keys that begin with `prefix`; none where the folder does not exist yet."""
    try:
        return [entry.key for entry in store.list(prefix)]
    except NotFound:  # a folder that nothing was put into yet
        return []
