"""What users of Keras pass in: losses, labels and outputs, in all forms that Keras accepts."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from spikewise.errors import UserError
from spikewise.keras.data import Examples, classes, loss_of, predicted

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(6, 2)
THREE, TWO = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 1, 1, 0, 1, 0])
HOT = np.eye(3, dtype=np.float32)[THREE]


def _model(units, activation, loss):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units, activation=activation)])
    model.compile(loss=loss)
    return model


@pytest.mark.parametrize(
    ("units", "activation", "loss", "labels"),
    [
        (3, "softmax", "sparse_categorical_crossentropy", THREE),
        (3, "softmax", "sparse_categorical_crossentropy", THREE[:, None]),
        (3, None, keras.losses.SparseCategoricalCrossentropy(from_logits=True), THREE),
        (3, "softmax", "categorical_crossentropy", HOT),
        (3, None, keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), HOT),
        (1, "sigmoid", "binary_crossentropy", TWO),
        (1, "sigmoid", keras.losses.BinaryCrossentropy(), TWO[:, None]),
        (1, None, "mse", X[:, 0]),
    ],
)
def test_the_losses_are_those_that_keras_averages(units, activation, loss, labels):
    """Otherwise another loss would be explained than the one the user watches."""
    model = _model(units, activation, loss)
    for data in ((X, labels), tf.data.Dataset.from_tensor_slices((X, labels)).batch(4)):
        losses, outputs, read = Examples(data, "data").evaluate(model, loss_of(model))
        assert losses.shape == (6,)
        assert losses.mean() == pytest.approx(model.evaluate(X, labels, verbose=0), rel=1e-5)
        np.testing.assert_array_equal(read, labels)
    found = classes(read, outputs)
    if loss == "mse":
        assert found is None
    else:
        np.testing.assert_array_equal(found, TWO if units == 1 else THREE)
        prediction = predicted([4], found, outputs)[4]
        p = outputs[4] if activation else np.exp(outputs[4]) / np.exp(outputs[4]).sum()
        p = np.array([1 - p[0], p[0]]) if units == 1 else p
        assert prediction == (str(found[4]), str(p.argmax()), pytest.approx(p.max(), rel=1e-5))


@pytest.mark.parametrize("loss", [None, ["mse"], {"a": "mse"}])
def test_a_model_without_one_loss_is_refused(loss):
    """Otherwise the diagnosis would explain one of several losses, perhaps not the one that jumped."""
    model = _model(1, None, "mse")
    model.loss = loss
    with pytest.raises(UserError, match="not compiled with exactly one loss"):
        loss_of(model)
