"""Pauses, kills and cuts off drivers of one run at random moments, and counts what lease and checkpoints promise never to happen.

Real processes (SIGSTOP, SIGKILL) on a folder, and on a real S3 server (SeaweedFS) behind a proxy that makes requests hang, arrive
late or lose their answers. Each round, a second driver takes the run over from the first, which then wakes up.

    python -m benchmarks.takeovers --rounds 100            # both stores
"""

import argparse
import logging
import multiprocessing
import os
import random
import secrets
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import patch

import numpy as np

from benchmarks.support.faultproxy import FaultProxy
from jobs.demo.s3_server import S3Server, local_s3_server
from trainer.config import S3
from trainer.storage import Store, StoreError, open_store
from trainer.storage.checkpoint import CheckpointError, Checkpoints
from trainer.storage.folder import FolderStore
from trainer.storage.lease import Lease, LeaseLost, RunInUse

SECONDS = 0.8
"""Seconds of the leases."""
PATIENCE = 60.0
"""Longest wait for a driver."""
CONTEXT = multiprocessing.get_context("forkserver")


class Stalling(FolderStore):
    """A folder on a network disk: now and then an operation takes effect late."""

    def _write(self, path: Path, fill: Callable[[BinaryIO], Any], if_absent: bool = False, *, durable: bool = False) -> bool:
        self._check_guard()
        if random.random() < 0.02:
            time.sleep(random.uniform(0, 3 * SECONDS))
        other = FolderStore(self.root)  # without the guard: the request is on its way
        return other._write(path, fill, if_absent, durable=durable)


def drive(url: str, endpoint: str | None, shaky: bool, seed: int, pipe: Connection, environment: Mapping[str, str]) -> None:
    """A driver: takes the lease, claims the checkpoints and saves until it loses the run. Reports each step through `pipe`.

    `environment`: of the S3 server. Processes of a forkserver have the environment in which that was started, perhaps for a folder.
    """
    logging.disable(logging.CRITICAL)
    os.environ.update(environment)
    random.seed(seed)

    def store() -> Store:
        settings = S3(endpoint_url=endpoint, path_style=True, read_timeout=2.0, max_attempts=3)
        return Stalling(url) if shaky and "://" not in url else open_store(url, settings)

    while True:
        try:
            with Lease(store(), "r", SECONDS) as lease:
                _train(lease, store().guarded(lease.fence.check), pipe)
            return
        except RunInUse:
            time.sleep(SECONDS / 4)
        except StoreError:
            pass


def _train(lease: Lease, store: Store, pipe: Connection) -> None:
    number = lease.fence.number
    checkpoints = Checkpoints(store, "r", 2, number)
    lease.fence.wait(PATIENCE)
    found = checkpoints.claim()
    step = found.step if found else 0
    pipe.send(("claims", number, step))
    while not checkpoints.superseded.is_set():
        try:
            lease.fence.wait(PATIENCE)
            checkpoints.save(step + 10, {"w": np.full(8, number, np.float32)}, {"writer": number, "validation_loss": 1.0})
        except (LeaseLost, CheckpointError):
            if lease.lost.is_set():
                break
            continue
        except StoreError:
            continue
        step += 10
        pipe.send(("saved", number, step))
        time.sleep(random.uniform(0, 0.05))
    pipe.send(("ends", number, step))


@dataclass
class Driver:
    """A running driver and what it has reported: (what, lease, step)."""

    process: Any
    pipe: Connection
    reports: list[tuple[str, int, int]] = field(default_factory=list)

    def all(self, what: str) -> list[tuple[str, int, int]]:
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                self.reports.append(self.pipe.recv())
        return [report for report in self.reports if report[0] == what]

    def wait_for(self, what: str, seconds: float = PATIENCE) -> bool:
        deadline = time.monotonic() + seconds
        while not self.all(what) and self.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        return bool(self.all(what))

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGCONT)
        self.process.kill()
        self.process.join()
        self.all("saved")


