"""`explain` with a model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from spikewise import UserError, explain
from tests.spikewise.keras.digits import TRAINING, VALIDATION, network


def _losses(model):
    return keras.losses.sparse_categorical_crossentropy(VALIDATION[1], model.predict(VALIDATION[0], verbose=0)).numpy()


@pytest.fixture(scope="module")
def spoiled():
    """A trained model whose moving variance was multiplied, its earlier weights, and its losses before and now."""
    model = network()
    model.fit(*TRAINING, epochs=4, verbose=0)
    earlier, before = model.get_weights(), _losses(model)
    norm = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    norm.moving_variance.assign(norm.moving_variance * 40)
    return model, earlier, before, _losses(model)


@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_lost_statistics_are_found_and_the_model_is_left_as_it_was(spoiled, kind):
    """Otherwise `explain` would miss the causes that need the network, or damage the user's model."""
    model, earlier, before, now = spoiled
    weights = model.get_weights()
    data = {"validation_data": VALIDATION, "training_data": TRAINING}
    if kind == "dataset":
        data = {name: tf.data.Dataset.from_tensor_slices(arrays).batch(50) for name, arrays in data.items()}
    found = explain(before, now, model=model, earlier=earlier, **data)
    assert found.verdict.name == "batchnorm_statistics"
    assert found.verdict.fraction > 0.9
    for kept, was in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(kept, was)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"earlier": None, "training_data": None}, "but not earlier and training_data"),
        ({"earlier": [np.ones(3)]}, "earlier does not fit the model"),
        ({"validation_data": (VALIDATION[0][:9], VALIDATION[1][:9])}, "holds 9 examples, but there are 597 losses"),
        ({"model": "model.keras"}, "model is of type str"),
        ({"training_data": 3}, "training_data is of type int"),
    ],
)
def test_mistakes_are_explained_in_one_line(spoiled, change, message):
    """Otherwise a user would get a traceback from within TensorFlow, or wrong numbers."""
    model, earlier, before, now = spoiled
    given = {"model": model, "earlier": earlier, "validation_data": VALIDATION, "training_data": TRAINING}
    with pytest.raises(UserError, match=message) as caught:
        explain(before, now, **given | change)
    assert "\n" not in str(caught.value)
    assert ". Fix: " in str(caught.value)
