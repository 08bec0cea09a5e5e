import numpy as np

from benchmarks.spike_causes.runs import Injection, Run


class OtherCamera(Injection):
    """Validation images are darker from now on, as from another camera."""

    name, cause = "darker validation images", "distribution_shift"
    decoy = True
    tune, report = (0.7, 0.5, 0.3), (0.6, 0.45, 0.25)
    patience = 3

    def begin(self, run: Run) -> None:
        pixels, labels = run.validation
        run.validation = (pixels * self.strength).astype(np.uint8), labels
