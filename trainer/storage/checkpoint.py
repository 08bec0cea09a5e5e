"""Checkpoints in a store.

Separation of concerns: the worker decides what a checkpoint contains and when to save it. This module makes it exist whole or
not at all, finds the newest intact one and deletes old ones. It handles named arrays and JSON, and knows nothing of TensorFlow.

    runs/<run>/checkpoints/<step, 9 digits>/state.safetensors   the arrays
                                            meta.json           everything else the worker needs; NaN is allowed
                                            commit.json         size and SHA-256 of both; written last, only if absent

A checkpoint exists when its commit object does. The lease (lease.py) ensures that there is one writer.
"""

import hashlib
import json
import logging
import math
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from trainer import UserError
from trainer.storage import Exists, NotFound, Store, StoreError
from trainer.storage.store import list_keys

log = logging.getLogger(__name__)

STATE, META, COMMIT = "state.safetensors", "meta.json", "commit.json"
FORMER_STATE = "state.npz"
"""In place of STATE, in checkpoints from before version 0.1.0 was released."""
STORABLE = frozenset(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)) | {
    *("bool", "bfloat16", "float16", "float32", "float64", "complex64")
}
"""Names of the dtypes that safetensors reads back unchanged."""


class CheckpointError(UserError):
    """A checkpoint cannot be written as asked, or differs from what was committed; the one-line message names the object."""


class Restored(NamedTuple):
    step: int
    state: dict[str, np.ndarray]
    meta: dict[str, Any]


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


