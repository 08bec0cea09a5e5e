"""The mailbox: events go from the workers to the driver; a request to stop goes back with the answers. The driver also leaves there
until when its lease is valid.

The mailbox is a Ray actor beside the driver. Neither side ever waits for the other: a slow driver does not slow training down.
"""

import logging
import math
import time
from collections.abc import Iterator
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainer.run.events import Failed, Progress, Warned, WorkerEvent
from trainer.storage.lease import Lease, clock

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0
"""Shortest time between two Progress events."""
POLL_SECONDS = 0.3
"""Time between two reads of the mailbox."""


class Workers(Protocol):
    """What `listen` needs of ray_train.WorkerGroup."""

    @property
    def running(self) -> bool: ...

    def wait(self, seconds: float) -> None: ...


class Mailbox:
    """Keeps events until the driver takes them."""

    def __init__(self) -> None:
        self._events: list[WorkerEvent] = []
        self._stop = False
        self._failed = False
        self._lease_until = -math.inf

    def post(self, event: WorkerEvent) -> bool:
        """Adds an event. Returns whether the workers should stop."""
        self._events.append(event)
        self._failed |= isinstance(event, Failed)
        return self._stop

    def failed(self) -> bool:
        """Whether a worker has reported an error that a restart cannot fix."""
        return self._failed

    def take(self) -> list[WorkerEvent]:
        """Removes and returns all events, the oldest first."""
        events, self._events = self._events, []
        return events

    def request_stop(self) -> None:
        """From now on, the answer to each post asks for a stop."""
        self._stop = True

    def renew(self, until: float) -> None:
        """`until`: end of the driver's right to write, in seconds of lease.clock on this machine."""
        self._lease_until = until

    def lease_left(self) -> float:
        """Seconds until the driver's right to write ends; not positive once it has ended."""
        return self._lease_until - clock()


def start_mailbox(lease: Lease | None = None) -> Any:
    """Starts a Mailbox as an actor on the caller's node, which runs the driver. Returns its handle. From then on it learns of
    each renewal of `lease`, and no earlier mailbox does."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()

    def renewed(until: float) -> None:
        if ray.is_initialized():  # the lease outlives the cluster
            mailbox.renew.remote(until)

    if lease:
        lease.renewed = renewed
        renewed(lease.fence.until)
    return mailbox


def listen(mailbox: Any, workers: Workers, seconds: float = POLL_SECONDS) -> Iterator[list[WorkerEvent]]:
    """What the workers have posted, about every `seconds`, until they have ended."""
    while True:
        running = workers.running  # read before the mailbox, so that events posted before the end are still taken
        yield ray.get(mailbox.take.remote())
        if not running:
            return
        workers.wait(seconds)


class Outbox:
    """Rank 0's end of the mailbox; does nothing on other ranks.

    Posting does not wait. Whether the driver asks to stop is read from the answer to an earlier post.
    """

    def __init__(self, mailbox: Any, chief: bool) -> None:
        """`mailbox`: handle of the actor. `chief`: whether this worker is rank 0."""
        self._mailbox = mailbox
        self._chief = chief
        self._last_progress = 0.0
        self._answer: Any = None
        self.stop = False
        """Whether the driver has asked to stop, as far as this worker knows."""

    def post(self, event: WorkerEvent) -> None:
        if self._chief:
            self._read_answer()
            answer = self._mailbox.post.remote(event)
            if self._answer is None:  # keep the oldest: with frequent posts, the newest answer is never ready
                self._answer = answer

    def post_progress(self, epoch: int, step: int, steps: int) -> None:
        """Posts Progress, at most once in PROGRESS_SECONDS."""
        now = time.monotonic()
        if now - self._last_progress >= PROGRESS_SECONDS:
            self._last_progress = now
            self.post(Progress(epoch, step, steps))

    def _read_answer(self) -> None:
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            try:
                self.stop = self.stop or ray.get(self._answer)
            except ray.exceptions.RayError as error:  # failed monitoring must not end training
                log.warning("the driver does not answer: %s", error)
            self._answer = None


class WarningHandler(logging.Handler):
    """Posts what a worker logs as a warning or an error, such as a checkpoint that could not be saved."""

    def __init__(self, mailbox: Any) -> None:
        super().__init__(logging.WARNING)
        self._mailbox = mailbox

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._mailbox.post.remote(Warned(record.getMessage()))
        except Exception:  # as every logging handler does
            self.handleError(record)
