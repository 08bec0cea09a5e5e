"""trainer.storage.checkpoint on a folder and on S3 (a SeaweedFS server)."""

import hashlib
import io
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.support.properties import BOUNDED
from trainer import UserError
from trainer.config import S3
from trainer.storage import NotFound, Object, Store, StoreError, open_store
from trainer.storage.checkpoint import Checkpoints, SaveStats
from trainer.storage.checkpoint_files import STORABLE, CheckpointError
from trainer.storage.folder import FolderStore
from trainer.storage.parsing import sealed

FOLDER = "runs/a-run/checkpoints"


def state(value: float = 0.0) -> dict[str, np.ndarray]:
    return {"model/kernel": np.full((3, 2), value, np.float32), "optimizer/iteration": np.array(7, np.int64)}


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    """A folder that does not exist yet."""
    return FolderStore(tmp_path / "storage")


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.integration)])
def store(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue("folder") if request.param == "folder" else open_store(request.getfixturevalue("bucket"), S3())


@pytest.fixture
def checkpoints(store: Store) -> Iterator[Checkpoints]:
    with closing(Checkpoints(store, "a-run", keep_last=2)) as checkpoints:
        yield checkpoints


def steps(store: Store) -> list[int]:
    """Of the commit objects, in the order of their keys."""
    return [int(entry.key.split("/")[-2]) for entry in store.list(FOLDER) if entry.key.endswith("/commit.json")]


def key_of(store: Store, step: int, name: str) -> str:
    """The key of an object of the newest save of `step`."""
    return [entry.key for entry in store.list(FOLDER) if entry.key.endswith(f"/{step:09d}/{name}")][-1]


def test_gives_back_what_was_saved(checkpoints: Checkpoints) -> None:
    """A resumed run must continue bit for bit: every dtype, shape and memory order, and metadata with NaN."""
    saved = {f"dtype/{name}": np.array([[1, 0, 1], [0, 0, 1]]).astype(name) for name in STORABLE} | {
        "model/kernel:0": np.arange(6, dtype=np.float32).reshape(2, 3),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "every/second": np.arange(6)[::2],
        "not finite": np.array([-0.0, np.nan, np.inf], np.float16),
        "0-d": np.array(3, np.int64),
        "empty": np.zeros((0, 4), np.uint8),
        "ü\n": np.zeros(1),
        "": np.zeros(1),
    }
    checkpoints.save(12, saved, {"validation_loss": math.nan, "order": [3, 1]})
    found = checkpoints.latest()
    assert found is not None
    step, restored, meta = found
    assert step == 12
    assert math.isnan(meta["validation_loss"])
    assert meta["order"] == [3, 1]
    assert restored.keys() == saved.keys()
    for name, array in saved.items():
        assert (restored[name].dtype, restored[name].shape) == (array.dtype, array.shape)
        assert restored[name].tobytes() == array.tobytes(), name


def test_a_new_run_has_no_checkpoint(checkpoints: Checkpoints) -> None:
    """The first start of a run, in a folder that does not exist yet, must begin at the first epoch and not fail."""
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    with pytest.raises(CheckpointError, match="000000005/ is incomplete"):
        checkpoints.load(5)


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}, None]),
        np.array(["text"]),
        np.zeros(2, np.longdouble),
        np.zeros(2, [("loss", float)]),
        np.zeros(2, ml_dtypes.float8_e5m2),
    ],
    ids=lambda array: array.dtype.name,
)
def test_refuses_what_would_not_come_back(checkpoints: Checkpoints, array: np.ndarray) -> None:
    """An array that safetensors cannot read back must fail when it is saved, not when the run is resumed."""
    with pytest.raises(CheckpointError, match=r'Array "bad" has dtype .*\. Fix: store numbers or booleans'):
        checkpoints.save(1, {**state(), "bad": array}, {})
    assert checkpoints.latest() is None
    assert checkpoints.stats.failures == 1


def test_never_loads_a_pickle(checkpoints: Checkpoints, store: Store, tmp_path: Path) -> None:
    """Write access to the bucket must not allow anyone to run code in the training job, even with valid checksums."""
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return canary.touch, ()

    for step, content in enumerate((evil_archive(Evil()), evil_array(Evil())), start=1):
        (tmp_path / "evil").write_bytes(content)
        checkpoints.save(step, state(), {})
        commit_as(store, step, content)
    assert checkpoints.latest() is None
    assert not canary.exists()


