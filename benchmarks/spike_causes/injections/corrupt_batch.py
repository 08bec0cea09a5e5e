import numpy as np

from benchmarks.spike_causes.runs import Injection, Run


class CorruptBatch(Injection):
    """The pixels of one batch are on another scale."""

    name, cause = "a batch out of scale", "bad_batch"
    decoy = True
    tune, report = (6, 12, 30), (8, 16, 50)

    def begin(self, run: Run) -> None:
        number = len(run.batches) - 6
        pixels, labels = run.batches[number]
        run.batches[number] = pixels.astype(np.float32) * self.strength, labels
