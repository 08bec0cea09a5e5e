"""What workers report to the driver. Plain values, carried by the mailbox."""

from collections.abc import Mapping
from dataclasses import dataclass

from spikewise.diagnose import News
from spikewise.records import Diagnosis, Overfitting
from spikewise.standing import Standing
from trainer.epoch import EpochReport
from trainer.storage import Store
from trainer.storage.checkpoint import SaveStats


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests that a process has sent to the run's storage since it started."""

    by_operation: Mapping[str, int]
    """Operation (get, put, list, delete) -> number of requests, retries included."""
    retries: int
    errors: int
    """Operations that failed after all retries."""

    @classmethod
    def of(cls, store: Store) -> "Requests":
        return cls(dict(store.requests), store.retries, store.errors)


@dataclass(frozen=True, slots=True)
class Started:
    """All workers are ready to train: at the start of the run, and again whenever they were restarted."""

    step: int
    """Updates made so far."""
    restarts: int
    """Earlier starts of the run's workers."""
    workers: int
    steps_per_epoch: int
    resident: bool
    """Whether all images are in memory."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The workers loaded a checkpoint."""

    step: int
    """The checkpoint's step."""
    epoch: int
    """The epoch in which training continues."""
    restarts: int
    history: tuple[EpochReport, ...]
    diagnoses: tuple[Diagnosis, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the current epoch is. Sent at most once a second."""

    epoch: int
    step: int
    """Steps of this epoch that are done."""
    steps: int
    """Steps of a whole epoch."""


@dataclass(frozen=True, slots=True)
class EpochFinished:
    """An epoch is trained, evaluated and diagnosed; its checkpoint is being saved in the background."""

    report: EpochReport
    input_waits: tuple[float, ...]
    """Fraction of its training time that each worker waited for input, by rank."""
    peak_memory: float
    """Largest resident set of any worker so far, in bytes."""
    news: News | None
    """What the diagnosis found; None when it failed."""
    overfitting: Overfitting | None
    standing: tuple[Standing, ...]
    """All standing causes so far."""
    checkpoint: SaveStats
    requests: Requests
    """Sent by worker 0."""


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """A checkpoint inside an epoch is saved."""

    step: int
    checkpoint: SaveStats


@dataclass(frozen=True, slots=True)
class Warned:
    """A worker logged a warning or an error that does not end training."""

    message: str


@dataclass(frozen=True, slots=True)
class Diverged:
    """Training has diverged, and the workers have ended so that the driver can go back."""

    epoch: int
    """The first epoch that has to be trained again."""
    found: int
    """The epoch whose end showed it."""
    what: str
    """What happened, as a sentence."""
    settings: str
    """The remedy: one or more `section.key=value`, separated by spaces."""
    finite: bool
    """Whether the weights are still finite."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker met an error that a restart of the workers cannot fix."""

    message: str
    transient: bool
    """Whether the same run may succeed later."""


@dataclass(frozen=True, slots=True)
class Tested:
    """The result on the test set, with the weights of model.keras."""

    images: int
    loss: float
    """Mean cross-entropy in nats per image."""
    accuracy: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The workers have stored everything and are about to end."""

    outcome: str
    """completed, stopped early or interrupted."""
    epoch: int
    """The epoch that model.keras belongs to; the last finished one of an interrupted run."""
    checkpoint: SaveStats
    tested: Tested | None = None
    """None without a test set, and for an interrupted run."""


WorkerEvent = Started | Resumed | Progress | EpochFinished | CheckpointSaved | Warned | Diverged | Failed | Finished