def test_a_checkpoint_of_an_earlier_version_ends_the_job(checkpoints: Checkpoints, store: Store) -> None:
    """After an update the run would silently restart at epoch 1, and its next save would delete the earlier work."""
    folder = "runs/a-run/checkpoints/000000007/"
    store.put(f"{folder}state.npz", b"arrays")
    store.put(f"{folder}commit.json", json.dumps({"step": 7, "files": {"state.npz": {}, "meta.json": {}}}).encode())
    for restore in (checkpoints.latest, lambda: checkpoints.load(7), checkpoints.claim):
        with pytest.raises(UserError, match=r"000000007/ was written before .* Fix: finish this run with the version") as error:
            restore()
        assert not isinstance(error.value, CheckpointError)  # which would be skipped
    assert store.get(f"{folder}state.npz") == b"arrays"


def evil_archive(thing: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, evil=np.array([thing], object))
    return buffer.getvalue()


def evil_array(thing: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([thing], object))
    return buffer.getvalue()


def commit_as(store: Store, step: int, content: bytes) -> None:
    """Replaces the state of a checkpoint and adjusts its commit object."""
    commit = json.loads(store.get(key_of(store, step, "commit.json")))
    commit["files"]["state.safetensors"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    store.put(key_of(store, step, "state.safetensors"), content)
    del commit["sha256"]
    store.put(key_of(store, step, "commit.json"), sealed(commit))


def torn(content: bytes) -> bytes:
    return content[: len(content) // 2]


def altered(content: bytes) -> bytes:
    return content[:-10] + bytes([content[-10] ^ 1]) + content[-9:]


@pytest.mark.parametrize("name", ["state.safetensors", "meta.json", "commit.json"])
@pytest.mark.parametrize("damage", [torn, altered, None], ids=["torn", "altered", "missing"])
def test_falls_back_to_the_previous_checkpoint(
    checkpoints: Checkpoints,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[bytes], bytes] | None,
) -> None:
    """One damaged object must cost the steps since the previous checkpoint, not the run. The log must name the object."""
    checkpoints.save(10, state(1), {"epoch": 1})
    checkpoints.save(20, state(2), {"epoch": 2})
    key = key_of(store, 20, name)
    content = store.get(key)
    store.delete([key])
    if damage:
        store.put(key, damage(content))
    found = checkpoints.latest()
    assert found is not None
    assert (found.step, found.meta) == (10, {"epoch": 1})
    assert found.state["model/kernel"][0, 0] == 1
    if name != "commit.json":
        assert f"000000020/{name}" in caplog.text
    elif damage:  # without its commit object it was never a checkpoint
        assert "000000020/" in caplog.text


def test_storage_that_does_not_answer_is_not_damage(folder: FolderStore) -> None:
    """A network failure during resume must not silently discard epochs by falling back."""

    class Down(FolderStore):
        down = False

        def download(self, key: str, path: Path) -> None:
            if self.down:
                raise StoreError("cannot be reached")
            super().download(key, path)

    store = Down(folder.root)
    with closing(Checkpoints(store, "a-run", keep_last=2)) as checkpoints:
        checkpoints.save(10, state(), {})
        store.down = True
        with pytest.raises(StoreError, match="cannot be reached"):
            checkpoints.latest()


def test_keeps_the_last_and_the_best(store: Store, checkpoints: Checkpoints) -> None:
    """Storage must not fill up, and the best weights must exist at the end. A NaN is never the best."""
    for step, loss in enumerate([0.9, 0.4, math.nan, 0.4, 0.7, 0.8], start=1):
        checkpoints.save(step, state(step), {"validation_loss": loss})
    checkpoints.save(7, state(7), {})  # saved inside an epoch: no validation loss
    assert steps(store) == [2, 6, 7]
    best = checkpoints.best()
    assert best is not None
    assert best.step == best.state["model/kernel"][0, 0] == 2


def test_keeps_those_before_spikes_as_long_as_they_are_asked_for(store: Store, checkpoints: Checkpoints) -> None:
    """When an epoch turns out to be a spike, the checkpoint before it must still exist; and not forever after."""
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {})
    checkpoints.keep({3, 99})  # 99: never saved
    for step in (4, 5, 6, 7):
        checkpoints.save(step, state(step), {})
    assert checkpoints.steps() == steps(store) == [3, 6, 7]
    checkpoints.keep({6})
    checkpoints.save(8, state(8), {})
    checkpoints.save(9, state(9), {})
    assert steps(store) == [6, 8, 9]


