"""The model against the question's description, and its export."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import config
from trainer.model import question
from trainer.model.export import export
from trainer.model.layers import Place

SHAPE = (16, 12, 3)


def _model(classes=2, **settings):
    return question.build(SHAPE, classes, config.Model(**settings), seed=0, place=Place(0, 0, tf.Variable(0, dtype=tf.int64)))


def test_the_network_is_the_questions():
    """A user who compares with the code in the question would find a different network."""
    kinds = [type(layer).__mro__[0].__name__ for layer in _model().layers]
    block = ["Conv2D", "BatchNormalization"] * 2 + ["MaxPooling2D", "Dropout"]
    assert kinds == ["Rescaling", *block, *block, "Flatten", "Dense", "BatchNormalization", "Dropout", "Dense"]
    layers = _model().layers
    assert [layer.filters for layer in layers if isinstance(layer, keras.layers.Conv2D)] == [16, 16, 32, 32]
    assert all(layer.kernel_size == (3, 3) for layer in layers if isinstance(layer, keras.layers.Conv2D))
    assert [layer.rate for layer in layers if isinstance(layer, keras.layers.Dropout)] == [0.25, 0.25, 0.5]
    assert [layer.units for layer in layers if isinstance(layer, keras.layers.Dense)] == [64, 2]
    assert [layer.activation.__name__ for layer in layers if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)] == [
        *["relu"] * 5,
        "linear",
    ]


def test_equal_seeds_give_equal_weights():
    """Workers would start from different weights."""
    for a, b in zip(_model().get_weights(), _model().get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("data_format", "classes"), [("channels_last", 2), ("channels_first", 5)])
def test_the_export_loads_in_plain_keras_and_predicts_the_same(tmp_path, data_format, classes):
    """A user could not load model.keras without this project, or would get other predictions from it."""
    settings = config.Model(data_format=data_format)
    trained = question.build(SHAPE, classes, settings, seed=0, place=Place(0, 0, tf.Variable(0, dtype=tf.int64)))
    generator = np.random.default_rng(0)
    trained.set_weights([generator.uniform(0.1, 0.5, weight.shape) for weight in trained.get_weights()])
    export(trained, SHAPE, settings, tmp_path / "model.keras")
    images = generator.integers(0, 256, (4, *trained.input_shape[1:])).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    script = (
        "import sys, keras, numpy as np; model = keras.models.load_model('model.keras'); "
        "assert 'trainer' not in sys.modules; np.save('predictions.npy', model.predict(np.load('images.npy'), verbose=0))"
    )
    subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, check=True, capture_output=True)
    expected = tf.nn.softmax(trained(images, training=False))
    np.testing.assert_allclose(np.load(tmp_path / "predictions.npy"), expected, atol=1e-5)
