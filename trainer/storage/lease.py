"""The lease on a run's name, which makes "one writer" true.

runs/<run>/lease-<number, 6 digits>.json              the highest number owns the run's name
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
    """A live job owns the run's name; one line naming the run, its holder and the way out."""


class Lease:
    """Owns a run's name as long as it lives: `with Lease(store, run, seconds) as lease`.

    Needs nothing but puts that fail if the object is there, and compares no clocks: every `seconds` / 3 the holder rewrites
    its object with a higher count. Who wants the name watches the highest object: a changing count means a live holder
    (RunInUse, at once), a released one is free, one that stands still for `seconds` belongs to a dead process. The next
    number can be put only once, so one of several contenders wins.

    A heartbeat that fails for want of storage is logged and tried again, however long: nobody can take the name over through
    a storage that does not answer. `lost` is set only when a higher number is seen: this process was paused or cut off for
    so long that another took over. Then the run must stop writing.
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
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Raises RunInUse when another job holds the name; takes up to the old holder's lease seconds to find out."""
        number = self._watch() + 1
        try:
            self._put(number, if_absent=True)
        except Exists:
            number, record = self._highest()
            if record.get("token") != self._record["token"]:  # ours if the answer to the first try was lost
                raise self._in_use(record) from None
        highest, record = self._highest()
        if highest > number:  # while this process was held up, others came, went and cleaned up: its number was free again
            self._store.delete([self._key(number)])
            raise self._in_use(record)
        self._number = number
        self._store.delete([key for other, key in self._numbers() if other < number])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Releases the name, unless it was lost. Storage that fails only costs the next job the wait."""
        self._stop.set()
        self._thread.join(self._seconds)
        if self.lost.is_set() or self._thread.is_alive():
            return
        try:
            if self._highest()[0] <= self._number:
                self._record["released"] = True
                self._put(self._number)
        except StoreError as error:
            log.warning('the name of run "%s" stays taken for %g s: %s', self._run, self._seconds, error)

    def _keep(self) -> None:
        while not self._stop.wait(self._seconds / 3):
            try:
                highest, record = self._highest()
                if highest > self._number:
                    self.lost.set()
                    log.error('run "%s" was taken over by %s while this process showed no life', self._run, _holder(record))
                    return
                self._record["beat"] += 1
                self._put(self._number)
            except Exception as error:  # a heart that stops beating gives the name away
                log.warning('heartbeat of run "%s" failed and is tried again: %s', self._run, error)

    def _watch(self) -> int:
        """Returns the highest number in use once its holder has released it or is dead; 0 if there is none."""
        number, record = first = self._highest()
        patience = record.get("lease_seconds", 0)
        patience = max(self._seconds, patience if isinstance(patience, int | float) else 0)
        deadline = time.monotonic() + patience
        if number and not record.get("released"):
            log.info('run "%s" was held by %s: waiting up to %g s for a sign of life', self._run, _holder(record), patience)
        while number and not record.get("released"):
            if (number, record) != first:
                raise self._in_use(record)
            if time.monotonic() > deadline:
                log.warning('run "%s" is taken over from %s: no sign of life for %g s', self._run, _holder(record), patience)
                break
            time.sleep(self._seconds / 10)
            number, record = self._highest()
        return number

    def _in_use(self, record: Mapping[str, Any]) -> RunInUse:
        return RunInUse(
            f'run "{self._run}" is in use by {_holder(record)}: wait for that job, stop it, or choose another name (run.name)',
            transient=True,
        )

    def _key(self, number: int) -> str:
        return f"runs/{self._run}/lease-{number:06d}.json"

    def _numbers(self) -> list[tuple[int, str]]:
        keys = list_keys(self._store, f"runs/{self._run}/lease-")
        return sorted((int(match[1]), key) for key in keys if (match := re.search(r"/lease-(\d+)\.json$", key)))

    def _highest(self) -> tuple[int, dict[str, Any]]:
        """The highest number and what its object says, nothing if that is no JSON object; 0 if there is none."""
        while numbers := self._numbers():
            number, key = numbers[-1]
            try:
                record = json.loads(self._store.get(key))
                return number, record if isinstance(record, dict) else {}
            except NotFound:  # cleaned up meanwhile by the holder of a higher one
                continue
            except ValueError:
                return number, {}
        return 0, {}

    def _put(self, number: int, if_absent: bool = False) -> None:
        self._store.put(self._key(number), json.dumps(self._record).encode(), if_absent=if_absent)


def _holder(record: Mapping[str, Any]) -> str:
    return f"process {record.get('pid', '?')} on {record.get('host', '?')} (since {record.get('since', '?')})"
