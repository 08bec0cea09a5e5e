"""Checks the protocol of lease and checkpoints in every order of requests that chance finds, against what must never happen.

Drivers of one run take the lease, claim the checkpoints and save, on a store in memory and by a clock of its own. The machine
chooses who makes the next request, how much time passes, whose requests hang (they arrive later; the caller gives up), who dies.
A process that is not chosen for a while is a paused one. Never may happen:

- two processes believe in their right to write at the same time;
- a later driver resumes from before a save that was acknowledged, or such a save is lost;
- a save is acknowledged that a later driver has not built on;
- a checkpoint holds what another process wrote.

    python -m benchmarks.interleavings --rounds 2000
"""

import argparse
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from trainer.storage import Exists, NotFound, Object, Store, StoreError
from trainer.storage import lease as lease_module
from trainer.storage.checkpoint import CheckpointError, Checkpoints
from trainer.storage.lease import Lease, RunInUse

SECONDS = 30.0
"""Seconds of the lease, on the machine's clock."""
DRIVERS, SAVES = 4, 3


class Killed(BaseException):
    """Ends a process wherever it is."""


class Process:
    """A thread that makes one request each time it is chosen."""

    current = threading.local()

    def __init__(self, machine: "Interleavings", body: Callable[[], None], driver: int) -> None:
        self.machine = machine
        self.driver = driver
        self.killed = self.hangs = self.over = False
        self.wakes = 0.0
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(body,), daemon=True)
        self._thread.start()
        self._back.acquire()

    def _run(self, body: Callable[[], None]) -> None:
        Process.current.process = self
        try:
            self.gate()
            body()
        except Killed:
            pass
        except BaseException as error:
            self.machine.errors.append(error)
        finally:
            self.over = True
            self._back.release()

    def gate(self) -> None:
        """Waits until this process is chosen."""
        self._back.release()
        self._turn.acquire()
        if self.killed:
            raise Killed

    def sleep(self, seconds: float) -> None:
        self.wakes = self.machine.now + seconds
        self.gate()

    def go(self) -> None:
        """Runs until the next request."""
        self._turn.release()
        self._back.acquire()

    def kill(self) -> None:
        self.killed = True
        if not self.over:
            self.go()


def here() -> Process | None:
    return getattr(Process.current, "process", None)


def _sleep(seconds: float) -> None:
    if process := here():
        process.sleep(seconds)


class Memory(Store):
    """A store in memory; in a process, each request waits until that process is chosen."""

    def __init__(self, machine: "Interleavings") -> None:
        super().__init__("memory")
        self.machine = machine

    def _request(self) -> None:
        if process := here():
            process.gate()

    def _change(self, effect: Callable[[], None]) -> None:
        self._check_guard()
        self._request()
        if (process := here()) and process.hangs:
            process.hangs = False
            self.machine.late.append(effect)
            raise StoreError("no answer", transient=True)
        effect()

    def list(self, prefix: str = "") -> Iterator[Object]:
        self._request()
        return iter([Object(key, len(body), "") for key, body in sorted(self.machine.objects.items()) if key.startswith(prefix)])

    def get(self, key: str) -> bytes:
        self._request()
        if key not in self.machine.objects:
            raise NotFound(key)
        return self.machine.objects[key]

    def download(self, key: str, path: Path) -> None:
        path.write_bytes(self.get(key))

    def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str | None = None) -> None:  # noqa: ARG002
        def effect() -> None:
            if if_absent and key in self.machine.objects:
                raise Exists(key)
            self.machine.objects[key] = data

        self._change(effect)

    def upload(self, key: str, path: Path, *, content_type: str | None = None) -> None:  # noqa: ARG002
        self.put(key, path.read_bytes())

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._change(partial(self._forget, key))

    def _forget(self, key: str) -> None:
        self.machine.objects.pop(key, None)

    def sweep(self, prefix: str, older: float) -> int:  # noqa: ARG002
        return 0


class Heartbeat:
    """In place of the thread of a lease, a process that the machine chooses like any other."""

    def __init__(self, machine: "Interleavings", lease: Lease) -> None:
        self._machine, self._lease = machine, lease
        self._process: Process | None = None

    def start(self) -> None:
        self._process = self._machine.spawn(self._beat)

    def _beat(self) -> None:
        while not self._lease._stop.is_set() and not self._lease.lost.is_set():
            lease_module.sleep(SECONDS / 3)
            if not self._lease._stop.is_set():
                with suppress(StoreError):
                    self._lease._beat()

    def join(self, seconds: float) -> None:
        deadline = self._machine.now + seconds
        while self.is_alive() and self._machine.now < deadline:
            lease_module.sleep(1)

    def is_alive(self) -> bool:
        return self._process is not None and not self._process.over


