"""Checkpoints in object storage.

Separation of concerns: the loop decides what belongs into a checkpoint and when; this module makes it exist whole or not at
all, finds the newest one that is intact and forgets the old ones. It knows named arrays and JSON, not TensorFlow.

    runs/<run>/checkpoints/<step, 9 digits>/state.npz     the arrays, without pickle
                                            meta.json     whatever else the loop needs, NaN allowed
                                            commit.json   sizes and SHA-256 of both; put last, only if absent

A checkpoint exists when its commit does. That there is one writer is the lease's part (lease.py).
"""

import hashlib
import json
import logging
import math
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer import UserError
from trainer.storage import Exists, NotFound, Store, StoreError
from trainer.storage.store import list_keys

log = logging.getLogger(__name__)

STATE, META, COMMIT = "state.npz", "meta.json", "commit.json"
STORABLE = "biufcSU"
"""Kinds of dtype that .npy describes fully. Objects would need pickle; bfloat16 would come back as raw bytes."""


class CheckpointError(UserError):
    """A checkpoint cannot be written as asked, or is not what was committed; one line naming the object and why."""


class Restored(NamedTuple):
    step: int
    state: dict[str, np.ndarray]
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stats:
    """What became of the saves of one `Checkpoints`, for metrics and the report."""

    step: int | None = None
    """Of the last checkpoint committed."""
    committed: float | None = None
    """Unix time of that commit."""
    seconds: float | None = None
    """What that save took."""
    failures: int = 0
    last_error: str | None = None
    """Of the last failure; stays when later saves succeed."""


