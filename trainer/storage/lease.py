"""The lease on a run's name, which ensures that a run has one writer.

runs/<run>/lease-<number, 6 digits>.json              the object with the highest number owns the run's name
"""

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self

from trainer import UserError
from trainer.storage import Exists, NotFound, Store, StoreError
from trainer.storage.store import list_keys

log = logging.getLogger(__name__)


class RunInUse(UserError):  # noqa: N818
    """A live job owns the run's name; the one-line message names the run, the holder and the fix."""


class Lease:
    """Owns a run's name while the context is open: `with Lease(store, run, seconds) as lease`.

    Needs only conditional puts and compares no clocks. Every `seconds` / 3 the holder rewrites its object with a higher beat
    count. A contender polls the highest object. If the count changes, the holder is alive (RunInUse at once). If the object is
    marked as released, the name is free. If it does not change for `seconds`, the holder is dead. The contender then puts the
    next number, which only one of several contenders can do.

    A heartbeat that fails because of storage is logged and retried, without limit: as long as storage does not answer, no other
    job can take over the name either. `lost` is set only when a higher number exists: this process was paused or cut off for so
    long that another one took over. The run must then stop writing.
    """

    def __init__(self, store: Store, run: str, seconds: float) -> None:
        self.lost = threading.Event()
        self._store = store
        self._run = run
        self._seconds = seconds
        self._number = 0
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

    def __enter__(self) -> Self:
        """Raises RunInUse when another job holds the name. Waits up to the old holder's lease seconds to find out."""
        number = self._watch() + 1
        try:
            self._put(number, if_absent=True)
        except Exists:
            number, record = self._highest()
            if record.get("token") != self._record["token"]:  # equal if the response to our first attempt was lost
                raise self._in_use(record) from None
        highest, record = self._highest()
        if highest > number:  # while this process was delayed, others came and went and freed its number
            self._store.delete([self._key(number)])
            raise self._in_use(record)
        self._number = number
        self._store.delete([key for other, key in self._numbers() if other < number])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Releases the name, unless it was lost. If storage fails, the next job has to wait."""
        self._stop.set()
        self._thread.join(self._seconds)
        if self.lost.is_set() or self._thread.is_alive():
            return
        try:
            if self._highest()[0] <= self._number:
                self._record["released"] = True
                self._put(self._number)
        except StoreError as error:
            log.warning('run "%s" was not released; its name stays taken for %g s: %s', self._run, self._seconds, error)

    def _keep_alive(self) -> None:
        """Sends heartbeats until the lease is released or lost."""
        while not self.lost.is_set() and not self._stop.wait(self._seconds / 3):
            try:
                self._beat()
            except Exception as error:  # whatever the error, without heartbeats the name is lost
                log.warning('the heartbeat of run "%s" failed and will be retried: %s', self._run, error)

    def _beat(self) -> None:
        """Sends one heartbeat, or sets `lost`."""
        highest, record = self._highest()
        if highest > self._number:
            self.lost.set()
            log.error('run "%s" was taken over by %s while this process sent no heartbeat', self._run, _holder(record))
            return
        self._record["beat"] += 1
        self._put(self._number)

    def _watch(self) -> int:
        """Waits until the holder of the highest number has released it or is dead. Returns that number; 0 if there is none."""
        looked = time.monotonic()
        number, record = first = self._highest()
        patience = record.get("lease_seconds", 0)
        patience = max(self._seconds, patience if isinstance(patience, int | float) else 0)
        deadline = time.monotonic() + patience
        if number and not record.get("released"):
            log.info('run "%s" is held by %s: waiting up to %g s for a heartbeat', self._run, _holder(record), patience)
        while number and not record.get("released"):
            if (number, record) != first:
                raise self._in_use(record)
            if looked > deadline:  # when the last request began: its answer may be old by now
                log.warning('taking over run "%s" from %s: no heartbeat for %g s', self._run, _holder(record), patience)
                break
            time.sleep(self._seconds / 10)
            looked = time.monotonic()
            number, record = self._highest()
        return number

    def _in_use(self, record: Mapping[str, Any]) -> RunInUse:
        return RunInUse(
            f'Run "{self._run}" is in use by {_holder(record)}. Fix: wait for that job, stop it, or choose another run.name.',
            transient=True,
        )

    def _key(self, number: int) -> str:
        return f"runs/{self._run}/lease-{number:06d}.json"

    def _numbers(self) -> list[tuple[int, str]]:
        """Number and key of each lease object, in order."""
        keys = list_keys(self._store, f"runs/{self._run}/lease-")
        return sorted((int(match[1]), key) for key in keys if (match := re.search(r"/lease-(\d+)\.json$", key)))

    def _highest(self) -> tuple[int, dict[str, Any]]:
        """The highest number and its record, empty if that is not a JSON object; (0, {}) if there is no lease object."""
        while numbers := self._numbers():
            number, key = numbers[-1]
            try:
                record = json.loads(self._store.get(key))
                return number, record if isinstance(record, dict) else {}
            except NotFound:  # the holder of a higher number has just deleted it
                continue
            except ValueError:
                return number, {}
        return 0, {}

    def _put(self, number: int, if_absent: bool = False) -> None:
        self._store.put(self._key(number), json.dumps(self._record).encode(), if_absent=if_absent)


def _holder(record: Mapping[str, Any]) -> str:
    return f"process {record.get('pid', '?')} on {record.get('host', '?')} (since {record.get('since', '?')})"