@pytest.mark.parametrize("target", [2, 0])
def test_going_back_gives_up_what_is_later(store: Store, target: int) -> None:
    """A run that went back before a divergence, and died before its next save, would resume with the lost weights, or not at
    all; and a worker that still saves them would bring them back."""
    with closing(Checkpoints(store, "a-run", 2, lease=1)) as diverged:
        diverged.keep({1, 2})
        for step in (1, 2, 3, 4):
            diverged.save(step, state(step), {})
        Checkpoints(store, "a-run", 2, lease=1).go_back(target)
        with pytest.raises(CheckpointError, match="another process"):
            diverged.save(5, state(5), {})
        for lease in (1, 2):  # restarted workers, and a restarted driver
            reader = Checkpoints(store, "a-run", 2)
            assert reader.steps() == list(range(1, target + 1))
            found = Checkpoints(store, "a-run", 2, lease=lease).claim()
            assert (found.step if found else 0) == target
        with pytest.raises(CheckpointError, match="is incomplete"):
            reader.load(4)
    with closing(Checkpoints(store, "a-run", 2, lease=2)) as again:
        again.save(3, state(30), {})
    found = reader.load(3)
    assert found.state["model/kernel"][0, 0] == 30
    assert reader.steps() == ([2, 3] if target else [3])


def test_a_job_that_dies_while_it_goes_back(store: Store) -> None:
    """The run would be said to have lost its checkpoints, which are all there."""
    with closing(Checkpoints(store, "a-run", 2, lease=1)) as diverged:
        for step in (1, 2):
            diverged.save(step, state(step), {})
        going = Checkpoints(store, "a-run", 2, lease=2)
        going._build_on = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign, assignment]
        with pytest.raises(KeyboardInterrupt):
            going.go_back(0)
    found = Checkpoints(store, "a-run", 2, lease=3).claim()
    assert found is not None
    assert found.step == 2


def test_a_damaged_best_checkpoint_is_skipped(store: Store, checkpoints: Checkpoints) -> None:
    """A finished run could never export its model, however often it is restarted."""
    for step, loss in ((1, 0.3), (2, 0.5), (3, 0.4)):
        checkpoints.save(step, state(step), {"validation_loss": loss})
    store.put(key_of(store, 1, "state.safetensors"), b"torn")
    best = checkpoints.best()
    assert best is not None
    assert best.step == 3


def test_deletes_what_a_killed_save_left(store: Store, checkpoints: Checkpoints) -> None:
    """Files that a killed job left without a commit object must never count as a checkpoint, nor fill the storage."""
    checkpoints.save(10, state(), {})
    store.put(f"{FOLDER}/000000020/state.safetensors", b"half")
    store.put("runs/a-run-2/checkpoints/000000005/state.safetensors", b"another run's")
    assert checkpoints.latest() is not None
    checkpoints.save(30, state(), {})
    assert {entry.key.split("/")[-2] for entry in store.list(FOLDER) if "/state" in entry.key} == {"000000010", "000000030"}
    assert store.get("runs/a-run-2/checkpoints/000000005/state.safetensors") == b"another run's"


def test_a_run_that_went_back_replaces_its_future(store: Store, checkpoints: Checkpoints) -> None:
    """After a fallback the run repeats steps. A later checkpoint of the abandoned path must not win over what it saves."""
    for step in (10, 20):
        checkpoints.save(step, state(1), {})
    checkpoints.save(15, state(3), {})
    checkpoints.save(15, state(4), {})
    checkpoints.save(15, state(4), {})
    found = checkpoints.latest()
    assert found is not None
    assert (found.step, found.state["model/kernel"][0, 0]) == (15, 4)
    assert sorted(steps(store)) == [10, 15, 20]  # what was abandoned stays until the run has passed it
    checkpoints.save(25, state(5), {})
    assert steps(store) == [15, 25]


