"""The question's network against the question's code, spelled out again."""

import keras
import numpy as np
import pytest

from tests.support.training import settings
from trainer.model import load


def _spelled_out(image_shape, axis):
    """The network as the question writes it, layer by layer. `axis`: of the channels."""
    data_format = "channels_first" if axis == 1 else "channels_last"
    x = inputs = keras.Input(image_shape)
    x = keras.layers.Rescaling(1 / 255)(x)
    x = keras.layers.Conv2D(16, (3, 3), padding="same", data_format=data_format)(x)
    x = keras.layers.Activation("relu")(x)
    x = keras.layers.BatchNormalization(axis=axis)(x)
    x = keras.layers.Conv2D(16, (1, 1), padding="same", data_format=data_format)(x)
    x = keras.layers.Activation("relu")(x)
    x = keras.layers.BatchNormalization(axis=axis)(x)
    x = keras.layers.MaxPooling2D(pool_size=(2, 2), data_format=data_format)(x)
    x = keras.layers.Dropout(0.25)(x)
    x = keras.layers.Conv2D(32, (1, 1), padding="same", data_format=data_format)(x)
    x = keras.layers.Activation("relu")(x)
    x = keras.layers.BatchNormalization(axis=axis)(x)
    x = keras.layers.Conv2D(32, (1, 1), padding="same", data_format=data_format)(x)
    x = keras.layers.Activation("relu")(x)
    x = keras.layers.BatchNormalization(axis=axis)(x)
    x = keras.layers.MaxPooling2D(pool_size=(2, 2), data_format=data_format)(x)
    x = keras.layers.Dropout(0.25)(x)
    x = keras.layers.Flatten(data_format=data_format)(x)
    x = keras.layers.Dense(64)(x)
    x = keras.layers.Activation("relu")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5)(x)
    x = keras.layers.Dense(2)(x)
    return keras.Model(inputs, keras.layers.Activation("softmax")(x))


def _without_activations(model):
    """Kind, configuration that decides the output, of each layer; activations as layers of their own."""
    keys = (
        "filters",
        "kernel_size",
        "strides",
        "padding",
        "data_format",
        "axis",
        "momentum",
        "epsilon",
        "rate",
        "pool_size",
        "units",
    )
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer | keras.layers.Activation):
            if isinstance(layer, keras.layers.Activation):
                found.append(("activation", layer.activation.__name__))
            continue
        found.append((type(layer).__name__, *((key, getattr(layer, key)) for key in keys if hasattr(layer, key))))
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense) and layer.activation is not keras.activations.linear:
            found.append(("activation", layer.activation.__name__))
    return [
        tuple(("axis", 3 if value == -1 else value) if key == "axis" else (key, value) for key, value in entry[1:]) or entry
        if entry[0] != "activation"
        else entry
        for entry in found
    ]


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_the_network_is_the_questions(data_format):
    """The project trained 3x3 kernels where the question has 1x1: a user's curve would be that of another network."""
    ours = load.build(settings(model={"data_format": data_format}).model, (64, 64, 3), 2, seed=0)
    first = data_format == "channels_first"
    theirs = _spelled_out((3, 64, 64) if first else (64, 64, 3), 1 if first else -1)
    assert ours.count_params() == theirs.count_params() == 527_442
    assert _without_activations(ours) == _without_activations(theirs)
    generator = np.random.default_rng(0)
    weights = [generator.uniform(0.05, 0.2, weight.shape) for weight in theirs.get_weights()]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    images = generator.integers(0, 256, (4, *ours.input_shape[1:])).astype(np.float32)
    for training in (False, True):  # in training mode without dropout, which is random
        for layer in (*ours.layers, *theirs.layers):
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        np.testing.assert_allclose(ours(images, training=training), theirs(images, training=training), rtol=1e-4, atol=1e-6)


def test_equal_seeds_give_equal_weights():
    """Workers would start from different weights."""
    one, other = (load.build(settings().model, (16, 12, 3), 2, seed=3).get_weights() for _ in range(2))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
