import numpy as np

from benchmarks.spike_causes.injections.common import HOT
from benchmarks.spike_causes.runs import Injection, Run


class SortedClasses(Injection):
    """The epoch's training images come class by class."""

    name, cause = "training images sorted by class", "training_data_changed"
    tune, report = (4, 2, 1), (3, 2, 1)
    """Number of parts of the epoch that are sorted on their own."""
    needs = HOT
    patience = 2

    def begin(self, run: Run) -> None:
        pixels, labels = (np.concatenate(values) for values in zip(*run.batches, strict=True))
        size = len(run.batches[0][1])
        parts = np.array_split(np.arange(len(labels)), int(self.strength))
        order = np.concatenate([part[np.argsort(labels[part], kind="stable")] for part in parts]).reshape(-1, size)
        run.batches = [(pixels[rows], labels[rows]) for rows in order]
