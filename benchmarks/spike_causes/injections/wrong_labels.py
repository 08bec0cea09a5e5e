import numpy as np

from benchmarks.spike_causes.injections.common import CALM
from benchmarks.spike_causes.runs import Injection, Run


class WrongLabels(Injection):
    """A few validation images get a wrong label."""

    name, cause = "wrong validation labels", "few_examples"
    decoy = True
    needs = CALM
    tune, report = (4, 6, 8), (5, 7, 8)
    patience = 3

    def begin(self, run: Run) -> None:
        pixels, labels = run.validation
        # The images with the lowest loss: a wrong label costs most where the network is confident.
        chosen = np.argsort(run.losses(pixels, labels))[: int(self.strength)]
        labels = labels.copy()
        labels[chosen] = (labels[chosen] + 1) % run.classes
        run.validation = pixels, labels
