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
from trainer.storage import Store, StoreError, open_store
from trainer.storage.checkpoint import STORABLE, CheckpointError, Checkpoints, SaveStats
from trainer.storage.folder import FolderStore

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
    return [int(entry.key.split("/")[-2]) for entry in store.list(FOLDER) if entry.key.endswith("/commit.json")]


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
    for restore in (checkpoints.latest, lambda: checkpoints.load(7)):
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
    folder = f"{FOLDER}/{step:09d}"
    commit = json.loads(store.get(f"{folder}/commit.json"))
    commit["files"]["state.safetensors"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    store.put(f"{folder}/state.safetensors", content)
    store.put(f"{folder}/commit.json", json.dumps(commit).encode())


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
    key = f"{FOLDER}/000000020/{name}"
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


def test_going_back_deletes_what_is_later(store: Store, checkpoints: Checkpoints) -> None:
    """A run that went back before a divergence, and died before its next save, would resume with the lost weights."""
    checkpoints.keep({1, 2})
    for step in (1, 2, 3, 4):
        checkpoints.save(step, state(step), {})
    store.put(f"{FOLDER}/000000005/state.safetensors", b"half")
    checkpoints.go_back(2)
    assert {entry.key.split("/")[-2] for entry in store.list(FOLDER)} == {"000000001", "000000002"}
    checkpoints.go_back(0)
    assert checkpoints.latest() is None


def test_a_damaged_best_checkpoint_is_skipped(store: Store, checkpoints: Checkpoints) -> None:
    """A finished run could never export its model, however often it is restarted."""
    for step, loss in ((1, 0.3), (2, 0.5), (3, 0.4)):
        checkpoints.save(step, state(step), {"validation_loss": loss})
    store.put(f"{FOLDER}/000000001/state.safetensors", b"torn")
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
    assert {entry.key.split("/")[-2] for entry in store.list(FOLDER)} == {"000000010", "000000030"}
    assert store.get("runs/a-run-2/checkpoints/000000005/state.safetensors") == b"another run's"


def test_a_run_that_went_back_replaces_its_future(store: Store, checkpoints: Checkpoints) -> None:
    """After a fallback the run repeats steps. A later checkpoint of the abandoned path must not win over what it saves."""
    for step in (10, 20):
        checkpoints.save(step, state(1), {})
    store.put(f"{FOLDER}/000000020/state.safetensors", b"damaged")
    checkpoints.save(15, state(3), {})
    assert steps(store) == [10, 15]
    checkpoints.save(15, state(4), {})
    checkpoints.save(15, state(4), {})
    found = checkpoints.latest()
    assert found is not None
    assert (found.step, found.state["model/kernel"][0, 0]) == (15, 4)


def test_equal_states_are_equal_files(store: Store, checkpoints: Checkpoints) -> None:
    """Two attempts to save a step must agree on its commit object, so that a put with a lost response is recognized as our own."""
    checkpoints.save(1, state(), {})
    first = store.get(f"{FOLDER}/000000001/state.safetensors")
    checkpoints.save(2, {name: array.copy(order="F") for name, array in state().items()}, {})
    assert store.get(f"{FOLDER}/000000002/state.safetensors") == first


class Gated(FolderStore):
    """Uploads wait for the gate; `commits` lists the committed steps in order."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.commits: list[int] = []
        self.rival: bytes | None = None

    def upload(self, key: str, path: Path, *, content_type: str | None = None) -> None:
        self.entered.set()
        self.gate.wait()
        super().upload(key, path, content_type=content_type)

    def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str | None = None) -> None:
        if self.rival:
            super().put(key, self.rival)
        super().put(key, data, if_absent=if_absent, content_type=content_type)
        self.commits.append(int(key.split("/")[-2]))


def test_slow_storage_delays_no_training_and_fills_no_memory(tmp_path: Path) -> None:
    """While an upload hangs, at most the newest and the best state must wait, or an outage fills the memory or loses the best."""
    store = Gated(tmp_path)
    with closing(Checkpoints(store, "a-run", keep_last=2)) as checkpoints:
        checkpoints.save_in_background(1, state(1), {"validation_loss": 0.9})
        store.entered.wait()
        for step, loss in ((2, 0.5), (3, 0.2), (4, 0.6), (5, math.nan), (6, 0.7)):
            checkpoints.save_in_background(step, state(step), {"validation_loss": loss})
        assert store.commits == []
        store.gate.set()
    assert store.commits == [1, 3, 6]
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


def test_two_writers_of_one_step_are_detected(tmp_path: Path) -> None:
    """Files of two jobs under one commit object would be a checkpoint of neither: the second job must fail."""
    store = Gated(tmp_path)
    store.gate.set()
    store.rival = b"{}"
    with closing(Checkpoints(store, "a-run", keep_last=2)) as checkpoints, pytest.raises(CheckpointError, match="another job"):
        checkpoints.save(1, state(), {})


STEPS = st.integers(1, 12)
LOSSES = st.sampled_from([0.1, 0.2, 0.2, 0.3, math.nan, math.inf, None])


class Saves(RuleBasedStateMachine):
    """Checkpoints beside a model of them: step -> validation loss of what is committed, and which of them are intact."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = TemporaryDirectory()
        self.store = FolderStore(self.scratch.name)
        self.losses: dict[int, float] = {}
        self.intact: set[int] = set()

    @initialize(keep_last=st.integers(1, 3))
    def start(self, keep_last: int) -> None:
        self.keep_last = keep_last
        self.checkpoints = Checkpoints(self.store, "a-run", keep_last)

    def teardown(self) -> None:
        self.checkpoints.close()
        self.scratch.cleanup()

    def _by_loss(self) -> list[int]:
        finite = [step for step, loss in self.losses.items() if math.isfinite(loss)]
        return sorted(finite, key=lambda step: (self.losses[step], step))

    @rule(step=STEPS, loss=LOSSES)
    def save(self, step: int, loss: float | None) -> None:
        self.checkpoints.save(step, state(step), {} if loss is None else {"validation_loss": loss})
        earlier = {other: kept for other, kept in self.losses.items() if other < step}
        self.losses = earlier | {step: math.inf if loss is None else loss}
        kept = {*sorted(self.losses)[-self.keep_last :], *self._by_loss()[:1]}
        self.losses = {other: self.losses[other] for other in kept}
        self.intact = self.intact & kept | {step}

    @rule(step=STEPS)
    def tear_state(self, step: int) -> None:
        if step in self.losses:
            self.store.put(f"{FOLDER}/{step:09d}/state.safetensors", b"torn")
            self.intact.discard(step)

    @rule(step=STEPS)
    def lose_meta(self, step: int) -> None:
        self.store.delete([f"{FOLDER}/{step:09d}/meta.json"])
        if step in self.losses:
            self.losses[step] = math.inf
            self.intact.discard(step)

    @rule(step=STEPS)
    def lose_commit(self, step: int) -> None:
        self.store.delete([f"{FOLDER}/{step:09d}/commit.json"])
        self.losses.pop(step, None)
        self.intact.discard(step)

    @invariant()
    def agrees(self) -> None:
        assert steps(self.store) == sorted(self.losses)
        newest, best = self.checkpoints.latest(), self.checkpoints.best()
        assert (newest and newest.step) == max(self.intact, default=None)
        assert (best and best.step) == next((step for step in self._by_loss() if step in self.intact), None)
        for found in (newest, best):
            assert found is None or found.state["model/kernel"][0, 0] == found.step


def test_any_saves_and_damages() -> None:
    """Some sequence of saves, fallbacks and damaged files would lose the newest or the best checkpoint, or keep too many."""
    logging.disable(logging.WARNING)  # one for each damaged checkpoint
    try:
        run_state_machine_as_test(Saves, settings=settings(BOUNDED, max_examples=25, stateful_step_count=12))
    finally:
        logging.disable(logging.NOTSET)
