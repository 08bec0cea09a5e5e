"""What several injections share."""

import numpy as np

from benchmarks.spike_causes.runs import Run

HOT = (("learning_rate", 2e-3), ("settled", 0.3))
"""A final learning rate high enough for a few bad steps to do harm."""

CALM = (("settled", 0.03),)
"""A final learning rate so low that the loss hardly varies. Otherwise a fault in 2 % of the images disappears in the noise."""


def forget_statistics(run: Run) -> None:
    """Resets the moving statistics to their initial values."""
    for layer in run.norms:
        layer.moving_mean.assign(np.zeros(layer.moving_mean.shape))
        layer.moving_variance.assign(np.ones(layer.moving_variance.shape))
