"""trainer.storage.lease on a folder and on S3 (a SeaweedFS server)."""

import itertools
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.support.properties import BOUNDED
from trainer.config import S3
from trainer.storage import Object, Store, StoreError, open_store
from trainer.storage import lease as lease_module
from trainer.storage.folder import FolderStore
from trainer.storage.lease import Lease, RunInUse


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.integration)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(request.getfixturevalue("bucket") if request.param == "s3" else str(tmp_path), S3())


def lease_keys(store: Store) -> list[str]:
    return [entry.key.rpartition("/")[2] for entry in store.list("runs/a-run/lease-")]


def test_a_released_name_is_free_at_once(store: Store) -> None:
    """Resuming a finished run would have to wait, or the objects of former holders would pile up."""
    for number in (1, 2, 3):
        with Lease(store, "a-run", 1000) as lease:
            assert lease_keys(store) == [f"lease-{number:06d}.json"]
        assert not lease.lost.is_set()


def test_a_live_run_keeps_its_name(store: Store) -> None:
    """Two jobs under one name would overwrite each other's checkpoints, or the second would not learn who holds the name."""
    with Lease(store, "a-run", 4):
        with (
            pytest.raises(RunInUse, match=r'Run "a-run" is in use by process \d+ on .+ \(since .+\)\. Fix: .*run\.name') as caught,
            Lease(store, "a-run", 4),
        ):
            raise AssertionError("two holders")
        assert "\n" not in str(caught.value)
        with Lease(store, "a-run-2", 4):
            pass


def test_one_of_many_gets_the_name(store: Store) -> None:
    """A Job and its retry that start at the same moment would both train."""
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
from trainer.config import S3
from trainer.storage import open_store
from trainer.storage.lease import Lease
with Lease(open_store(sys.argv[1], S3()), "a-run", 0.3) as lease:
    print("holds", flush=True)
    lease.lost.wait()
    print("lost", flush=True)
"""


@pytest.fixture
def holder(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the name and prints a line when it has lost it."""
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
    """After the loss of a node a person would have to remove the lock before the retried job can continue."""
    holder.kill()
    holder.wait()
    with Lease(store, "a-run", 0.3) as lease:
        assert lease_keys(store) == ["lease-000002.json"]
        assert not lease.lost.is_set()


def test_a_job_that_was_paused_and_replaced_notices(store: Store, holder: subprocess.Popen[str]) -> None:
    """A machine that wakes up again would keep writing, or release or retake the name of its successor."""
    holder.send_signal(signal.SIGSTOP)
    with Lease(store, "a-run", 0.3) as lease:
        holder.send_signal(signal.SIGCONT)
        out, _ = holder.communicate()
        assert out == "lost\n"
        assert holder.returncode == 0
        assert not lease.lost.is_set()
        assert lease_keys(store)[-1] == "lease-000002.json"
        assert not json.loads(store.get("runs/a-run/lease-000002.json"))["released"]


def test_a_delayed_contender_gives_way(store: Store) -> None:
    """A contender delayed between looking and taking, whose number is free again, would become a second holder."""

    class Delayed(Lease):
        def _watch(self) -> int:
            return 0

    with Lease(store, "a-run", 4):
        pass
    with Lease(store, "a-run", 4):
        with pytest.raises(RunInUse), Delayed(store, "a-run", 4):
            raise AssertionError("two holders")
        assert lease_keys(store) == ["lease-000002.json"]


