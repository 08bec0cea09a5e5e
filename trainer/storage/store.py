"""The interface of every store: how objects are named, what a store guarantees, and which errors it raises.

trainer.storage.folder and trainer.storage.s3 implement it; trainer.storage.open_store chooses between them.

Keys are relative to the store's prefix; `/` separates their parts. Every failure is a StoreError with a one-line message.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from trainer import UserError
from trainer.formatting import one_line

THREADS = 16
"""Default number of concurrent requests of one call."""
MAX_THREADS = 64
PART = 16 * 2**20
"""Bytes of one part of a large object. Objects from this size on are transferred in parts."""


T = TypeVar("T")


class StoreError(UserError):
    """Storage failed; the one-line message names the object, the problem and the fix."""


class NotFound(StoreError):  # noqa: N818
    """The object or folder does not exist."""


class Exists(StoreError):  # noqa: N818
    """A conditional put failed because the object already exists."""


class Archived(StoreError):  # noqa: N818
    """The object cannot be read before it is restored."""


@dataclass(frozen=True, slots=True)
class Object:
    """One entry of a listing."""

    key: str
    size: int
    """Bytes."""
    etag: str
    """Changes when the content does. S3: the server's ETag without quotes. Folder: size and modification time in ns, because a
    content hash would have to read every file."""
    archived: bool = False
    """Whether its storage class is an archive, from which it can be read only once it is restored."""


@dataclass(slots=True)
class _Counts:
    """What a store and its variants have done, counted together."""

    requests: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    errors: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Store(ABC):
    """A prefix in a bucket, or a folder. Can be pickled, and used from several threads."""

    PAUSES: ClassVar[tuple[float, ...]] = (0.0,)
    """Seconds before each further read of an answer that is hard to believe; see `read_again`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._counts = _Counts()
        self._guard: Callable[[], None] | None = None
        self._poll: Callable[[], None] | None = None

    @property
    def requests(self) -> Counter[str]:
        """Requests sent for each operation, retries included; with those of the stores that `guarded` and `impatient` made."""
        return self._counts.requests

    @property
    def retries(self) -> int:
        """Requests sent again after a failure."""
        return self._counts.retries

    @property
    def errors(self) -> int:
        """Operations that failed after all retries. A missing object or a lost conditional put is not a failure."""
        return self._counts.errors

    def guarded(self, guard: Callable[[], None]) -> Self:
        """This store for a writer that may lose its right to write: calls `guard` directly before each change, retries included.
        An exception that it raises ends the operation. Not kept by pickling."""
        other = self._variant()
        other._guard = guard
        return other

    def interruptible(self, poll: Callable[[], None]) -> Self:
        """This store for long series of requests: calls `poll` before each request, retries included. An exception that it raises
        ends the operation. Not kept by pickling."""
        other = self._variant()
        other._poll = poll
        return other

    def impatient(self, seconds: float) -> Self:  # noqa: ARG002
        """This store for small objects that are worthless after `seconds`: a request that hangs is given up by then."""
        return self

    def _variant(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Object]:
        """The objects whose keys start with `prefix`, sorted by key (by code points).

        Folder markers (objects whose keys end in `/`) are left out. Raises NotFound for a missing folder, and StoreError.
        """

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The content of an object. Raises NotFound and StoreError."""

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Writes the content of an object to the file `path`, atomically. Raises NotFound and StoreError."""

    @abstractmethod
    def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str | None = None) -> None:
        """Writes an object. Raises StoreError, and with `if_absent` Exists when the object already exists.

        After a lost response only the content tells whether this call wrote the object. Callers that compete for a key must
        therefore put something unique into `data`.
        """

    @abstractmethod
    def upload(self, key: str, path: Path, *, content_type: str | None = None) -> None:
        """Writes an object from the file `path`; a failed upload leaves nothing behind. Raises StoreError."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Deletes objects; missing ones are ignored. Raises StoreError."""

    @abstractmethod
    def sweep(self, prefix: str, older: float) -> int:
        """Removes what killed writers left below `prefix` more than `older` seconds ago and no listing shows: partial files, parts
        of multipart uploads. Returns their number. Raises StoreError."""

    def read_again(self, read: Callable[[], T], *doubtful: type[Exception]) -> T:
        """The result of `read`, which is called again while it raises one of `doubtful`: a single answer, such as a 404 or an
        error page from a proxy, proves nothing about an object. Raises what the last call raised."""
        for seconds in self.PAUSES:
            try:
                return read()
            except doubtful:
                time.sleep(seconds)
        return read()

    def get_many(self, keys: Iterable[str], threads: int = THREADS) -> Iterator[tuple[str, bytes | StoreError]]:
        """Reads objects in parallel and yields (key, content or error) in the order of `keys`.

        Uses at most MAX_THREADS threads and holds at most 2 * threads objects in memory.
        """
        threads = min(threads, MAX_THREADS)
        waiting: deque[tuple[str, Future[bytes | StoreError]]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="store")
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
        if self._poll:
            self._poll()
        with self._counts.lock:
            self.requests[operation] += 1

    def _check_guard(self) -> None:
        if self._guard:
            self._guard()

    def _where(self, key: str) -> str:
        """The object's URL for a message, escaped because keys may contain line breaks."""
        return repr(f"{self.url}/{key}")[1:-1]

    @contextmanager
    def _explained(self, key: str = "") -> Iterator[None]:
        """Converts the exceptions of an operation to StoreError and counts them."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            explained = self._explain(error, self._where(key))
            if not isinstance(explained, NotFound):
                with self._counts.lock:
                    self._counts.errors += 1
            if explained is None:
                raise
            raise explained from None

    def _explain(self, error: Exception, where: str) -> StoreError | None:
        """The StoreError for a failed operation; None if the exception is a bug of ours."""
        return StoreError(f"{where}: {one_line(error)}") if isinstance(error, OSError) else None


def list_keys(store: Store, prefix: str) -> list[str]:
    """The keys that start with `prefix`; empty if the store's folder does not exist yet."""
    try:
        return [entry.key for entry in store.list(prefix)]
    except NotFound:
        return []
