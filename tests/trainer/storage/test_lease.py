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

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from benchmarks.support.faultproxy import FaultProxy
from jobs.demo.s3_server import S3Server
from tests.support.properties import BOUNDED
from trainer.config import S3
from trainer.storage import NotFound, Object, Store, StoreError, open_store
from trainer.storage import lease as lease_module
from trainer.storage.files import PARTIAL
from trainer.storage.folder import FolderStore
from trainer.storage.lease import Fence, Lease, LeaseLost, RunInUse, WaitStopped, clock


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
        def _watch(self) -> tuple[int, None]:
            return 0, None

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


def held(store: Store, **changes: object) -> None:
    """Puts the lease object of a job that may be dead."""
    record = {"token": "t", "host": "h\x1b[31m", "pid": 1, "since": "x", "lease_seconds": 1000, "beat": 7, "released": False}
    store.put("runs/a-run/lease-000001.json", json.dumps(record | changes).encode())


def test_waiting_says_so_and_ends_on_request(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A restarted job would be silent for minutes and deaf to Ctrl-C, or print what the lease object of another tells it to."""
    held(store)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(WaitStopped), Lease(store, "a-run", 1000, stop):
        raise AssertionError("two holders")
    assert "waiting up to 1000 s for a sign of life. Ctrl-C ends the wait" in caplog.text
    assert "\x1b" not in caplog.text
    assert lease_keys(store) == ["lease-000001.json"]


def test_a_lease_object_that_cannot_be_read(tmp_path: Path) -> None:
    """A listing that shows an object which is not there would make the next job wait forever."""

    class Ghost(FolderStore):
        def list(self, prefix: str = "") -> Iterator[Object]:
            yield from [*super().list(prefix), *([Object("runs/a-run/lease-000007.json", 1, "")] if "lease" in prefix else [])]

    store = Ghost(tmp_path)
    store.put("other", b"")
    with Lease(store, "a-run", 0.1) as lease:
        assert lease.fence.number == 8


def test_a_wait_that_the_object_of_another_asks_for_is_bounded(store: Store) -> None:
    """A damaged or hostile object could lock a run's name for ever."""
    for seconds in (1e300, -5, "long", None, [1]):
        held(store, lease_seconds=seconds)
        with Lease(store, "a-run", 0.1) as lease:
            assert lease.fence.number == 2
        store.delete([f"runs/a-run/{name}" for name in lease_keys(store)])


def test_a_store_that_ignores_conditions_is_refused(tmp_path: Path) -> None:
    """Two drivers that start at the same moment would both own the run."""

    class Careless(FolderStore):
        def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str | None = None) -> None:  # noqa: ARG002
            super().put(key, data, content_type=content_type)

    with (
        pytest.raises(
            StoreError, match=r"ignores conditions .*If-None-Match.* Fix: use a server with conditional writes"
        ) as caught,
        Lease(Careless(tmp_path), "a-run", 4),
    ):
        raise AssertionError("owned without a condition")
    assert "\n" not in str(caught.value)


def test_deleted_lease_objects_do_not_restart_the_numbers(store: Store) -> None:
    """After someone cleaned up the lease objects, a resumed run would be taken for a stale one and could not save."""
    store.put("runs/a-run/checkpoints/000007-001-000000/claim.json", b"{}")
    with Lease(store, "a-run", 4) as lease:
        assert lease.fence.number == 8


def test_an_empty_listing_renews_nothing(tmp_path: Path) -> None:
    """One bad answer would hide a successor, and two jobs would write for up to the lease seconds."""

    class Forgetful(FolderStore):
        forgets = False

        def list(self, prefix: str = "") -> Iterator[Object]:
            return iter([]) if self.forgets else super().list(prefix)

    store = Forgetful(tmp_path)
    with Lease(store, "a-run", 1000) as lease:
        until = lease.fence.until
        store.forgets = True
        with pytest.raises(NotFound, match="missing from the listing"):
            lease._beat()
        assert lease.fence.until == until
        store.forgets = False
        lease._beat()
        assert lease.fence.until > until