def test_equal_states_are_equal_files(store: Store, checkpoints: Checkpoints) -> None:
    """Two attempts to save a step must agree on its commit object, so that a put with a lost response is recognized as our own."""
    checkpoints.save(1, state(), {})
    first = store.get(key_of(store, 1, "state.safetensors"))
    checkpoints.save(2, {name: array.copy(order="F") for name, array in state().items()}, {})
    assert store.get(key_of(store, 2, "state.safetensors")) == first


class Gated(FolderStore):
    """Uploads wait for the gate; `commits` lists the committed steps in order."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.commits: list[int] = []

    def upload(self, key: str, path: Path, *, content_type: str | None = None) -> None:
        self.entered.set()
        self.gate.wait()
        super().upload(key, path, content_type=content_type)

    def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str | None = None) -> None:
        super().put(key, data, if_absent=if_absent, content_type=content_type)
        if key.endswith("commit.json"):
            self.commits.append(int(key.split("/")[-2]))


def test_slow_storage_delays_no_training_and_fills_no_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While an upload hangs, at most the newest and the best state must wait, or an outage fills the memory or loses the best. A
    line for each skipped checkpoint would bury the log of a run with fast epochs."""
    store = Gated(tmp_path)
    with closing(Checkpoints(store, "a-run", keep_last=2)) as checkpoints:
        checkpoints.save_in_background(1, state(1), {"validation_loss": 0.9})
        store.entered.wait()
        for step, loss in ((2, 0.5), (3, 0.2), (4, 0.6), (5, math.nan), (6, 0.7)):
            checkpoints.save_in_background(step, state(step), {"validation_loss": loss})
        assert store.commits == []
        store.gate.set()
    assert store.commits == [1, 3, 6]
    assert checkpoints.stats.skipped == 3
    (line,) = caplog.messages
    assert line.startswith("the checkpoint of step 2 is skipped, and others will be: storage is slower than the epochs.")
    best = checkpoints.best()
    assert best is not None
    assert best.step == 3


def test_slow_storage_drops_no_checkpoint_before_a_spike(tmp_path: Path) -> None:
    """The checkpoint before a spike may still wait for storage when the spike is found."""
    store = Gated(tmp_path)
    with closing(Checkpoints(store, "a-run", keep_last=1)) as checkpoints:
        checkpoints.save_in_background(1, state(1), {"validation_loss": 0.1})
        store.entered.wait()
        checkpoints.save_in_background(2, state(2), {"validation_loss": 0.5})
        checkpoints.keep({2})
        checkpoints.save_in_background(3, state(3), {"validation_loss": 0.9})
        checkpoints.save_in_background(4, state(4), {"validation_loss": 0.4})
        store.gate.set()
    assert store.commits == [1, 2, 4]


def test_a_save_waits_for_the_saves_under_way(tmp_path: Path) -> None:
    """An older save that still waits must not undo the last save before the job ends."""
    store = Gated(tmp_path)
    with closing(Checkpoints(store, "a-run", keep_last=1)) as checkpoints:
        checkpoints.save_in_background(1, state(1), {})
        store.entered.wait()
        checkpoints.save_in_background(2, state(2), {})
        store.gate.set()
        checkpoints.save(3, state(3), {})
        assert store.commits == [1, 2, 3]
        assert steps(store) == [3]


def test_a_failed_save_does_not_end_training(folder: FolderStore, caplog: pytest.LogCaptureFixture) -> None:
    """A storage failure must cost a checkpoint, not the run; it must be logged, and the next save must work."""
    folder.put(FOLDER, b"a file where a folder should be")
    with closing(Checkpoints(folder, "a-run", keep_last=2)) as checkpoints:
        checkpoints.save_in_background(10, state(), {})
        with pytest.raises(StoreError):
            checkpoints.save(11, state(), {})
        assert checkpoints.stats == SaveStats(failures=2)
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert "saving the checkpoint of step 10 failed; training continues: StoreError: " in record.message
        folder.delete([FOLDER])
        before = time.time()
        checkpoints.save(20, state(), {})
        assert (checkpoints.stats.step, checkpoints.stats.failures) == (20, 2)
        assert checkpoints.stats.committed is not None
        assert checkpoints.stats.committed >= before
        assert checkpoints.stats.seconds is not None
        assert checkpoints.latest() is not None


