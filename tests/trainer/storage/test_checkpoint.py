import hashlib
import io
import json
import logging
import math
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from trainer.config import S3
from trainer.storage import Store, StoreError, open_store
from trainer.storage.checkpoint import CheckpointError, Checkpoints, Stats
from trainer.storage.folder import FolderStore

FOLDER = "runs/a-run/checkpoints"


def state(value: float = 0.0) -> dict[str, np.ndarray]:
    return {"model/kernel": np.full((3, 2), value, np.float32), "optimizer/iteration": np.array(7, np.int64)}


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    """Not made yet."""
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
    saved = {
        "model/kernel:0": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "half": np.array([1.5, np.nan, np.inf], np.float16),
        "scalar": np.array(3, np.int64),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 4), np.uint8),
        "keys": np.array(["Au/1.jpg", "Tp/ü.jpg"]),
    }
    checkpoints.save(12, saved, {"validation_loss": math.nan, "order": [3, 1]})
    found = checkpoints.latest()
    assert found is not None
    step, restored, meta = found
    assert step == 12
    assert math.isnan(meta["validation_loss"])
    assert meta["order"] == [3, 1]
    assert list(restored) == list(saved)
    for name, array in saved.items():
        assert restored[name].dtype == array.dtype
        np.testing.assert_array_equal(restored[name], array)


def test_a_new_run_has_no_checkpoint(checkpoints: Checkpoints) -> None:
    """The first start of a run, into a folder that does not exist yet, must begin at the first epoch and not fail."""
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    with pytest.raises(CheckpointError, match="000000005/ is incomplete"):
        checkpoints.load(5)


@pytest.mark.parametrize("array", [np.array([{}, None]), np.zeros(2, ml_dtypes.bfloat16)], ids=["object", "bfloat16"])
def test_refuses_what_would_not_come_back(checkpoints: Checkpoints, array: np.ndarray) -> None:
    """Objects would need pickle, bfloat16 would silently come back as raw bytes; both must fail at saving, not at resuming."""
    with pytest.raises(CheckpointError, match='"bad" is an array of'):
        checkpoints.save(1, {**state(), "bad": array}, {})
    assert checkpoints.latest() is None
    assert checkpoints.stats.failures == 1


def test_never_loads_a_pickle(checkpoints: Checkpoints, store: Store, tmp_path: Path) -> None:
    """Whoever can write to the bucket must not be able to run code in the training job, valid checksums or not."""
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


def evil_archive(thing: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, evil=np.array([thing], object))
    return buffer.getvalue()


def evil_array(thing: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([thing], object))
    return buffer.getvalue()


