"""The trained network as a plain Keras model: it loads without this project."""

from pathlib import Path

import keras

from trainer import config
from trainer.model.question import build


def export(trained: keras.Sequential, shape: tuple[int, int, int], settings: config.Model, path: Path) -> None:
    """Writes `model.keras`: the same weights in Keras' own layers, ending in softmax; it loads without this package."""
    keras.config.set_dtype_policy("float32")
    plain = build(shape, trained.output_shape[-1], settings.model_copy(update={"batch_normalization": "keras"}), seed=0)
    plain.add(keras.layers.Softmax(name="softmax"))
    plain.set_weights(trained.get_weights())
    temporary = path.with_name(f".{path.name}")
    plain.save(temporary.with_suffix(".keras"))
    temporary.with_suffix(".keras").replace(path)