def test_closing_waits_for_the_saves(store: Store) -> None:
    """The last epoch's checkpoint would be missing when the job ends."""
    checkpoints = Checkpoints(store, "a-run", keep_last=2)
    assert checkpoints.stats == SaveStats()
    checkpoints.save_in_background(10, state(), {})
    checkpoints.close()
    assert steps(store) == [10]


class Wrong(FolderStore):
    """Gives one wrong answer to the first read whose key contains `where`, and sound answers before and after."""

    where, answer = "", b""
    hides = False

    def get(self, key: str) -> bytes:
        return super().get(key) if not self._is_due(key) else self._wrong(super().get(key))

    def download(self, key: str, path: Path) -> None:
        content = self._wrong(super().get(key)) if self._is_due(key) else None
        super().download(key, path)
        if content is not None:
            path.write_bytes(content)

    def list(self, prefix: str = "") -> Iterator[Object]:
        hides, self.hides = self.hides, False
        return iter([]) if hides else super().list(prefix)

    def _is_due(self, key: str) -> bool:
        return bool(self.where) and self.where in key

    def _wrong(self, content: bytes) -> bytes:
        self.where = ""
        if self.answer is None:
            raise NotFound("no such object")
        return altered(content) if self.answer == b"flipped" else self.answer


@pytest.mark.parametrize("name", ["state.safetensors", "meta.json", "commit.json", "keeps.json", "newest.json"])
@pytest.mark.parametrize("answer", [b"flipped", b"", b"<html>busy</html>", b"[" * 100_000, None])
def test_one_wrong_answer_costs_nothing(folder: FolderStore, name: str, answer: bytes | None) -> None:
    """A flipped bit, a 404 or the error page of a proxy would make the newest or the best checkpoint look damaged, and the next
    save would delete it."""
    losses = {100: 0.9, 200: 0.3, 300: 0.5, 400: 0.6, 500: 0.7}
    with closing(Checkpoints(folder, "a-run", 2, lease=1)) as first:
        for step, loss in losses.items():
            first.save(step, state(step), {"validation_loss": loss})
    for step in (200, 500):
        store = Wrong(folder.root)
        store.where, store.answer = name if name in ("keeps.json", "newest.json") else f"{step:09d}/{name}", answer
        found = Checkpoints(store, "a-run", 2).latest() if step == 500 else Checkpoints(store, "a-run", 2).best()
        assert found is not None
        assert found.step == step
    store = Wrong(folder.root)
    store.where, store.answer = name, answer
    with closing(Checkpoints(store, "a-run", 2, lease=2)) as second:
        resumed = second.claim()
        assert resumed is not None
        assert resumed.step == 500
        store.where = name
        second.save(600, state(600), {"validation_loss": 0.8})
    assert sorted(steps(folder)) == [200, 500, 600]


def test_an_empty_listing_does_not_restart_the_run(folder: FolderStore) -> None:
    """One bad answer would begin a run of many hours at step 0, and its saves would push out the earlier ones."""
    with closing(Checkpoints(folder, "a-run", 2, lease=1)) as first:
        first.save(10, state(1), {})
    store = Wrong(folder.root)
    for read in (lambda: Checkpoints(store, "a-run", 2).latest(), lambda: Checkpoints(store, "a-run", 2, lease=2).claim()):
        store.hides = True
        found = read()
        assert found is not None
        assert found.step == 10