def play(url: str, server: S3Server | None, proxy: FaultProxy | None, seed: int) -> Counter[str]:
    """One round. Returns what was counted; the promises are the counts that begin with `BROKEN`."""
    endpoint, environment = (server.endpoint_url, server.environment) if server else (None, {})
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    fault = chance.choice(["pause", "pause", "kill", "hang"])
    drivers: list[Driver] = []

    def start(shaky: bool) -> Driver:
        mine, theirs = CONTEXT.Pipe(duplex=False)
        through = proxy.url if shaky and proxy else endpoint
        arguments = url, through, shaky, chance.getrandbits(32), theirs, environment
        process = CONTEXT.Process(target=drive, args=arguments, daemon=True)
        process.start()
        theirs.close()
        drivers.append(Driver(process, mine))
        return drivers[-1]

    try:
        first = start(fault == "hang")
        if not first.wait_for("saved"):
            counts["nothing saved"] += 1
        time.sleep(chance.uniform(0, 0.6))
        if fault == "pause":
            first.signal(signal.SIGSTOP)
        elif fault == "kill":
            first.kill()
        elif proxy:
            proxy.inject(
                chance.choice(["hang", "late", "lose"]),
                chance.choice([1, 2, 4]),
                after=chance.choice([1, 2, 4]),
                matches=lambda _, path: url.removeprefix("s3:/") in path,
            )
        second = start(False)
        if fault == "hang" and not second.wait_for("claims", 4 * SECONDS):
            first.signal(signal.SIGSTOP)
        if not second.wait_for("claims"):
            counts["BROKEN no takeover"] += 1
        second.wait_for("saved")
        time.sleep(chance.uniform(0, 0.6))
        first.signal(signal.SIGCONT)
        first.wait_for("ends", 6 * SECONDS)
        time.sleep(chance.uniform(0, 0.2))
    finally:
        for driver in drivers:
            driver.kill()
    counts.update({fault: 1, "rounds": 1})
    counts.update(_judge(url, endpoint, first, second))
    return counts


def _judge(url: str, endpoint: str | None, first: Driver, second: Driver) -> Counter[str]:
    counts: Counter[str] = Counter()
    store = open_store(url, S3(endpoint_url=endpoint, path_style=True))
    saved = {which: max((step for _, _, step in driver.all("saved")), default=0) for which, driver in enumerate((first, second))}
    for _, number, step in second.all("claims"):
        counts["takeovers"] += 1
        before = [report for report in first.all("saved") if report[1] < number]
        counts["BROKEN second resumes from before an acknowledged save"] += step < max((report[2] for report in before), default=0)
    found = Checkpoints(store, "r", 2).latest()
    counts["BROKEN acknowledged save lost"] += (found.step if found else 0) < max(saved.values())
    counts["BROKEN content of another"] += found is not None and float(found.state["w"][0]) != found.meta["writer"]
    stored = {key for key in (entry.key for entry in store.list("runs/r/checkpoints/")) if key.endswith("commit.json")}
    last = max((number for _, number, _ in second.all("claims")), default=0)
    acknowledged = {(number, step) for driver in (first, second) for _, number, step in driver.all("saved")}
    names = [(int(key.split("/")[-3][:6]), int(key.split("/")[-2])) for key in stored]
    counts["late commits that do not count"] += sum(name[0] < last and name not in acknowledged for name in names)
    counts["acknowledged"] += len(acknowledged)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.takeovers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="rounds on each store")
    parser.add_argument("--store", choices=["folder", "s3"], action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=6, help="rounds at the same time")
    arguments = parser.parse_args()
    for kind in arguments.store or ["folder", "s3"]:
        began = time.monotonic()
        counts = rounds(kind, arguments.rounds, arguments.seed, arguments.parallel)
        print(f"{kind}: {dict(sorted(counts.items()))} in {time.monotonic() - began:.0f} s", flush=True)


def rounds(kind: str, number: int, seed: int = 0, parallel: int = 6) -> Counter[str]:
    """Plays rounds on a "folder" or on "s3"; returns the sum of their counts."""
    CONTEXT.set_forkserver_preload(["jobs.demo.s3_server", "trainer.storage.s3", "trainer.storage.checkpoint"])
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(local_s3_server(f"{scratch}/s3")) if kind == "s3" else None
        stack.enter_context(patch.dict(os.environ, server.environment if server else {}))

        def one(which: int) -> Counter[str]:
            url = f"s3://spikewise/{secrets.token_hex(8)}" if server else f"{scratch}/{which}"
            with ExitStack() as inner:
                proxy = inner.enter_context(FaultProxy(server.endpoint_url)) if server else None
                return play(url, server, proxy, seed * 1_000_003 + which)

        with ThreadPoolExecutor(parallel) as pool:
            for found in pool.map(one, range(number)):
                counts.update(found)
    return counts


if __name__ == "__main__":
    main()
