"""Events and diagnoses of made-up runs."""

from typing import Any

from spikewise.records import Cause, Diagnosis, Spike
from tests.support.epochs import report
from trainer.run.events import EpochFinished, Requests
from trainer.storage.checkpoint import SaveStats


def diagnosis(epoch: int, **spike: Any) -> Diagnosis:
    """A spike and its verdict."""
    values = {"loss": 2.0, "baseline": 0.5, "scale": 0.1, "threshold": 0.4, "rise": 1.5, "low": 1.0, "high": 2.0, "error": 0.2}
    verdict = Cause("few_examples", 0.9, 0.8, 1.0, "Three images rose.", "Look at them.")
    return Diagnosis(Spike(epoch=epoch, images=100, **values | spike), (verdict,))


def finished(epoch: int, validation_loss: float = 0.5, **changes: Any) -> EpochFinished:
    """The event at the end of an epoch."""
    values: dict[str, Any] = {
        "report": report(epoch, validation_loss),
        "input_waits": (0.25, 0.125),
        "peak_memory": 1e9,
        "news": None,
        "overfitting": None,
        "standing": (),
        "checkpoint": SaveStats(step=10 * epoch, committed=1.0, seconds=0.5),
        "requests": Requests({"put": 3}, 1, 0),
    }
    return EpochFinished(**values | changes)
