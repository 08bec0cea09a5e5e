import numpy as np

from benchmarks.spike_causes.runs import Injection, Run


class OtherScaling(Injection):
    """Validation images are shrunk and enlarged again, which removes fine detail."""

    name, cause = "blurred validation images", "distribution_shift"
    decoy = True
    tune, report = (2, 4, 8), (2, 4, 8)
    patience = 3

    def begin(self, run: Run) -> None:
        pixels, labels = run.validation
        k = int(self.strength)
        n, height, width, channels = pixels.shape
        small = pixels.reshape(n, height // k, k, width // k, k, channels).mean((2, 4))
        run.validation = small.repeat(k, 1).repeat(k, 2).astype(np.uint8), labels
