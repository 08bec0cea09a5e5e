"""Owns a run's metrics: the exporter follows the run's events, and its endpoint stays open until the last values are scraped."""

from contextlib import suppress

from trainer.metrics import Exporter
from trainer.run.events import CheckpointSaved, EpochFinished, Finished, Progress, Requests, Resumed, Started, WorkerEvent
from trainer.run.status import RunStatus
from trainer.storage.checkpoint import SaveStats

STOP_SECONDS = 20.0
"""Longest wait for a scrape after a stop was requested: more than one interval of the PodMonitor, and well within a pod's grace
period."""


class Monitoring:
    """Passes a run's events on to its Exporter."""

    def __init__(self, exporter: Exporter, batch_size: int, linger: float) -> None:
        """`batch_size`: images of a global batch. `linger`: longest wait for the last scrape, in seconds."""
        self.exporter = exporter
        self._batch_size = batch_size
        self._linger = linger

    def hear(self, event: WorkerEvent, status: RunStatus) -> None:
        """`status`: after this event."""
        exporter = self.exporter
        match event:
            case Started():
                exporter.begin(event.restarts, steps=event.step, images=event.step * self._batch_size)
            case Resumed():
                exporter.update_spikes(status.diagnoses)
            case Progress():
                exporter.progress(event.epoch, event.step, event.steps)
            case EpochFinished():
                exporter.update(
                    event.report,
                    best=status.best,
                    images=event.report.step * self._batch_size,
                    input_waits=event.input_waits,
                    overfitting=event.overfitting,
                )
                self.count_requests("worker 0", event.requests)
                if event.news is not None:
                    exporter.update_spikes(status.diagnoses)
                    exporter.update_parts(event.news.parts, event.standing)
                self._saves(event.checkpoint)
            case CheckpointSaved() | Finished():
                self._saves(event.checkpoint)
        if isinstance(event, Finished) and event.tested is not None:
            exporter.update_test(loss=event.tested.loss, accuracy=event.tested.accuracy)

    def count_requests(self, process: str, requests: Requests) -> None:
        """`process`: "driver" or "worker 0"."""
        self.exporter.update_storage(process, requests=requests.by_operation, retries=requests.retries, errors=requests.errors)

    def _saves(self, saves: SaveStats) -> None:
        self.exporter.update_checkpoint(
            step=saves.step, committed=saves.committed, seconds=saves.seconds, failures=saves.failures, skipped=saves.skipped
        )

    def wait_for_last_scrape(self, *, trained: bool, interrupted: bool = False) -> None:
        """Waits until the last values are scraped, at most `linger` seconds; Ctrl-C ends the wait.

        Does not wait for a run that never trained. A run that was interrupted waits only if it was ever scraped, and at most
        STOP_SECONDS: a user may be waiting at the terminal.
        """
        seconds = self._linger if trained else 0.0
        if interrupted:
            seconds = min(seconds, STOP_SECONDS) if self.exporter.scraped else 0.0
        with suppress(KeyboardInterrupt):
            self.exporter.wait_for_scrape(seconds)
