"""A worker's knowledge of its driver's lease: until when it may write, on its own clock.

The workers ask the driver's mailbox. The driver may be paused, killed or cut off from storage while they run: then nobody extends
their right, and they stop before another job can have taken over the run's name.
"""

import logging
import threading
from typing import Any

import ray

from trainer.formatting import one_line
from trainer.storage.lease import Fence, clock, sleep

log = logging.getLogger(__name__)

PATIENCE = 20
"""Workers whose right to write has ended pause for up to this many times checkpoint.lease_seconds, and then end."""


class WorkerFence(Fence):
    """The fence of one worker, extended by a thread of its own."""

    def __init__(self, mailbox: Any, number: int, lease_seconds: float) -> None:
        """`mailbox`: handle of the actor. `number`: of the driver's lease."""
        super().__init__(number)
        self._mailbox = mailbox
        self._seconds = lease_seconds
        threading.Thread(target=self._follow, name="fence", daemon=True).start()
        self._extended.wait(lease_seconds)  # the first answer

    def pause(self) -> None:
        """Returns when this worker may write; meanwhile training pauses. Raises LeaseLost when the lease is over for good."""
        self.wait(PATIENCE * self._seconds, self._say)

    def _say(self) -> None:
        log.warning(
            "training pauses until the driver has renewed the lease on the run's name, for up to %g s", PATIENCE * self._seconds
        )

    def _follow(self) -> None:
        while not self.lost.is_set():
            asked = clock()  # the answer is younger, so that the end computed from it is early rather than late
            try:
                self.extend(asked + ray.get(self._mailbox.lease_left.remote(), timeout=self._seconds))
            except ray.exceptions.ActorDiedError:  # with its driver
                self.lose()
            except ray.exceptions.RayError as error:  # no answer in time: the right to write ends by itself
                log.warning("the driver does not answer: %s", one_line(error)[:200])
            sleep(self._seconds / 10)