def test_a_run_with_a_record_never_begins_again_by_itself(store: Store) -> None:
    """Lost or damaged checkpoints would silently cost the whole run; only a person can decide to begin again."""
    with closing(Checkpoints(store, "a-run", 2, lease=1)) as first:
        first.save(10, state(1), {})
    content = store.get(key_of(store, 10, "state.safetensors"))
    store.put(key_of(store, 10, "state.safetensors"), altered(content))
    again = Checkpoints(store, "a-run", 2, lease=2)
    with pytest.raises(CheckpointError, match=r"last one is of step 10\), but no intact one .* Fix: restore them, or delete"):
        again.claim()
    store.put(key_of(store, 10, "state.safetensors"), content)
    found = Checkpoints(store, "a-run", 2, lease=3).claim()
    assert found is not None
    assert found.step == 10
    store.delete([entry.key for entry in store.list(FOLDER) if "/000000010/" in entry.key])
    with pytest.raises(CheckpointError, match="no intact one is found"):
        Checkpoints(store, "a-run", 2, lease=4).claim()
    store.delete([entry.key for entry in store.list(FOLDER)])  # as a lifecycle rule with a wrong prefix does
    with pytest.raises(CheckpointError, match=r"delete the folder runs/a-run/ to begin"):
        Checkpoints(store, "a-run", 2, lease=5).claim()
    store.delete([entry.key for entry in store.list("runs/a-run/")])
    assert Checkpoints(store, "a-run", 2, lease=6).claim() is None


def test_a_stale_owner_changes_nothing(store: Store) -> None:
    """A driver that was paused while another took over would delete or replace the checkpoints of its successor, or add one that
    the next resume takes for the newest."""
    with closing(Checkpoints(store, "a-run", 2, lease=1)) as stale, closing(Checkpoints(store, "a-run", 2, lease=2)) as owner:
        assert stale.claim() is None
        stale.save(10, state(1), {"writer": 1})
        found = owner.claim()
        assert found is not None
        assert found.step == 10
        owner.save(20, state(2), {"writer": 2})
        for step in (20, 30, 5):
            with pytest.raises(CheckpointError, match=r"now written by another process \(lease 2, claim 1\)"):
                stale.save(step, state(1), {"writer": 1})
            assert stale.superseded.is_set()
            newest = owner.latest()
            assert newest is not None
            assert (newest.step, newest.meta) == (20, {"writer": 2})
        owner.save(40, state(2), {"writer": 2})
        assert sorted(set(steps(store))) == [20, 40]
        with closing(Checkpoints(store, "a-run", 2, lease=1)) as later, pytest.raises(CheckpointError, match="lease 2"):
            later.claim()
    assert not owner.superseded.is_set()


def test_a_commit_that_arrives_late_does_not_count(store: Store) -> None:
    """A request that hung in the network while the run was taken over would become the newest checkpoint, of another history."""
    with closing(Checkpoints(store, "a-run", 2, lease=1)) as stale, closing(Checkpoints(store, "a-run", 2, lease=2)) as owner:
        stale.save(10, state(1), {"writer": 1})
        stale.save(20, state(1), {"writer": 1})
        late = {name: store.get(key_of(store, 20, name)) for name in ("state.safetensors", "meta.json", "commit.json")}
        folder = key_of(store, 20, "commit.json").removesuffix("commit.json")
        store.delete([folder + name for name in late])
        assert (owner.claim() or pytest.fail("no checkpoint")).step == 10
        for name, content in late.items():
            store.put(folder + name, content)
        for reader in (owner, Checkpoints(store, "a-run", 2)):
            assert (reader.latest() or pytest.fail("no checkpoint")).step == 10
        owner.save(15, state(2), {"writer": 2})
        assert (Checkpoints(store, "a-run", 2, lease=3).claim() or pytest.fail("no checkpoint")).step == 15


def test_two_workers_under_one_lease(store: Store) -> None:
    """A worker that Ray took for dead and replaced would go on saving beside its replacement."""
    with closing(Checkpoints(store, "a-run", 2, lease=1)) as old, closing(Checkpoints(store, "a-run", 2, lease=1)) as new:
        old.claim()
        old.save(10, state(1), {})
        assert (new.claim() or pytest.fail("no checkpoint")).step == 10
        new.save(20, state(2), {})
        with pytest.raises(CheckpointError, match="claim 2"):
            old.save(20, state(1), {})
        newest = new.latest()
        assert newest is not None
        assert newest.state["model/kernel"][0, 0] == 2