class Checkpoints:
    """The checkpoints of one run. One thread makes all saves, in the order of the requests."""

    def __init__(self, store: Store, run: str, keep_last: int) -> None:
        self.stats = SaveStats()
        self._store = store
        self._prefix = f"runs/{run}/checkpoints/"
        self._keep_last = keep_last
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[Mapping[str, np.ndarray], Mapping[str, Any]]] = {}
        self._keep: frozenset[int] = frozenset()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def steps(self) -> list[int]:
        """The steps of all committed checkpoints, in order; some may be damaged. Raises StoreError."""
        return self._committed(self._stored())

    def keep(self, steps: Collection[int]) -> None:
        """Keeps the checkpoints of exactly these steps, as far as they exist, beyond those that `save` keeps. Call it before the
        save that would delete them."""
        with self._lock:
            self._keep = frozenset(steps)

    def go_back(self, step: int) -> None:
        """Deletes all checkpoints later than `step`, the newest first. Raises StoreError."""
        stored = self._stored()
        for later in sorted((other for other in stored if other > step), reverse=True):
            self._delete(stored[later])

    def save(self, step: int, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Saves a checkpoint after the saves under way in the background; returns when it is committed.

        Replaces a checkpoint of the same step and deletes later ones, which exist if the run went back to an earlier checkpoint.
        Then deletes all but the last `keep_last` checkpoints, the one with the lowest finite `meta["validation_loss"]`, and those
        of the steps given to `keep`.

        Raises CheckpointError (an array of a dtype that is not STORABLE, another writer) and StoreError.
        """
        self._thread.submit(self._save, step, state, meta).result()

    def save_in_background(self, step: int, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Saves without delaying training; the caller must not change `state` afterwards. Never raises: see `stats`.

        While storage is slower than the epochs, the newest, the one with the lowest validation loss and those to `keep` wait.
        """
        with self._lock:
            self._waiting[step] = (state, meta)
            best = min(self._waiting, key=lambda waiting: (_loss(self._waiting[waiting][1]), -waiting))
            for dropped in self._waiting.keys() - {step, best, *self._keep}:
                del self._waiting[dropped]
                log.warning("the checkpoint of step %d is skipped: storage is slower than the epochs", dropped)
        self._thread.submit(self._save_waiting)

    def close(self) -> None:
        """Waits for the requested saves and accepts no more."""
        self._thread.shutdown()

    def latest(self) -> Restored | None:
        """The newest intact checkpoint; None if there is none.

        Skips incomplete and altered checkpoints with a warning. Raises StoreError when storage fails: that says nothing about
        the checkpoint, and falling back to an older one would discard work.
        """
        return self._first_intact(reversed(self._committed(self._stored())))

    def best(self) -> Restored | None:
        """The intact checkpoint with the lowest finite validation loss, the earlier of equal ones; None if there is none.

        Skips damaged checkpoints with a warning. Raises StoreError.
        """
        return self._first_intact(self._by_loss(self._committed(self._stored())))

    def load(self, step: int) -> Restored:
        """The checkpoint of `step`, its sizes and digests verified before it is parsed.

        Raises CheckpointError when it has no commit object or differs from what was committed; UserError when an earlier version
        wrote it, since skipping it would restart the run and delete it; StoreError.
        """
        folder = self._folder(step)
        try:
            files = json.loads(self._store.get(folder + COMMIT))["files"]
            if FORMER_STATE in files:
                raise UserError(
                    f"{folder} was written before checkpoints were safetensors and cannot be read. Fix: finish this run with the "
                    "version that began it, or set another run.name."
                )
            with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
                for name in (STATE, META):
                    path = Path(scratch, name)
                    self._store.download(folder + name, path)
                    found, expected = _fingerprint(path), files[name]
                    if found["size"] != expected["size"]:
                        raise CheckpointError(f"{folder}{name} has {found['size']} bytes, {expected['size']} were committed")
                    if found["sha256"] != expected["sha256"]:
                        raise CheckpointError(f"{folder}{name} differs from what was committed (SHA-256)")
                return Restored(step, load_file(Path(scratch, STATE)), json.loads(Path(scratch, META).read_bytes()))
        except NotFound as error:
            raise CheckpointError(f"{folder} is incomplete: {error}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"{folder} cannot be parsed: {type(error).__name__}: {error}") from None

    def _folder(self, step: int) -> str:
        return f"{self._prefix}{step:09d}/"

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
            self._write(step, state, meta)
        except Exception:
            self.stats = replace(self.stats, failures=self.stats.failures + 1)
            raise
        self.stats = replace(self.stats, step=step, committed=time.time(), seconds=time.monotonic() - started)
        try:
            self._delete_old(step)
        except StoreError as error:
            log.warning("old checkpoints were not deleted; the next save tries again: %s", error)

    def _write(self, step: int, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        folder = self._folder(step)
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
            _write_state(Path(scratch, STATE), state)
            Path(scratch, META).write_text(json.dumps(dict(meta)), encoding="utf-8")
            self._delete(list_keys(self._store, folder))
            for name in (STATE, META):
                self._store.upload(folder + name, Path(scratch, name))
            files = {name: _fingerprint(Path(scratch, name)) for name in (STATE, META)}
        commit = json.dumps({"step": step, "files": files}, indent=1).encode()
        try:
            self._store.put(folder + COMMIT, commit, if_absent=True)
        except Exists:
            if self._store.get(folder + COMMIT) != commit:
                raise CheckpointError(
                    f"{folder}{COMMIT} was written by another job at the same time. Fix: stop one of the jobs of this run."
                ) from None

    def _stored(self) -> dict[int, list[str]]:
        """Step -> keys of its objects, committed or not."""
        found: dict[int, list[str]] = {}
        for key in list_keys(self._store, self._prefix):
            step = key.removeprefix(self._prefix).partition("/")[0]
            if step.isdecimal():
                found.setdefault(int(step), []).append(key)
        return found

    def _committed(self, stored: Mapping[int, list[str]]) -> list[int]:
        """The steps that have a commit object, in order."""
        return sorted(step for step, keys in stored.items() if self._folder(step) + COMMIT in keys)

    def _first_intact(self, steps: Iterable[int]) -> Restored | None:
        for step in steps:
            try:
                return self.load(step)
            except CheckpointError as error:
                log.warning("the checkpoint of step %d is damaged and skipped: %s", step, error)
        return None

    def _by_loss(self, committed: Iterable[int]) -> list[int]:
        """The steps with a finite validation loss, lowest loss first."""
        losses = {step: self._stored_loss(step) for step in committed}
        return sorted((step for step, loss in losses.items() if loss < math.inf), key=lambda step: (losses[step], step))

    def _stored_loss(self, step: int) -> float:
        try:
            return _loss(json.loads(self._store.get(self._folder(step) + META)))
        except (NotFound, ValueError, AttributeError):  # damaged: never the best
            return math.inf

    def _delete_old(self, newest: int) -> None:
        stored = self._stored()
        for later in [step for step in stored if step > newest]:
            self._delete(stored.pop(later))
        committed = self._committed(stored)
        kept = {*committed[-self._keep_last :], *self._by_loss(committed)[:1], *self._keep}
        for step in stored.keys() - kept:
            self._delete(stored[step])

    def _delete(self, keys: list[str]) -> None:
        """Deletes the commit object first: an interrupted deletion leaves files, never an incomplete checkpoint."""
        for part in ([key for key in keys if key.endswith(COMMIT)], [key for key in keys if not key.endswith(COMMIT)]):
            if part:
                self._store.delete(part)


def _write_state(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays; equal arrays give equal bytes. Raises CheckpointError for a dtype that is not STORABLE."""
    for name, array in state.items():
        if array.dtype.name not in STORABLE:
            raise CheckpointError(f'Array "{name}" has dtype {array.dtype}. Fix: store numbers or booleans.')
    save_file({name: np.asarray(array, order="C") for name, array in state.items()}, path)  # save_file ignores strides


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _loss(meta: Mapping[str, Any]) -> float:
    """The validation loss; infinite if it is missing or not finite."""
    loss = meta.get("validation_loss")
    return float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else math.inf
