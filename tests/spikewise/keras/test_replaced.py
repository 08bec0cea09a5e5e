"""Weights that are evaluated, but do not train."""

import numpy as np
import tensorflow as tf

from spikewise.keras.replaced import ReplacedWeights

WEIGHTS = [tf.constant(np.linspace(-1, 1, 12), tf.float32), tf.constant([3.0])]


def test_other_weights_are_reported_once_and_rounding_is_not():
    """A user would believe verdicts about steps that the evaluated weights did not make, or read a warning after every epoch."""
    found = ReplacedWeights()
    rounded = [weight * (1 + 1e-7) for weight in WEIGHTS]
    assert found.warning(3, (WEIGHTS, rounded), (0.5, 0.5), averages=True) is None
    assert found.warning(3, ([], []), (0.5, 0.5), averages=True) is None
    text = found.warning(4, (WEIGHTS, [weight * 1.001 for weight in WEIGHTS]), (0.5, 0.5), averages=False)
    assert text is not None
    assert text.startswith("after the last step of epoch 4, another callback replaced the weights")
    assert found.warning(5, (WEIGHTS, [weight * 2 for weight in WEIGHTS]), (0.5, 0.5), averages=False) is None


def test_a_val_loss_of_averaged_weights_is_explained():
    """The progress bar would show another loss than the diagnosis, without a reason."""
    same = (WEIGHTS, WEIGHTS)
    assert ReplacedWeights().warning(4, same, (0.9, 0.5), averages=False) is None  # other validation data, perhaps
    assert ReplacedWeights().warning(4, same, (0.501, 0.5), averages=True) is None
    text = ReplacedWeights().warning(4, same, (0.9, 0.5), averages=True)
    assert text is not None
    assert text.startswith("val_loss is 0.900 in epoch 4, and SpikeDiagnosis measured 0.500.")
