import numpy as np

from benchmarks.spike_causes.injections.common import HOT
from benchmarks.spike_causes.runs import Injection, Run


class RandomLabels(Injection):
    """From the middle of the epoch on, training labels are random."""

    name, cause = "random labels from a step on", "training_data_changed"
    decoy = True
    tune, report = (0.6, 0.8, 1.0), (0.5, 0.75, 1.0)
    """Fraction of the labels that are drawn anew."""
    needs = HOT

    def begin(self, run: Run) -> None:
        for number in range(len(run.batches) // 2, len(run.batches)):
            pixels, labels = run.batches[number]
            drawn = run.rng.integers(0, run.classes, len(labels)).astype(labels.dtype)
            run.batches[number] = pixels, np.where(run.rng.random(len(labels)) < self.strength, drawn, labels)
