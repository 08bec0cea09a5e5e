import numpy as np

from benchmarks.spike_causes.runs import Injection, Run


class StaleStatistics(Injection):
    """Moving statistics are blended with their initial values, as if the momentum were too high for so few steps."""

    name, cause = "stale moving statistics", "batchnorm_statistics"
    tune, report = (0.3, 0.5, 0.8), (0.25, 0.45, 0.9)

    def end(self, run: Run) -> None:
        for layer in run.norms:
            layer.moving_mean.assign((1 - self.strength) * np.array(layer.moving_mean))
            layer.moving_variance.assign((1 - self.strength) * np.array(layer.moving_variance) + self.strength)
