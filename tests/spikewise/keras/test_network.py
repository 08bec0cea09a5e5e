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


@pytest.mark.parametrize("form", ["numbers", "column", "one-hot", "none"])
def test_the_classes_of_a_batch_are_known_in_every_form_of_labels(form):
    """Sorted images would go unnoticed with one-hot labels, or a batch that stands in for another count twice."""
    numbers = np.arange(12) % 3
    labels = {"numbers": numbers, "column": numbers[:, None], "one-hot": np.eye(3)[numbers], "none": numbers + 0.5}[form]
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    found = KerasNetwork(model, lambda: np.zeros(1), lambda _: (None, labels), None).batch_classes([0, 1])
    assert found is None if form == "none" else len(found) == 1
    assert found is None or np.array_equal(found[0], numbers)
