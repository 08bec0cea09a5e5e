import numpy as np

from benchmarks.spike_causes.runs import Injection, Run
from spikewise.records import Event


class OtherLoss(Injection):
    """The loss function is another one from now on, and the run reports it."""

    name, cause = "another loss function, reported", "run_event"
    tune, report = (1.5, 3, 20), (2, 5, 10)
    """Factor of the loss."""

    def begin(self, run: Run) -> None:
        run.events.append(Event("loss", run.epoch))

    def evaluate(self, run: Run) -> np.ndarray | None:
        return self.strength * run.losses(*run.validation)
