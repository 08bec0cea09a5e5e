"""Checkpoints in a store.

Separation of concerns: the worker decides what a checkpoint contains and when to save it. This module makes it exist whole or
not at all, finds the newest intact one and deletes old ones. checkpoint_files.py knows what is in one, and lineage.py which of the
stored ones belong to the run as it is now. All handle named arrays and JSON, and know nothing of TensorFlow.

    runs/<run>/checkpoints/<owner and save>/<step, 9 digits>/state.safetensors   the arrays
                                                             meta.json           everything else the worker needs; NaN is allowed
                                                             commit.json         size and SHA-256 of both; written last
                newest.json                                                      the step of the last commit, as evidence

A checkpoint exists when its commit object does. No object is ever overwritten, and the names contain the owner (lineage.py), so
that no other process can alter or replace one. A save is acknowledged when a listing after its commit shows no later owner.
"""

import logging
import math
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainer.storage import Exists, NotFound, Store, StoreError
from trainer.storage.checkpoint_files import CheckpointError, Restored, loss_of, read, write
from trainer.storage.files import scratch
from trainer.storage.lineage import (
    CLAIM,
    COMMIT,
    KEEPS,
    Owner,
    Save,
    Stored,
    current,
    losses_known,
    owner_folder,
    read_listing,
    superseded,
)
from trainer.storage.parsing import Damaged, sealed, unsealed
from trainer.storage.store import list_keys

log = logging.getLogger(__name__)

NEWEST = "newest.json"


@dataclass(frozen=True, slots=True)
class SaveStats:
    """The results of the saves of one `Checkpoints`."""

    step: int | None = None
    """Step of the last committed checkpoint."""
    committed: float | None = None
    """Unix time of that commit."""
    seconds: float | None = None
    """Duration of that save."""
    failures: int = 0
    skipped: int = 0
    """Saves in the background that were dropped, because storage is slower than the epochs."""