class Checkpoints:
    """The checkpoints of one run. All saves go through one thread, in the order in which they were asked for."""

    def __init__(self, store: Store, run: str, keep_last: int) -> None:
        self.stats = Stats()
        self._store = store
        self._prefix = f"runs/{run}/checkpoints/"
        self._keep_last = keep_last
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[Mapping[str, np.ndarray], Mapping[str, Any]]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def save(self, step: int, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Returns when the checkpoint of `step` is committed, after the saves under way in the background.

        A checkpoint of the same step is replaced, later ones are removed: the run went back and took another way. Then all
        are forgotten but the last `keep_last` and the one with the lowest finite `meta["validation_loss"]`.
        Raises CheckpointError (arrays that need pickle, another writer) and StoreError.
        """
        self._thread.submit(self._save, step, state, meta).result()

    def save_in_background(self, step: int, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Saves without holding up training; `state` belongs to this object from now on. Never raises: see `stats`.

        While storage is slower than the epochs, at most two saves wait: the newest and the one of lowest validation loss.
        """
        with self._lock:
            self._waiting[step] = (state, meta)
            best = min(self._waiting, key=lambda waiting: (_loss(self._waiting[waiting][1]), -waiting))
            for dropped in self._waiting.keys() - {step, best}:
                del self._waiting[dropped]
                log.warning("checkpoint of step %d is left out: storage is slower than the epochs", dropped)
        self._thread.submit(self._save_waiting)

    def wait(self) -> None:
        """Returns when everything asked for so far was saved or has failed."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Waits, and accepts no more saves."""
        self._thread.shutdown()

    def latest(self) -> Restored | None:
        """The newest committed checkpoint that is intact; None if there is none.

        One that is torn, altered or incomplete is passed over with a warning. Raises StoreError when storage does not answer:
        that says nothing about the checkpoint, and an older one would throw work away.
        """
        return self._first_intact(reversed(self._committed(self._stored())))

    def best(self) -> Restored | None:
        """The intact checkpoint with the lowest finite validation loss, the earlier of equals; None if there is none. One that is
        damaged is passed over with a warning. Raises StoreError."""
        return self._first_intact(self._by_loss(self._committed(self._stored())))

    def load(self, step: int) -> Restored:
        """Raises CheckpointError when `step` has no commit, or a file is missing or not what was committed."""
        folder = self._folder(step)
        try:
            files = json.loads(self._store.get(folder + COMMIT))["files"]
            with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
                for name in (STATE, META):
                    path = Path(scratch, name)
                    self._store.download(folder + name, path)
                    found, expected = _fingerprint(path), files[name]
                    if found["size"] != expected["size"]:
                        raise CheckpointError(f"{folder}{name} has {found['size']} of {expected['size']} bytes")
                    if found["sha256"] != expected["sha256"]:
                        raise CheckpointError(f"{folder}{name} is not what was committed: its SHA-256 differs")
                return Restored(step, read_state(Path(scratch, STATE)), json.loads(Path(scratch, META).read_bytes()))
        except NotFound as error:
            raise CheckpointError(f"{folder} is incomplete: {error}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder} cannot be read: {type(error).__name__}: {error}") from None

    def _folder(self, step: int) -> str:
        return f"{self._prefix}{step:09d}/"

    def _save_waiting(self) -> None:
        with self._lock:
            if not self._waiting:  # it was left out for a newer one
                return
            step = min(self._waiting)
            state, meta = self._waiting.pop(step)
        try:
            self._save(step, state, meta)
        except Exception as error:  # whatever it is, training goes on
            log.error("CHECKPOINT of step %d FAILED, training goes on: %s: %s", step, type(error).__name__, error)

    def _save(self, step: int, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        started = time.monotonic()
        try:
            self._write(step, state, meta)
        except Exception as error:
            self.stats = replace(self.stats, failures=self.stats.failures + 1, last_error=f"step {step}: {error}")
            raise
        self.stats = replace(self.stats, step=step, committed=time.time(), seconds=time.monotonic() - started)
        try:
            self._forget(step)
        except StoreError as error:  # the next save forgets them
            log.warning("old checkpoints stay for now: %s", error)

    def _write(self, step: int, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        folder = self._folder(step)
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
            write_state(Path(scratch, STATE), state)
            Path(scratch, META).write_text(json.dumps(dict(meta)), encoding="utf-8")
            self._remove(list_keys(self._store, folder))
            for name in (STATE, META):
                self._store.upload(folder + name, Path(scratch, name))
            files = {name: _fingerprint(Path(scratch, name)) for name in (STATE, META)}
        commit = json.dumps({"step": step, "files": files}, indent=1).encode()
        try:
            self._store.put(folder + COMMIT, commit, if_absent=True)
        except Exists:
            if self._store.get(folder + COMMIT) != commit:
                raise CheckpointError(f"{folder}{COMMIT} was put by another job meanwhile: is the run started twice?") from None

    def _stored(self) -> dict[int, list[str]]:
        """Step -> the keys of its objects, whole or not."""
        found: dict[int, list[str]] = {}
        for key in list_keys(self._store, self._prefix):
            step = key.removeprefix(self._prefix).partition("/")[0]
            if step.isdecimal():
                found.setdefault(int(step), []).append(key)
        return found

    def _committed(self, stored: Mapping[int, list[str]]) -> list[int]:
        return sorted(step for step, keys in stored.items() if self._folder(step) + COMMIT in keys)

    def _first_intact(self, steps: Iterable[int]) -> Restored | None:
        for step in steps:
            try:
                return self.load(step)
            except CheckpointError as error:
                log.warning("checkpoint of step %d is passed over: %s", step, error)
        return None

    def _by_loss(self, committed: Iterable[int]) -> list[int]:
        """Those with a finite validation loss, the best first."""
        losses = {step: self._stored_loss(step) for step in committed}
        return sorted((step for step, loss in losses.items() if loss < math.inf), key=lambda step: (losses[step], step))

    def _stored_loss(self, step: int) -> float:
        try:
            return _loss(json.loads(self._store.get(self._folder(step) + META)))
        except (NotFound, ValueError, AttributeError):  # damaged: never the best
            return math.inf

    def _forget(self, newest: int) -> None:
        stored = self._stored()
        for later in [step for step in stored if step > newest]:
            self._remove(stored.pop(later))
        committed = self._committed(stored)
        kept = {*committed[-self._keep_last :], *self._by_loss(committed)[:1]}
        for step in stored.keys() - kept:
            self._remove(stored[step])

    def _remove(self, keys: list[str]) -> None:
        """The commit first: half a removal leaves remains, never a checkpoint that is not whole."""
        for part in ([key for key in keys if key.endswith(COMMIT)], [key for key in keys if not key.endswith(COMMIT)]):
            if part:
                self._store.delete(part)


def write_state(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz; equal arrays in equal order give equal bytes. Raises CheckpointError for an array that needs pickle."""
    with zipfile.ZipFile(path, "w") as archive:  # not compressed: weights hardly shrink
        for name, array in state.items():
            if array.dtype.kind not in STORABLE:
                raise CheckpointError(
                    f'"{name}" is an array of {array.dtype}: store numbers, booleans or text (cast bfloat16 to float32)'
                )
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_state(path: Path) -> dict[str, np.ndarray]:
    """Reads what `write_state` wrote. Raises CheckpointError for anything else, pickled objects included."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path.name} is not an archive of plain arrays: {error}") from None


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _loss(meta: Mapping[str, Any]) -> float:
    loss = meta.get("validation_loss")
    return float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else math.inf
