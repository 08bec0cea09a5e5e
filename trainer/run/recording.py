"""Stores a run's epochs for the report, in the background. A failure to store them never ends training."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from spikewise.findings import Findings
from trainer.epoch import EpochReport
from trainer.storage import Store, StoreError, results

log = logging.getLogger(__name__)


class Recorder:
    """Stores the records of one run, one after the other, in a thread of its own. Only rank 0 uses it."""

    def __init__(self, store: Store, run: str) -> None:
        self._store = store
        self._run = run
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="epoch-records")

    def count_start(self, facts: Callable[[], Mapping[str, Any]]) -> int:
        """Counts a start of the run's workers and stores its `facts`, as results.put_start takes them. Returns the number of
        earlier starts; 0 when storage fails."""
        number = 0
        try:
            number = results.count_start(self._store, self._run)
            results.put_start(self._store, self._run, number, facts())
        except StoreError as error:
            log.warning("this start of the workers was not counted: %s", error)
        return number

    def record(self, report: EpochReport, arrays: Mapping[str, np.ndarray], findings: Findings | None) -> None:
        """Stores an epoch in the background. `findings`: None when the diagnosis failed. Never raises."""
        self._thread.submit(self._record, report, arrays, findings)

    def reconcile(self, history: Sequence[EpochReport], findings: Findings | None) -> None:
        """Makes the stored records equal to `history` and `findings`.

        The two may differ: the run may have died, or storage may have failed, between an epoch's checkpoint and its record; and
        after a return to an earlier checkpoint, records of abandoned epochs still exist. `findings`: None when they are not known.
        """
        try:
            results.replace_history(self._store, self._run, history)
            if findings is not None:
                results.put_findings(self._store, self._run, findings)
        except StoreError as error:
            log.warning("the report may lack epochs: %s", error)

    def close(self) -> None:
        """Waits until everything is stored or has failed, and accepts no more records."""
        self._thread.shutdown()

    def _record(self, report: EpochReport, arrays: Mapping[str, np.ndarray], findings: Findings | None) -> None:
        try:
            results.put_epoch(self._store, self._run, report, arrays)
            if findings is not None:
                results.put_findings(self._store, self._run, findings)
        except StoreError as error:
            log.warning("the results of epoch %d were not stored: %s", report.epoch, error)