class Checkpoints:
    """The checkpoints of one run. One thread makes all saves, in the order of the requests."""

    def __init__(self, store: Store, run: str, keep_last: int, lease: int = 0) -> None:
        """`lease`: number of the lease under which this process may save (Fence.number); readers need none. The store of a writer
        should be guarded by its fence."""
        self.stats = SaveStats()
        self.superseded = threading.Event()
        """Set when another process has claimed the run's checkpoints: this one can commit no more."""
        self._store = store
        self._run = run
        self._prefix = f"runs/{run}/checkpoints/"
        self._evidence = f"runs/{run}/{NEWEST}"  # not among them: what deletes them may delete all of the folder
        self._keep_last = keep_last
        self._lease = lease
        self._owner: Owner | None = None
        self._saves = 0
        self._losses: dict[Save, float | None] = {}
        """The loss of each save whose commit object was read; None if it has none."""
        self._keeps: dict[Owner, list[str]] = {}
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[Mapping[str, np.ndarray], Mapping[str, Any]]] = {}
        self._keep: frozenset[int] = frozenset()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def steps(self) -> list[int]:
        """The steps of the run's checkpoints, in order; some may be damaged. Raises StoreError."""
        return [save.step for save in self._current(self._listed_surely())]

    def keep(self, steps: Collection[int]) -> None:
        """Keeps the checkpoints of exactly these steps, as far as they exist, beyond those that `save` keeps. Call it before the
        save that would delete them."""
        with self._lock:
            self._keep = frozenset(steps)

    def claim(self) -> Restored | None:
        """Makes this process the only writer of the run's checkpoints, and returns the newest intact one; None for a new run, and
        for one that went back to its beginning. From then on, what earlier owners commit does not count.

        Raises CheckpointError when a later lease owns the run, or when checkpoints exist but none is intact: to begin again at 0 is
        for a person to decide. Raises UserError like `load`, and StoreError.
        """
        self._take_ownership()
        stored = self._listed_surely()
        found = self._first_intact(reversed(self._current(stored)))
        recorded = self._recorded_step()
        known = stored.committed if recorded is None else self._current(stored)
        if found is None and (recorded or known):
            lost = f"its last one is of step {recorded}" if recorded else f"{len(known)} are stored"
            raise CheckpointError(
                f"Run {self._run} has saved checkpoints ({lost}), but no intact one is found in {self._store.url}/{self._prefix}. "
                f"Fix: restore them, or delete the folder runs/{self._run}/ to begin at epoch 1, or set another run.name."
            )
        if found and recorded and recorded > found.step:
            log.warning("the run had saved step %d, but continues from step %d: the newest intact checkpoint", recorded, found.step)
        self._build_on([save for save in self._current(stored) if found and save.step <= found.step])
        return found

    def go_back(self, step: int) -> None:
        """Makes this process the only writer of the run's checkpoints, and those of `step` and earlier all that the run has: later
        ones count no longer. 0: the run begins again.

        Raises CheckpointError when a later lease owns the run, and StoreError.
        """
        self._take_ownership()
        kept = [save for save in self._current(self._listed_surely()) if save.step <= step]
        self._put_newest(step)  # first: whoever finds a later checkpoint than this goes on from there
        self._build_on(kept)

    def save(self, step: int, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Saves a checkpoint after the saves under way in the background; returns when it is committed.

        Supersedes those of the same step and of later ones, which exist if the run went back to an earlier checkpoint. Then deletes
        all but the last `keep_last` checkpoints, the one with the lowest finite `meta["validation_loss"]`, and those of the steps
        given to `keep`; superseded ones of a later step stay until the run has passed them. A process that has not called `claim`
        claims the run first.

        Raises CheckpointError (an array of a dtype that is not STORABLE, another writer) and StoreError.
        """
        self._thread.submit(self._save, step, state, meta).result()

    def save_in_background(self, step: int, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Saves without delaying training; the caller must not change `state` afterwards. Never raises: see `stats`.

        While storage is slower than the epochs, the newest, the one with the lowest validation loss and those to `keep` wait.
        """
        with self._lock:
            self._waiting[step] = (state, meta)
            best = min(self._waiting, key=self._rank)
            for dropped in self._waiting.keys() - {step, best, *self._keep}:
                del self._waiting[dropped]
                if not self.stats.skipped:
                    log.warning(
                        "the checkpoint of step %d is skipped, and others will be: storage is slower than the epochs. "
                        "spikewise_checkpoint_skipped_total counts them",
                        dropped,
                    )
                self.stats = replace(self.stats, skipped=self.stats.skipped + 1)
        self._thread.submit(self._save_waiting)

    def _rank(self, step: int) -> tuple[float, int]:
        loss = loss_of(self._waiting[step][1])
        return math.inf if loss is None else loss, -step

    def close(self) -> None:
        """Waits for the requested saves and accepts no more."""
        self._thread.shutdown()

    def latest(self) -> Restored | None:
        """The newest intact checkpoint; None if there is none.

        Skips incomplete and altered checkpoints with a warning, after several reads. Raises StoreError when storage fails: that
        says nothing about the checkpoint, and falling back to an older one would discard work.
        """
        return self._first_intact(reversed(self._current(self._listed_surely())))

    def best(self) -> Restored | None:
        """The intact checkpoint with the lowest finite validation loss, the earlier of equal ones; None if there is none.

        Skips damaged checkpoints with a warning. Raises StoreError.
        """
        return self._first_intact(self._by_loss(self._current(self._listed_surely())))

    def load(self, step: int) -> Restored:
        """The checkpoint of `step`, its sizes and digests verified before it is parsed. Reads again before it gives up.

        Raises CheckpointError when the run has none of that step or it differs from what was committed; UserError when an earlier
        version wrote it, since skipping it would restart the run and delete it; StoreError.
        """
        found = next((save for save in self._current(self._listed_surely()) if save.step == step), None)
        if found is None:
            raise CheckpointError(f"{self._prefix}{step:09d}/ is incomplete: no {COMMIT} in {self._store.url}")
        return self._load(found)

    def _load(self, save: Save) -> Restored:
        return self._store.read_again(lambda: read(self._store, self._prefix + save.folder, save.step), CheckpointError)

    def _take_ownership(self) -> None:
        """Puts the next claim under our lease. Raises CheckpointError when a later lease has claims."""
        while True:
            claims = self._listed().claims
            if (later := max(claims, default=(0, 0)))[0] > self._lease:
                raise self._fenced(later)
            owner = self._lease, later[1] + 1 if later[0] == self._lease else 1
            try:
                self._store.put(f"{self._prefix}{owner_folder(owner)}{CLAIM}", sealed({}), if_absent=True)
            except Exists:  # another process of the same lease was faster
                continue
            self._owner = owner
            return

    def _build_on(self, saves: list[Save]) -> None:
        """Records which checkpoints of earlier owners count."""
        assert self._owner
        self._keeps[self._owner] = [save.folder for save in saves]
        content = sealed({"keeps": self._keeps[self._owner]})
        self._store.put(f"{self._prefix}{owner_folder(self._owner)}{KEEPS}", content, if_absent=True)

    def _put_newest(self, step: int) -> None:
        self._store.put(self._evidence, sealed({"step": step}))

    def _fenced(self, owner: Owner) -> CheckpointError:
        self.superseded.set()
        return CheckpointError(
            f"The checkpoints of run {self._run} are now written by another process (lease {owner[0]}, claim {owner[1]}), so this "
            "one commits no more. Fix: start only one job for each run.name."
        )

    def _save_waiting(self) -> None:
        with self._lock:
            if not self._waiting:  # dropped in favor of a newer one
                return
            step = min(self._waiting)
            state, meta = self._waiting.pop(step)
        try:
            self._save(step, state, meta)
        except Exception as error:  # training continues, whatever the error
            log.error("saving the checkpoint of step %d failed; training continues: %s: %s", step, type(error).__name__, error)

    def _save(self, step: int, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        started = time.monotonic()
        try:
            save, stored = self._commit(step, state, meta)
        except Exception:
            with self._lock:
                self.stats = replace(self.stats, failures=self.stats.failures + 1)
            raise
        with self._lock:
            self.stats = replace(self.stats, step=step, committed=time.time(), seconds=time.monotonic() - started)
        try:
            self._put_newest(step)
            self._delete_old(stored, save)
        except StoreError as error:
            log.warning("old checkpoints were not deleted; the next save tries again: %s", error)

    def _commit(self, step: int, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> tuple[Save, Stored]:
        """Writes a checkpoint. Returns it, and a listing after its commit in which no later owner appears."""
        if self._owner is None:
            self._take_ownership()
            self._build_on(self._current(self._listed_surely()))
        assert self._owner
        self._saves += 1
        save = Save(*self._owner, self._saves, step)
        folder, loss = self._prefix + save.folder, loss_of(meta)
        with scratch() as local:
            files = write(local, state, meta)
            for name in files:
                self._store.upload(folder + name, local / name)
        self._store.put(folder + COMMIT, sealed({"step": step, "validation_loss": loss, "files": files}), if_absent=True)
        self._losses[save] = loss
        stored = self._store.read_again(lambda: self._listed_with(save), NotFound)
        if stored.latest_claim() > self._owner:
            raise self._fenced(stored.latest_claim())
        return save, stored

    def _listed_with(self, save: Save) -> Stored:
        """A listing that has what was just written. One that lacks it may lack a later owner's claim too."""
        stored = self._listed()
        if COMMIT not in stored.saves.get(save, ()):
            raise NotFound(f"{self._store.url}/{self._prefix}{save.folder}{COMMIT}: written, but missing from the listing")
        return stored

    def _listed(self) -> Stored:
        return read_listing(list_keys(self._store, self._prefix), self._prefix)

    def _listed_surely(self) -> Stored:
        """What two successive listings agree on, or all that was listed: one that lacks objects would discard work."""
        keys = set(list_keys(self._store, self._prefix))
        for seconds in self._store.PAUSES:
            time.sleep(seconds)
            again = set(list_keys(self._store, self._prefix))
            if again == keys:
                break
            keys |= again
        return read_listing(keys, self._prefix)

    def _current(self, stored: Stored) -> list[Save]:
        return current(stored, self._read_keeps)

    def _read_keeps(self, owner: Owner) -> list[str] | None:
        if owner not in self._keeps:
            key = f"{self._prefix}{owner_folder(owner)}{KEEPS}"
            try:
                found = self._store.read_again(lambda: unsealed(self._store.get(key)), NotFound, Damaged).get("keeps")
            except (NotFound, Damaged) as error:
                log.warning("%s cannot be read: %s", key, error)
                return None
            self._keeps[owner] = [str(folder) for folder in found] if isinstance(found, list) else []
        return self._keeps[owner]

    def _recorded_step(self) -> int | None:
        """The step of the last commit that the run has recorded, 0 after it went back to its beginning; None if it has none."""
        try:
            step = self._store.read_again(lambda: unsealed(self._store.get(self._evidence)), NotFound, Damaged).get("step")
        except (NotFound, Damaged):
            return None
        return step if isinstance(step, int) else None

    def _first_intact(self, saves: Iterable[Save]) -> Restored | None:
        for save in saves:
            try:
                return self._load(save)
            except CheckpointError as error:
                log.warning("the checkpoint of step %d is damaged and skipped: %s", save.step, error)
        return None

    def _by_loss(self, saves: list[Save]) -> list[Save]:
        """The saves with a known finite validation loss, lowest loss first."""
        return losses_known(saves, {save: self._losses[save] for save in saves if self._knows_loss(save)})

    def _knows_loss(self, save: Save) -> bool:
        """Reads the loss of a save unless it is known. False if it cannot be read, which proves nothing about the save."""
        if save not in self._losses:
            try:
                self._losses[save] = self._store.read_again(lambda: self._read_loss(save), NotFound, Damaged)
            except (NotFound, Damaged):
                return False
        return True

    def _read_loss(self, save: Save) -> float | None:
        return loss_of(unsealed(self._store.get(self._prefix + save.folder + COMMIT)))

    def _delete_old(self, stored: Stored, newest: Save) -> None:
        assert self._owner
        now = self._current(stored)
        unknown = {save for save in now if not self._knows_loss(save)}
        asked = {save for save in now if save.step in self._keep}
        kept = {*now[-self._keep_last :], *self._by_loss(now)[:1], *asked, *unknown}
        for save, names in superseded(stored, self._owner, now, kept, newest).items():
            if COMMIT in names or self._has_no_commit(save):
                self._delete([f"{self._prefix}{save.folder}{name}" for name in names])
        former = [owner for owner in stored.claims if owner < self._owner]
        self._delete([f"{self._prefix}{owner_folder(owner)}{name}" for owner in former for name in stored.claims[owner]])

    def _has_no_commit(self, save: Save) -> bool:
        """Whether a save that a listing shows without its commit object has none."""
        try:
            self._store.read_again(lambda: self._store.get(self._prefix + save.folder + COMMIT), NotFound)
        except NotFound:
            return True
        return False

    def _delete(self, keys: list[str]) -> None:
        """Deletes the commit object first: an interrupted deletion leaves files, never an incomplete checkpoint."""
        for part in ([key for key in keys if key.endswith(COMMIT)], [key for key in keys if not key.endswith(COMMIT)]):
            if part:
                self._store.delete(part)
