"""The lease on a run's name, which ensures that a run has one writer.

runs/<run>/lease-<number, 6 digits>.json              the object with the highest number owns the run's name

`Lease` is the driver's side. `Fence` is what every process of the run knows of the lease; writers check it before they write.
"""

import json
import logging
import math
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Self

from trainer import UserError
from trainer.storage import Exists, NotFound, Store, StoreError
from trainer.storage.parsing import Damaged, json_object
from trainer.storage.store import list_keys

log = logging.getLogger(__name__)

DRIFT = 0.1
"""A holder believes in its lease for this fraction less than the others grant it, because clocks run at different speeds."""
LONGEST_SECONDS = 1e6
"""Bound of checkpoint.lease_seconds, and so of what a lease object may ask others to wait."""


class RunInUse(UserError):  # noqa: N818
    """A live job owns the run's name; the one-line message names the run, the holder and the fix."""


class LeaseLost(StoreError):  # noqa: N818
    """This process may not write: its lease is over, or it does not know whether it still holds."""


class WaitStopped(Exception):  # noqa: N818 - not an error
    """A stop was requested while waiting for the lease."""


def clock() -> float:
    """Seconds on a clock that never goes back, that goes on while the machine sleeps, and that the processes of a machine share."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


class Fence:
    """Until when a process may write, on its own clock. It starts without the right, and each renewal extends it."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        """Of the lease; 0: not taken yet."""
        self.lost = threading.Event()
        """Set for good when another job owns the run's name."""
        self._until = -math.inf
        self._extended = threading.Event()

    @property
    def until(self) -> float:
        """End of the right to write, in seconds of `clock`."""
        return self._until

    @property
    def valid(self) -> bool:
        return not self.lost.is_set() and clock() < self._until

    def extend(self, until: float) -> None:
        """`until`: in seconds of `clock`."""
        self._until = until
        self._extended.set()

    def lose(self) -> None:
        self.lost.set()
        self._extended.set()

    def check(self) -> None:
        """Raises LeaseLost unless this process may write now."""
        if not self.valid:
            raise LeaseLost(
                "Another job has taken over the run, so nothing is written any more."
                if self.lost.is_set()
                else "The lease on the run's name has not been renewed in time, so nothing is written.",
                transient=True,
            )

    def wait(self, seconds: float, paused: Callable[[], None] = lambda: None) -> None:
        """Returns when this process may write. Calls `paused` once if it has to wait. Raises LeaseLost when another job has taken
        over, or after `seconds`."""
        if self.valid:
            return
        paused()
        deadline = clock() + seconds
        while not self.valid and not self.lost.is_set() and clock() < deadline:
            self._extended.clear()
            if not self.valid:
                self._extended.wait(min(1.0, seconds / 10))
        self.check()


