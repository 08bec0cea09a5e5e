import numpy as np

from benchmarks.spike_causes.runs import Injection, Run

UNITS = 0.3
"""Fraction of the last layer's units that the batch lights up."""
LATE = 5
"""Steps between the batch and the evaluation."""


class RareUnits(Injection):
    """One batch lights up units of the last BatchNormalization that are off in the others: their moving variance takes what such a
    batch adds, and the weights nothing."""

    name, cause = "a batch that lights up rare units", "batchnorm_shock"
    tune, report = (100, 400, 1600), (150, 500, 1200)
    """Variance of these units in the batch, in multiples of their moving variance."""

    def after_step(self, run: Run, step: int) -> None:
        if step != len(run.batches) - LATE:
            return
        layer = run.norms[-1]
        variance = np.array(layer.moving_variance)
        lit = run.rng.permutation(len(variance))[: max(int(UNITS * len(variance)), 1)]
        variance[lit] += (1 - layer.momentum) * self.strength * variance[lit]
        layer.moving_variance.assign(variance)
