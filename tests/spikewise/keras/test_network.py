"""A Keras model as the network that the probes work with."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from spikewise.keras.network import KerasNetwork


@pytest.mark.parametrize(("calls", "momentum"), [(1, 0.9), (2, 0.9), (3, 0.99), (2, 0.5)])
def test_moments_are_those_of_a_batch_however_often_a_layer_is_called(calls, momentum):
    """Two branches may share a layer. If its momentum counted once, the moments would be almost twice as large, and every spike
    would look like one of the statistics."""
    keras.utils.set_random_seed(0)
    norm, x = keras.layers.BatchNormalization(momentum=momentum), keras.Input((4,))
    parts = [norm((1 + i) * x + i) for i in range(calls)]
    model = keras.Model(x, keras.layers.Dense(2)(keras.layers.Add()([*parts, x])))
    images = np.random.default_rng(0).normal(2, 300, (64, 4)).astype(np.float32)
    network = KerasNetwork(model, lambda: np.zeros(1), lambda _: (images, np.zeros(64)), None)
    assert len(network.statistics) == 2
    with network.untouched():
        found = network.moments([0], dropout=False)
        for place, values in zip(network.statistics, found, strict=True):
            model.weights[place].assign(values[0])
        model(tf.constant(images), training=True)  # leaves statistics alone that are the batch's already
        for place, values in zip(network.statistics, found, strict=True):
            np.testing.assert_allclose(model.weights[place].numpy(), values[0], rtol=1e-4)
    assert norm.moving_variance.numpy().tolist() == [1] * 4