class Interleavings(RuleBasedStateMachine):
    """The machine. Everything that several processes see is here."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.objects: dict[str, bytes] = {}
        self.late: list[Callable[[], None]] = []
        self.errors: list[BaseException] = []
        self.processes: list[Process] = []
        self.leases: list[Lease] = []
        self.acknowledged = 0
        self.claimed: dict[int, int] = {}
        """Number of the lease -> step from which it resumed."""
        self.patch = mock.patch.multiple(lease_module, clock=lambda: self.now, sleep=_sleep)
        self.patch.start()
        logging.disable(logging.CRITICAL)

    def teardown(self) -> None:
        for process in self.processes:
            process.kill()
        for effect in self.late:
            with suppress(Exists):
                effect()
        found = Checkpoints(Memory(self), "r", 2).latest()
        self.patch.stop()
        logging.disable(logging.NOTSET)
        self._check()
        newest = found.step if found else 0
        assert newest >= self.acknowledged, f"acknowledged up to step {self.acknowledged}, the newest checkpoint is {newest}"
        if found:
            assert float(found.state["w"][0]) == found.meta["writer"], "another process's content"
        TOTALS["rounds"] += 1
        TOTALS["processes"] += len(self.leases)
        TOTALS["takeovers"] += max(len(self.claimed) - 1, 0)
        TOTALS["acknowledged"] += self.acknowledged > 0

    def _driver(self) -> None:
        lease = Lease(Memory(self), "r", SECONDS)
        self.leases.append(lease)
        lease._thread = Heartbeat(self, lease)  # type: ignore[assignment]
        with suppress(RunInUse, StoreError, CheckpointError), lease:
            self._train(lease)

    def _train(self, lease: Lease) -> None:
        number = lease.fence.number
        checkpoints = Checkpoints(Memory(self).guarded(lease.fence.check), "r", 2, number)
        known = self.acknowledged
        found = checkpoints.claim()
        step = self.claimed[number] = found.step if found else 0
        assert step >= known, f"resumes at step {step}, but step {known} was acknowledged"
        for _ in range(SAVES):
            step += 10
            for _ in range(3):
                if lease.lost.is_set() or checkpoints.superseded.is_set():
                    return
                try:
                    checkpoints._save(step, {"w": np.full(2, number, np.float32)}, {"writer": number})
                except StoreError:
                    lease_module.sleep(1)
                    continue
                for later, resumed in self.claimed.items():
                    assert later <= number or resumed >= step, f"lease {number} acknowledges step {step}, lease {later} lacks it"
                self.acknowledged = max(self.acknowledged, step)
                break

    def spawn(self, body: Callable[[], None]) -> Process:
        parent = here()
        self.processes.append(Process(self, body, parent.driver if parent else len(self.processes)))
        return self.processes[-1]

    def _check(self) -> None:
        valid = [lease.fence.number for lease in self.leases if lease.fence.valid]
        assert len(valid) < 2, f"leases {valid} are valid at the same time"
        for error in self.errors:
            raise error

    def _ready(self) -> list[Process]:
        return [process for process in self.processes if not process.over and process.wakes <= self.now]

    @precondition(lambda self: len(self.leases) < DRIVERS)
    @rule()
    def start(self) -> None:
        self.spawn(self._driver)

    @precondition(lambda self: self._ready())
    @rule(who=st.integers(0, 7), times=st.integers(1, 60))
    def run(self, who: int, times: int) -> None:
        for _ in range(times):
            if ready := self._ready():
                ready[who % len(ready)].go()
            self._check()

    @precondition(lambda self: self.processes)
    @rule(seconds=st.sampled_from([1.0, SECONDS / 10, SECONDS / 3, SECONDS, 2 * SECONDS]), rounds=st.integers(0, 40))
    def pass_time(self, seconds: float, rounds: int) -> None:
        self.now += seconds
        self._check()
        for _ in range(rounds):  # a fair schedule for a while
            for process in self._ready():
                process.go()
                self._check()

    @precondition(lambda self: self._ready())
    @rule(who=st.integers(0, 7))
    def hang(self, who: int) -> None:
        ready = self._ready()
        ready[who % len(ready)].hangs = True

    @precondition(lambda self: self._ready())
    @rule(who=st.integers(0, 7), seconds=st.sampled_from([SECONDS / 2, SECONDS, 3 * SECONDS, 9 * SECONDS]), whole=st.booleans())
    def freeze(self, who: int, seconds: float, whole: bool) -> None:
        """Pauses a driver, or only its training or its heartbeat."""
        ready = self._ready()
        chosen = ready[who % len(ready)]
        for process in self.processes:
            if process is chosen or (whole and process.driver == chosen.driver):
                process.wakes = max(process.wakes, self.now + seconds)

    @precondition(lambda self: self.late)
    @rule(which=st.integers(0, 7))
    def arrive(self, which: int) -> None:
        with suppress(Exists):
            self.late.pop(which % len(self.late))()
        self._check()

    @precondition(lambda self: self._ready())
    @rule(who=st.integers(0, 7))
    def kill(self, who: int) -> None:
        ready = self._ready()
        ready[who % len(ready)].kill()
        self._check()


TOTALS: dict[str, int] = dict.fromkeys(("rounds", "processes", "takeovers", "acknowledged"), 0)
"""What the rounds of this process have seen."""


def check(rounds: int, **more: Any) -> None:
    """Raises AssertionError with the shortest sequence found that breaks a promise."""
    options = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)} | more
    run_state_machine_as_test(Interleavings, settings=settings(max_examples=rounds, stateful_step_count=60, **options))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interleavings", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2000)
    rounds, began = parser.parse_args().rounds, time.monotonic()
    check(rounds, derandomize=False, phases=[Phase.generate])
    print(f"{TOTALS} in {time.monotonic() - began:.0f} s: every promise held")


if __name__ == "__main__":
    main()
