import numpy as np

from benchmarks.spike_causes.injections.common import HOT
from benchmarks.spike_causes.runs import Injection, Run


class EasyImages(Injection):
    """The epoch's batches hold only images that the network classifies right already: it learns to be surer, and nothing else."""

    name, cause = "training on easy images", "overconfidence"
    tune, report = (2, 4, 8), (2, 3, 6)
    """Factor of the learning rate, raised over the epochs by a schedule."""
    needs = HOT
    patience = 8

    def begin(self, run: Run) -> None:
        for number, (pixels, labels) in enumerate(run.batches):
            losses = run.losses(pixels, labels)
            easy = np.argsort(losses)[: len(labels) // 2]
            run.batches[number] = np.resize(pixels[easy], pixels.shape), np.resize(labels[easy], labels.shape)

    def before_step(self, run: Run, step: int) -> None:  # noqa: ARG002
        if run.learning_rate < self.strength * run.config.learning_rate * run.config.settled:
            run.learning_rate *= 1.05
