import numpy as np

from benchmarks.spike_causes.injections.common import CALM
from benchmarks.spike_causes.runs import Injection, Run


class DamagedImages(Injection):
    """A few validation images are replaced by damaged copies: inverted and overexposed."""

    name, cause = "damaged validation images", "few_examples"
    decoy = True
    needs = CALM
    tune, report = (6, 7, 8), (5, 7, 8)
    patience = 3

    def begin(self, run: Run) -> None:
        pixels, labels = run.validation
        pixels = pixels.astype(np.float32)
        chosen = run.rng.permutation(len(labels))[: int(self.strength)]
        pixels[chosen] = (255 - pixels[chosen]) * 6
        worse = run.losses(pixels, labels)[chosen]
        labels = labels.copy()
        labels[chosen[worse < 1]] = (labels[chosen[worse < 1]] + 1) % run.classes
        run.validation = pixels, labels