def test_another_object_under_our_number(store: Store) -> None:
    """After the run's folder was deleted and begun again by another job, both would beat on one object and own the run."""
    with Lease(store, "a-run", 1000) as lease:
        held(store)
        lease._beat()
        assert lease.lost.is_set()
        with pytest.raises(LeaseLost, match="taken over"):
            lease.fence.check()
    assert not json.loads(store.get("runs/a-run/lease-000001.json"))["released"]


def test_the_right_to_write_ends_by_itself() -> None:
    """A process that wakes after a pause would write before it has asked anyone."""
    fence = Fence(3)
    with pytest.raises(LeaseLost, match="not been renewed"):
        fence.check()
    fence.extend(clock() + 1000)
    fence.check()
    fence.extend(clock() - 0.001)
    with pytest.raises(LeaseLost):
        fence.check()
    waits: list[int] = []
    with pytest.raises(LeaseLost):
        fence.wait(0.05, lambda: waits.append(1))
    threading.Timer(0.05, lambda: fence.extend(clock() + 1000)).start()
    fence.wait(1000, lambda: waits.append(2))
    assert waits == [1, 2]
    fence.lose()
    with pytest.raises(LeaseLost, match="taken over"):
        fence.wait(1000)


def test_a_guarded_store_changes_nothing_without_the_right(store: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A worker of a job that lost its run would overwrite the model, or delete the checkpoints, of its successor."""
    fence, file = Fence(1), tmp_path_factory.mktemp("local") / "file"
    file.write_bytes(b"mine")
    store.put("key", b"theirs")
    if isinstance(store, FolderStore):
        (store.root / f"{PARTIAL}0").write_bytes(b"half of theirs")
    else:
        store.client.create_multipart_upload(Bucket=store.bucket, Key=f"{store.prefix}theirs")
    before = store.requests.total()
    guarded = store.guarded(fence.check)
    for change in (
        lambda: guarded.put("key", b"mine"),
        lambda: guarded.put("new", b"mine", if_absent=True),
        lambda: guarded.upload("key", file),
        lambda: guarded.delete(["key"]),
        lambda: guarded.sweep("", -5),
    ):
        with pytest.raises(LeaseLost):
            change()
    assert guarded.get("key") == b"theirs"
    assert [entry.key for entry in guarded.list()] == ["key"]
    assert store.requests is guarded.requests
    if not isinstance(store, FolderStore):
        assert store.requests.total() == before + 3  # get, list and the list of uploads
    fence.extend(clock() + 1000)
    guarded.put("key", b"mine")
    assert store.get("key") == b"mine"
    assert guarded.sweep("", -5) == 1


@pytest.mark.integration
def test_a_hung_heartbeat_does_not_cost_the_name(s3_server: S3Server, bucket: str) -> None:
    """One dead connection, given up only after s3.read_timeout, would hand a healthy run to the next contender."""
    with FaultProxy(s3_server.endpoint_url) as proxy:
        store = open_store(bucket, S3(endpoint_url=proxy.url, read_timeout=100, max_attempts=5))
        with Lease(store, "a-run", 8) as lease:
            proxy.inject("hang", 1, matches=lambda method, path: method == "PUT" and "lease-" in path)
            with pytest.raises(RunInUse), Lease(open_store(bucket, S3()), "a-run", 8):
                raise AssertionError("two holders")
            assert not lease.lost.is_set()


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
        patch.setattr(lease_module, "clock", lambda: turns.now)
        patch.setattr(lease_module, "sleep", turns.sleep)
        store = Stepwise(folder, turns.pause)
        if former != "none":
            with contender():
                record = store.get("runs/a-run/lease-000001.json")
            if former == "dead":
                store.put("runs/a-run/lease-000001.json", record)
        turns.run([partial(contend, plan) for plan in plans])
        for lease in started:
            if lease not in alive and lease.fence.number:
                lease._beat()  # a dead one wakes up
        beat()
        assert not lost, "a live job lost its name"
        with pytest.raises(RunInUse) if alive else nullcontext():
            contender().__enter__()
        for lease in started:
            lease._stop.set()