def test_every_crash_point_of_a_save(folder: FolderStore) -> None:
    """A job killed while it saves a step again would lose the checkpoint of that step."""

    class Dying(FolderStore):
        left = 10**9

        def _check_guard(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    for step in (30, 20, 15):
        for left in range(10):
            place = FolderStore(folder.root / f"{step}-{left}")
            with closing(Checkpoints(place, "a-run", 2, lease=1)) as first:
                for earlier in (10, 20):
                    first.save(earlier, state(earlier), {"validation_loss": 1 / earlier})
            dying = Dying(place.root)
            second = Checkpoints(dying, "a-run", 2, lease=2)
            second.claim()
            dying.left = left
            try:
                second._save(step, state(step + 1), {"validation_loss": 0.01})
                least = step
            except KeyboardInterrupt:
                least = min(step, 20)
            newest = Checkpoints(place, "a-run", 2).latest()
            assert newest is not None
            assert newest.step >= least, (step, left)


STEPS = st.integers(1, 12)
LOSSES = st.sampled_from([0.1, 0.2, 0.2, 0.3, math.nan, math.inf, None])


@dataclass
class Entry:
    """One committed save of the model."""

    step: int
    loss: float
    intact: bool = True


class Saves(RuleBasedStateMachine):
    """Checkpoints beside a model of them: the committed saves in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = TemporaryDirectory()
        self.store = FolderStore(self.scratch.name)
        self.saved: list[Entry] = []

    @initialize(keep_last=st.integers(1, 3))
    def start(self, keep_last: int) -> None:
        self.keep_last = keep_last
        self.checkpoints = Checkpoints(self.store, "a-run", keep_last)

    def teardown(self) -> None:
        self.checkpoints.close()
        self.scratch.cleanup()

    def _current(self) -> list[Entry]:
        """Those that no later save of the same or an earlier step supersedes."""
        return [one for place, one in enumerate(self.saved) if all(later.step > one.step for later in self.saved[place + 1 :])]

    def _by_loss(self) -> list[Entry]:
        return sorted((one for one in self._current() if math.isfinite(one.loss)), key=lambda one: (one.loss, one.step))

    def _newest(self, step: int) -> Entry | None:
        return next((one for one in reversed(self.saved) if one.step == step), None)

    @rule(step=STEPS, loss=LOSSES)
    def save(self, step: int, loss: float | None) -> None:
        self.checkpoints.save(step, state(step), {} if loss is None else {"validation_loss": loss})
        self.saved.append(Entry(step, math.inf if loss is None else loss))
        kept = [*self._current()[-self.keep_last :], *self._by_loss()[:1]]
        self.saved = [one for one in self.saved if one.step > step or any(one is other for other in kept)]

    @rule(step=STEPS)
    def tear_state(self, step: int) -> None:
        if found := self._newest(step):
            self.store.put(key_of(self.store, step, "state.safetensors"), b"torn")
            found.intact = False

    @rule(step=STEPS)
    def lose_meta(self, step: int) -> None:
        if (found := self._newest(step)) and found.intact:
            self.store.delete([key_of(self.store, step, "meta.json")])
            found.intact = False

    @rule(step=STEPS)
    def lose_commit(self, step: int) -> None:
        if found := self._newest(step):
            self.store.delete([key_of(self.store, step, "commit.json")])
            self.saved = [one for one in self.saved if one is not found]

    @invariant()
    def agrees(self) -> None:
        assert sorted(steps(self.store)) == sorted(one.step for one in self.saved)
        newest, best = self.checkpoints.latest(), self.checkpoints.best()
        intact = [one.step for one in self._current() if one.intact]
        assert (newest and newest.step) == max(intact, default=None)
        assert (best and best.step) == next((one.step for one in self._by_loss() if one.intact), None)
        for found in (newest, best):
            assert found is None or found.state["model/kernel"][0, 0] == found.step


def test_any_saves_and_damages() -> None:
    """Some sequence of saves, fallbacks and damaged files would lose the newest or the best checkpoint, or keep too many."""
    logging.disable(logging.WARNING)  # one for each damaged checkpoint
    try:
        run_state_machine_as_test(Saves, settings=settings(BOUNDED, max_examples=15, stateful_step_count=12))
    finally:
        logging.disable(logging.NOTSET)
