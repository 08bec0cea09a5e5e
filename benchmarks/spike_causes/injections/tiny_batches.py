import numpy as np

from benchmarks.spike_causes.injections.common import HOT
from benchmarks.spike_causes.runs import Injection, Run


class TinyBatches(Injection):
    """Each batch of the epoch repeats a few images, so its gradient is mostly noise."""

    name, cause = "batches of few images", "gradient_noise"
    tune, report = (4, 3, 2), (4, 3, 2)
    needs = HOT

    def begin(self, run: Run) -> None:
        k = int(self.strength)
        run.batches = [(np.resize(x[:k], x.shape), np.resize(y[:k], y.shape)) for x, y in run.batches]