def test_a_failing_heartbeat_does_not_lose_the_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An outage of the storage longer than the lease would end the training."""

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
    """A torn lease object would block the next job forever instead of delaying it."""
    store.put("runs/a-run/lease-000041.json", content)
    with Lease(store, "a-run", 0.1):
        assert lease_keys(store) == ["lease-000042.json"]


class Turns:
    """Runs functions in threads, one at a time, in a time of its own: each runs until it calls `pause` or `sleep`, then the
    schedule picks the next one. Time passes only while all of them sleep."""

    def __init__(self, schedule: Iterable[int], on_tick: Callable[[], None]) -> None:
        """`on_tick` is called whenever time has passed."""
        self.now = 0.0
        self._on_tick = on_tick
        self._schedule = itertools.chain(schedule, itertools.count())
        self._back = threading.Semaphore(0)
        self._own = threading.local()
        self._waking: dict[threading.Semaphore, float] = {}

    def pause(self) -> None:
        if turn := getattr(self._own, "turn", None):  # unset in other threads
            self._back.release()
            turn.acquire()

    def sleep(self, seconds: float) -> None:
        if turn := getattr(self._own, "turn", None):
            self._waking[turn] = self.now + seconds
            self.pause()
        else:
            self._tick(self.now + seconds)

    def run(self, functions: list[Callable[[], None]]) -> None:
        """Returns when all functions have returned. Raises the error of one that failed."""
        with ThreadPoolExecutor(len(functions)) as pool:
            turns = [threading.Semaphore(0) for _ in functions]
            self._waking = dict.fromkeys(turns, 0.0)
            futures = list(map(pool.submit, [self._call] * len(turns), functions, turns))
            while self._waking:
                ready = [turn for turn in turns if self._waking.get(turn, math.inf) <= self.now]
                if ready:
                    ready[next(self._schedule) % len(ready)].release()
                    self._back.acquire()
                else:
                    self._tick(min(self._waking.values()))
        for future in futures:
            future.result()

    def _tick(self, now: float) -> None:
        self.now = now
        self._on_tick()

    def _call(self, function: Callable[[], None], turn: threading.Semaphore) -> None:
        turn.acquire()
        self._own.turn = turn
        try:
            function()
        finally:
            self._own.turn = None
            del self._waking[turn]
            self._back.release()


class Stepwise(FolderStore):
    """A folder whose every operation gives other threads a turn first."""

    def __init__(self, folder: str, pause: Callable[[], None]) -> None:
        super().__init__(folder)
        self.pause = pause

    def list(self, prefix: str = "") -> Iterator[Object]:
        self.pause()
        return iter(list(super().list(prefix)))

    def get(self, key: str) -> bytes:
        self.pause()
        return super().get(key)

    def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str | None = None) -> None:
        self.pause()
        super().put(key, data, if_absent=if_absent, content_type=content_type)

    def delete(self, keys: Iterable[str]) -> None:
        self.pause()
        super().delete(keys)


@settings(BOUNDED, max_examples=40)
@given(
    former=st.sampled_from(["none", "released", "dead"]),
    plans=st.lists(st.sampled_from(["hold", "release", "die"]), min_size=2, max_size=4),
    schedule=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), max_size=12),
)
def test_any_interleaving_of_contenders(former: str, plans: list[str], schedule: list[tuple[int, int]]) -> None:
    """In some order of requests two jobs would hold the name, a live job would lose it, or it would stay taken for ever."""
    started: list[Lease] = []
    alive: list[Lease] = []
    lost: list[Lease] = []

    def beat() -> None:
        for holder in list(alive):  # in place of the thread that does it every third of the lease seconds
            holder._beat()
            if holder.lost.is_set():
                alive.remove(holder)
                lost.append(holder)

    def contender() -> Lease:
        started.append(Lease(store, "a-run", 3000))
        return started[-1]

    def contend(plan: str) -> None:
        lease = contender()
        try:
            lease.__enter__()
        except RunInUse:
            return
        assert not alive, "two holders"
        alive.append(lease)
        turns.sleep(1000)
        if plan != "hold" and lease in alive:
            alive.remove(lease)
            if plan == "release":
                lease.__exit__()

    turns = Turns((who for who, times in schedule for _ in range(times)), beat)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease_module, "time", SimpleNamespace(monotonic=lambda: turns.now, sleep=turns.sleep))
        store = Stepwise(folder, turns.pause)
        if former != "none":
            with contender():
                record = store.get("runs/a-run/lease-000001.json")
            if former == "dead":
                store.put("runs/a-run/lease-000001.json", record)
        turns.run([partial(contend, plan) for plan in plans])
        for lease in started:
            if lease not in alive and lease._number:
                lease._beat()  # a dead one wakes up
        beat()
        assert not lost, "a live job lost its name"
        with pytest.raises(RunInUse) if alive else nullcontext():
            contender().__enter__()
        for lease in started:
            lease._stop.set()
