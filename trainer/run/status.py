"""What the driver knows about a run from its workers' events."""

from dataclasses import dataclass, field

from spikewise.diagnose import News
from spikewise.records import Diagnosis
from trainer.epoch import EpochReport, best
from trainer.run.events import Diverged, EpochFinished, Failed, Finished, Resumed, Started, WorkerEvent


@dataclass
class RunStatus:
    """Kept up to date by `update`, with every event in the order of the mailbox."""

    epochs: int
    """Epochs that the run is configured for."""
    starts: int = 0
    """How often this driver has seen all workers start."""
    history: list[EpochReport] = field(default_factory=list)
    diagnoses: list[Diagnosis] = field(default_factory=list)
    peak_memory: float | None = None
    """Largest resident set of any worker, in bytes; None before the first epoch ends."""
    failure: Failed | None = None
    """The first failure."""
    finished: Finished | None = None
    diverged: Diverged | None = None
    """The divergence from which the run has to go back."""
    worker_died: bool = False
    """Whether the last start of the workers was needed because one had died."""
    _ended: bool = False
    """Whether the workers have ended so that the run can go back."""

    @property
    def best(self) -> EpochReport | None:
        """The epoch with the lowest validation loss so far; None if no loss was finite."""
        return best(self.history)

    def update(self, event: WorkerEvent) -> None:
        match event:
            case Started():
                self.worker_died = self.starts > 0 and not self._ended
                self._ended = False
                self.starts += 1
            case Resumed():
                self.history, self.diagnoses = list(event.history), list(event.diagnoses)
            case EpochFinished():
                earlier = [report for report in self.history if report.epoch < event.report.epoch]
                self.history = [*earlier, event.report]
                self.peak_memory = event.peak_memory
                if event.news is not None:
                    self._add(event.news)
            case Diverged():
                self.diverged = event
            case Failed():
                self.fail(event.message, transient=event.transient)
            case Finished():
                self.finished = event

    def forget(self) -> None:
        """Forgets all epochs: the workers start again, from the beginning or from a checkpoint, which `Resumed` describes."""
        self.history, self.diagnoses, self.diverged = [], [], None
        self._ended = True

    def fail(self, message: str, *, transient: bool = False) -> None:
        """Records why the run failed, unless an earlier reason is known."""
        if self.failure is not None:
            return
        if self.history and self.history[-1].epoch == self.epochs:
            message = (
                f"All {self.epochs} epochs are trained, but the model is not stored. Fix: run again under this name to resume from "
                f"the last checkpoint. Cause: {message}"
            )
        self.failure = Failed(message, transient)

    def _add(self, news: News) -> None:
        if news.diagnosis:
            self.diagnoses.append(news.diagnosis)
        for resolved in news.resolved:
            self.diagnoses = [resolved if known.spike.epoch == resolved.spike.epoch else known for known in self.diagnoses]
