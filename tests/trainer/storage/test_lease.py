"""The lease on a run's name, of trainer.storage.checkpoint."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.config import S3
from trainer.storage import Store, StoreError, open_store
from trainer.storage.folder import FolderStore
from trainer.storage.lease import Lease, RunInUse


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.integration)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(request.getfixturevalue("bucket") if request.param == "s3" else str(tmp_path), S3())


def lease_keys(store: Store) -> list[str]:
    return [entry.key.rpartition("/")[2] for entry in store.list("runs/a-run/lease-")]


def test_a_released_name_is_free_at_once(store: Store) -> None:
    """Resuming a finished run must not wait; the objects of former holders must not pile up."""
    for number in (1, 2, 3):
        with Lease(store, "a-run", 1000) as lease:
            assert lease_keys(store) == [f"lease-{number:06d}.json"]
        assert not lease.lost.is_set()


def test_a_live_run_keeps_its_name(store: Store) -> None:
    """Two jobs under one name would overwrite each other's checkpoints: the second must be told who holds it and what to do."""
    with Lease(store, "a-run", 4):
        with (
            pytest.raises(RunInUse, match=r'run "a-run" is in use by process \d+ on .+ \(since .+\): .*run\.name') as caught,
            Lease(store, "a-run", 4),
        ):
            raise AssertionError("two holders")
        assert "\n" not in str(caught.value)
        with Lease(store, "a-run-2", 4):
            pass


def test_one_of_many_gets_the_name(store: Store) -> None:
    """A Job and its retry that start at the same moment must not both train."""
    barrier, refused = threading.Barrier(6), threading.Semaphore(0)
    outcomes: list[str] = []

    def contend() -> None:
        barrier.wait()
        try:
            with Lease(store, "a-run", 4):
                outcomes.append("holds")
                for _ in range(5):
                    refused.acquire(timeout=10)
        except RunInUse:
            outcomes.append("refused")
            refused.release()

    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["holds"] + ["refused"] * 5


HOLD = """
import sys
from trainer.storage.checkpoint import Lease
from trainer.config import S3
from trainer.storage.s3 import open_store
with Lease(open_store(sys.argv[1], S3()), "a-run", 0.3) as lease:
    print("holds", flush=True)
    lease.lost.wait()
    print("lost", flush=True)
"""


@pytest.fixture
def holder(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the name and says so when it has lost it."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, store.url], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_the_name_of_a_killed_job_is_taken_over(store: Store, holder: subprocess.Popen[str]) -> None:
    """After a node is lost the retried job must go on by itself, without anyone removing a lock."""
    holder.kill()
    holder.wait()
    with Lease(store, "a-run", 0.3) as lease:
        assert lease_keys(store) == ["lease-000002.json"]
        assert not lease.lost.is_set()


def test_a_job_that_was_paused_and_replaced_notices(store: Store, holder: subprocess.Popen[str]) -> None:
    """A machine that wakes up again must stop writing, and must not release or retake the name of its successor."""
    holder.send_signal(signal.SIGSTOP)
    with Lease(store, "a-run", 0.3) as lease:
        holder.send_signal(signal.SIGCONT)
        out, _ = holder.communicate()
        assert out == "lost\n"
        assert holder.returncode == 0
        assert not lease.lost.is_set()
        assert lease_keys(store)[-1] == "lease-000002.json"
        assert not json.loads(store.get("runs/a-run/lease-000002.json"))["released"]


def test_a_contender_that_comes_too_late_gives_way(store: Store) -> None:
    """One that was held up between looking and taking finds its number free again after others came and went."""

    class HeldUp(Lease):
        def _watch(self) -> int:
            return 0

    with Lease(store, "a-run", 4):
        pass
    with Lease(store, "a-run", 4):
        with pytest.raises(RunInUse), HeldUp(store, "a-run", 4):
            raise AssertionError("two holders")
        assert lease_keys(store) == ["lease-000002.json"]


def test_a_failing_heartbeat_is_no_lost_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Training must survive an outage of the storage that is longer than the lease."""

    class Flaky(FolderStore):
        failed = 0

        def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str | None = None) -> None:
            if not if_absent and self.failed < 5:
                self.failed += 1
                raise StoreError("cannot be reached")
            super().put(key, data, if_absent=if_absent, content_type=content_type)

    store = Flaky(tmp_path)
    with Lease(store, "a-run", 0.3) as lease:
        deadline = time.monotonic() + 60
        while json.loads(store.get("runs/a-run/lease-000001.json"))["beat"] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not lease.lost.is_set()
    assert caplog.text.count("cannot be reached") == 5
    assert json.loads(store.get("runs/a-run/lease-000001.json"))["released"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"lease_seconds": "long", "beat"', b'{"lease_seconds": "long"}'])
def test_a_damaged_lease_does_not_block_the_name(store: Store, content: bytes) -> None:
    """A torn lease object shows no life: it must delay the next job, not stop it for ever."""
    store.put("runs/a-run/lease-000041.json", content)
    with Lease(store, "a-run", 0.1):
        assert lease_keys(store) == ["lease-000042.json"]