def commit_as(store: Store, step: int, content: bytes) -> None:
    """Replaces the state of a checkpoint and makes its commit fit."""
    folder = f"{FOLDER}/{step:09d}"
    commit = json.loads(store.get(f"{folder}/commit.json"))
    commit["files"]["state.npz"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    store.put(f"{folder}/state.npz", content)
    store.put(f"{folder}/commit.json", json.dumps(commit).encode())


def torn(content: bytes) -> bytes:
    return content[: len(content) // 2]


def altered(content: bytes) -> bytes:
    return content[:-10] + bytes([content[-10] ^ 1]) + content[-9:]


@pytest.mark.parametrize("name", ["state.npz", "meta.json", "commit.json"])
@pytest.mark.parametrize("damage", [torn, altered, None], ids=["torn", "altered", "missing"])
def test_falls_back_to_the_one_before(
    checkpoints: Checkpoints,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[bytes], bytes] | None,
) -> None:
    """One damaged object must cost the steps since the checkpoint before, not the run, and the log must say which it was."""
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
    elif damage:  # without its commit it was never a checkpoint
        assert "000000020/" in caplog.text


def test_storage_that_does_not_answer_is_no_damage(folder: FolderStore) -> None:
    """A network failure during resume must not silently throw epochs away by falling back."""

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
    """Storage must not fill up, and the best weights must still be there at the end; a NaN is never the best."""
    for step, loss in enumerate([0.9, 0.4, math.nan, 0.4, 0.7, 0.8], start=1):
        checkpoints.save(step, state(step), {"validation_loss": loss})
    checkpoints.save(7, state(7), {})  # inside an epoch: no validation loss
    assert steps(store) == [2, 6, 7]
    best = checkpoints.best()
    assert best is not None
    assert best.step == best.state["model/kernel"][0, 0] == 2


def test_a_damaged_best_checkpoint_is_passed_over(store: Store, checkpoints: Checkpoints) -> None:
    """A finished run could never export its model, however often it is started again."""
    for step, loss in ((1, 0.3), (2, 0.5), (3, 0.4)):
        checkpoints.save(step, state(step), {"validation_loss": loss})
    store.put(f"{FOLDER}/000000001/state.npz", b"torn")
    best = checkpoints.best()
    assert best is not None
    assert best.step == 3


def test_cleans_up_what_a_killed_attempt_left(store: Store, checkpoints: Checkpoints) -> None:
    """A job killed while saving leaves files without a commit: never a checkpoint, gone with the next save."""
    checkpoints.save(10, state(), {})
    store.put(f"{FOLDER}/000000020/state.npz", b"half")
    store.put("runs/a-run-2/checkpoints/000000005/state.npz", b"another run's")
    assert checkpoints.latest() is not None
    checkpoints.save(30, state(), {})
    assert {entry.key.split("/")[-2] for entry in store.list(FOLDER)} == {"000000010", "000000030"}
    assert store.get("runs/a-run-2/checkpoints/000000005/state.npz") == b"another run's"


def test_a_run_that_went_back_replaces_its_future(store: Store, checkpoints: Checkpoints) -> None:
    """After a fall-back the run repeats steps: what it saves replaces what was there, later checkpoints included."""
    for step in (10, 20):
        checkpoints.save(step, state(1), {})
    store.put(f"{FOLDER}/000000020/state.npz", b"damaged")
    checkpoints.save(15, state(3), {})
    assert steps(store) == [10, 15]
    checkpoints.save(15, state(4), {})
    checkpoints.save(15, state(4), {})
    found = checkpoints.latest()
    assert found is not None
    assert (found.step, found.state["model/kernel"][0, 0]) == (15, 4)


def test_equal_states_are_equal_files(store: Store, checkpoints: Checkpoints) -> None:
    """Two attempts at one step agree on its commit: a put whose answer was lost is recognized as one's own."""
    checkpoints.save(1, state(), {})
    first = store.get(f"{FOLDER}/000000001/state.npz")
    checkpoints.save(2, state(), {})
    assert store.get(f"{FOLDER}/000000002/state.npz") == first
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert archive.namelist() == ["model/kernel.npy", "optimizer/iteration.npy"]


class Gated(FolderStore):
    """Uploads wait for the gate; `commits` lists the commits in their order."""

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


def test_slow_storage_holds_up_neither_training_nor_memory(tmp_path: Path) -> None:
    """While one upload hangs, at most the newest and the best state wait; the best epoch of an outage is not lost."""
    store = Gated(tmp_path)
    with closing(Checkpoints(store, "a-run", keep_last=2)) as checkpoints:
        checkpoints.save_in_background(1, state(1), {"validation_loss": 0.9})
        store.entered.wait()
        for step, loss in ((2, 0.5), (3, 0.2), (4, 0.6), (5, math.nan), (6, 0.7)):
            checkpoints.save_in_background(step, state(step), {"validation_loss": loss})
        assert store.commits == []
        store.gate.set()
        checkpoints.wait()
        assert store.commits == [1, 3, 6]
        best = checkpoints.best()
        assert best is not None
        assert best.step == 3


def test_a_save_comes_after_those_under_way(tmp_path: Path) -> None:
    """The last save before the job ends must not be undone by an older one that was still waiting."""
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
    """Storage that fails costs a checkpoint, loudly, not the run; the next save works again."""
    folder.put(FOLDER, b"a file where a folder should be")
    with closing(Checkpoints(folder, "a-run", keep_last=2)) as checkpoints:
        checkpoints.save_in_background(10, state(), {})
        checkpoints.wait()
        failed = checkpoints.stats
        assert (failed.step, failed.failures) == (None, 1)
        assert "step 10" in (failed.last_error or "")
        assert [record.levelno for record in caplog.records if "FAILED, training goes on" in record.message] == [logging.ERROR]
        folder.delete([FOLDER])
        before = time.time()
        checkpoints.save_in_background(20, state(), {})
        checkpoints.wait()
        saved = checkpoints.stats
        assert (saved.step, saved.failures, saved.last_error) == (20, 1, failed.last_error)
        assert saved.committed is not None
        assert saved.committed >= before
        assert saved.seconds is not None
        assert checkpoints.latest() is not None


def test_what_was_asked_for_is_saved_before_closing(store: Store) -> None:
    """The last epoch's checkpoint must be in storage when the job ends."""
    checkpoints = Checkpoints(store, "a-run", keep_last=2)
    assert checkpoints.stats == Stats()
    checkpoints.save_in_background(10, state(), {})
    checkpoints.close()
    assert steps(store) == [10]


def test_two_writers_of_one_step_are_found_out(tmp_path: Path) -> None:
    """Files of two jobs under one commit would be a checkpoint of neither: the one that comes second must fail."""
    store = Gated(tmp_path)
    store.gate.set()
    store.rival = b"{}"
    with closing(Checkpoints(store, "a-run", keep_last=2)) as checkpoints, pytest.raises(CheckpointError, match="another job"):
        checkpoints.save(1, state(), {})
