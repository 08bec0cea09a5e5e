import numpy as np

from benchmarks.spike_causes.injections.common import HOT
from benchmarks.spike_causes.runs import Injection, Run


class OtherPreparation(Injection):
    """Training images are prepared otherwise from now on: with less contrast and brightness, as if they were scaled once more."""

    name, cause = "training images prepared otherwise", "training_data_changed"
    decoy = True
    tune, report = (0.5, 0.25, 0.01), (0.4, 0.2, 0.005)
    needs = HOT
    patience = 3

    def begin(self, run: Run) -> None:
        run.batches = [(pixels.astype(np.float32) * self.strength, labels) for pixels, labels in run.batches]