class Lease:
    """Owns a run's name while the context is open: `with Lease(store, run, seconds) as lease`.

    Needs only conditional puts and compares no clocks. Every `seconds` / 3 the holder rewrites its object with a higher beat
    count. A contender polls the highest object. If the count changes, the holder is alive (RunInUse at once). If the object is
    marked as released, the name is free. If it does not change for `seconds`, the holder is dead. The contender then puts the
    next number, which only one of several contenders can do.

    A heartbeat extends `fence` from the moment at which it began, and only if a listing after it shows no higher number. So the
    holder's right to write ends, on its own clock, before a contender can have waited for `seconds`: whoever was paused or cut off
    finds its fence expired. A contender that finds the old object changed after its own put waits once more.

    A heartbeat that fails because of storage is logged and retried, without limit; meanwhile the fence may expire, and returns
    with the next heartbeat if no one else took over. `lost` is set only when a higher number exists, or another's object under
    our own number: the run must then end.
    """

    def __init__(self, store: Store, run: str, seconds: float, stop: threading.Event | None = None) -> None:
        """`stop`: ends the wait for a former holder, with WaitStopped."""
        self.fence = Fence()
        self.renewed: Callable[[float], None] = lambda _until: None
        """Called with Fence.until after each renewal, in the lease's own thread."""
        self._store = store
        self._run = run
        self._seconds = seconds
        self._stop_waiting = stop
        self._entered = False
        self._sent = 0.0
        self._record: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "lease_seconds": seconds,
            "beat": 0,
            "released": False,
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)

    @property
    def lost(self) -> threading.Event:
        return self.fence.lost

    def __enter__(self) -> Self:
        """Raises RunInUse when another job holds the name; waits up to the old holder's lease seconds to find out. Raises
        WaitStopped when a stop is requested meanwhile, and StoreError, also for a server that ignores conditions."""
        owner = self._highest_owner()  # before the watch: an owner that appears during it is the live holder
        former, watched = self._watch()
        number = max(former, owner) + 1
        free = not former or bool(watched and watched.get("released"))
        sent = clock()
        try:
            self._put(number, if_absent=True)
        except Exists:
            number, record = self._highest()
            if record is None or record.get("token") != self._record["token"]:  # equal if the first response was lost
                raise self._in_use(record) from None
        self.fence.number = number
        try:
            self._check_conditions()
            if self._numbers_with_mine()[-1] > number:  # while this process was delayed, others came and went
                self._store.delete([self._key(number)])
                raise self._in_use(self._highest()[1])
        except StoreError:
            if free:  # otherwise the former holder may still believe in its lease, and the next contender has to wait too
                self._release()
            raise
        self._extend(sent)
        now = self._read(former)
        self._store.delete([self._key(other) for other in self._numbers() if other < number])
        self._store = self._store.impatient(self._seconds / 6)  # two attempts fit between two heartbeats
        self._thread.start()
        try:
            if not free and now and now != watched and not now.get("released"):
                log.warning('run "%s": %s woke up as its name was taken over; waiting until it stops', self._run, _holder(now))
                self._pause(self._patience(now))
        except BaseException:
            self._stop.set()
            raise
        self._entered = True
        self._extend(self._sent)
        return self

    def __exit__(self, *_: object) -> None:
        """Releases the name, unless it was lost. If storage fails, the next job has to wait."""
        self._stop.set()
        self._thread.join(self._seconds)
        if self.lost.is_set() or self._thread.is_alive():
            return
        self.fence.extend(-math.inf)
        self._release()

    def _release(self) -> None:
        try:
            if self._numbers_with_mine()[-1] <= self.fence.number:
                self._record["released"] = True
                self._put(self.fence.number)
        except StoreError as error:
            log.warning('run "%s" was not released; its name stays taken for %g s: %s', self._run, self._seconds, error)

    def _keep_alive(self) -> None:
        """Sends heartbeats until the lease is released or lost."""
        while not self.lost.is_set() and not self._stop.wait(self._seconds / 3):
            try:
                self._beat()
            except Exception as error:  # whatever the error, without heartbeats the name is lost
                slow = f"on slow storage, raise checkpoint.lease_seconds = {self._seconds:g}"
                log.warning('the heartbeat of run "%s" failed and will be retried (%s): %s', self._run, slow, error)

    def _beat(self) -> None:
        """Sends one heartbeat and extends the fence, or loses it."""
        sent = clock()
        mine = self._read(self.fence.number)
        if mine is not None and mine.get("token") != self._record["token"]:
            return self._lose(mine)
        if mine is None and self._numbers()[-1:] > [self.fence.number]:
            return self._lose(self._highest()[1])  # and the successor has deleted our object
        self._record["beat"] += 1
        self._put(self.fence.number)
        if self._numbers_with_mine()[-1] > self.fence.number:
            return self._lose(self._highest()[1])
        return self._extend(sent)

    def _extend(self, sent: float) -> None:
        """`sent`: when the heartbeat began."""
        self._sent = sent
        if not self._entered:  # the former holder may still believe in its lease
            return
        self.fence.extend(sent + self._seconds * (1 - DRIFT))
        self.renewed(self.fence.until)

    def _lose(self, record: Mapping[str, Any] | None) -> None:
        self.fence.lose()
        log.error('run "%s" was taken over by %s while this process sent no heartbeat', self._run, _holder(record))

    def _watch(self) -> tuple[int, dict[str, Any] | None]:
        """Waits until the holder of the highest number has released it or is dead. Returns that number and its last record; 0 if
        there is none."""
        looked = clock()
        number, record = self._highest()
        if not number:  # an empty listing is believed when a second one agrees
            number, record = self._highest()
        patience = self._patience(record)
        deadline = clock() + patience
        if number and not (record or {}).get("released"):
            log.warning(
                'run "%s" is held by %s, which may be dead: waiting up to %g s for a sign of life. Ctrl-C ends the wait.',
                self._run,
                _holder(record),
                patience,
            )
        while number and not (record or {}).get("released"):
            if looked > deadline:  # when the last request began: its answer may be old by now
                log.warning('taking over run "%s" from %s: no heartbeat for %g s', self._run, _holder(record), patience)
                break
            self._pause(self._seconds / 10)
            looked = clock()
            highest, found = self._highest()
            if highest > number or (highest == number and None not in (record, found) and record != found):
                raise self._in_use(found)
            if record is None and found is not None and highest == number:  # readable at last: watch it from now on
                record, patience = found, self._patience(found)
                deadline = clock() + patience
        return number, record

    def _patience(self, record: Mapping[str, Any] | None) -> float:
        """Seconds without a heartbeat after which the holder is dead."""
        seconds = (record or {}).get("lease_seconds", 0)
        sensible = isinstance(seconds, int | float) and 0 <= seconds <= LONGEST_SECONDS
        return max(self._seconds, seconds if sensible else 0)

    def _pause(self, seconds: float) -> None:
        if self._stop_waiting is None:
            sleep(seconds)
        elif self._stop_waiting.wait(seconds):
            raise WaitStopped

    def _check_conditions(self) -> None:
        """Tries whether the store refuses a conditional put on our own object. Raises StoreError if it does not."""
        try:
            self._put(self.fence.number, if_absent=True, probe=uuid.uuid4().hex)
        except Exists:
            return
        raise StoreError(
            f"{self._store.url}: the server ignores conditions (it overwrote an object in spite of If-None-Match: *), so two jobs "
            "could own one run. Fix: use a server with conditional writes, or a newer version of this one."
        )

    def _in_use(self, record: Mapping[str, Any] | None) -> RunInUse:
        return RunInUse(
            f'Run "{self._run}" is in use by {_holder(record)}. Fix: wait for that job, stop it, or choose another run.name.',
            transient=True,
        )

    def _key(self, number: int) -> str:
        return f"runs/{self._run}/lease-{number:06d}.json"

    def _numbers(self) -> list[int]:
        """The number of each lease object, in order."""
        keys = list_keys(self._store, f"runs/{self._run}/lease-")
        return sorted(int(match[1]) for key in keys if (match := re.search(r"/lease-(\d{6,})\.json$", key)))

    def _numbers_with_mine(self) -> list[int]:
        """As `_numbers`. A listing without our own object is wrong: it may lack a successor's too. Raises StoreError for one."""

        def look() -> list[int]:
            if self.fence.number not in (numbers := self._numbers()):
                raise NotFound(f"{self._store.url}/{self._key(self.fence.number)}: written, but missing from the listing")
            return numbers

        return self._store.read_again(look, NotFound)

    def _highest_owner(self) -> int:
        """The highest lease number that owns checkpoints: lease objects may have been deleted by hand."""
        keys = list_keys(self._store, prefix := f"runs/{self._run}/checkpoints/")
        return max((int(match[1]) for key in keys if (match := re.match(r"(\d{6,})-", key.removeprefix(prefix)))), default=0)

    def _highest(self) -> tuple[int, dict[str, Any] | None]:
        """The highest number and its record, None if that cannot be read; (0, None) if there is no lease object."""
        number = 0
        for _ in range(3):  # the holder of a higher number may just have deleted it
            number = next(reversed(self._numbers()), 0)
            if not number or (record := self._read(number)) is not None:
                return number, record if number else None
        return number, None

    def _read(self, number: int) -> dict[str, Any] | None:
        """The record of a lease object; None if it is missing or damaged."""
        try:
            return json_object(self._store.get(self._key(number)))
        except (NotFound, Damaged):
            return None

    def _put(self, number: int, if_absent: bool = False, **more: str) -> None:
        self._store.put(self._key(number), json.dumps(self._record | more).encode(), if_absent=if_absent)


def _holder(record: Mapping[str, Any] | None) -> str:
    process, host, since = ((record or {}).get(name, "?") for name in ("pid", "host", "since"))
    text = f"process {process} on {host} (since {since})"
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]
