"""The trained model as a plain Keras model, which loads without this project."""

from pathlib import Path

import keras

from trainer import config
from trainer.model.question import build


def export(trained: keras.Sequential, shape: tuple[int, int, int], settings: config.Model, path: Path) -> None:
    """Writes `path` (`model.keras`), whole or not at all: the weights of `trained` in Keras' own layers, ending in softmax.

    `shape`: H W C of the images; the exported model takes pixels 0..255. Sets Keras' dtype policy to float32.
    """
    keras.config.set_dtype_policy("float32")
    plain = build(shape, trained.output_shape[-1], settings.model_copy(update={"batch_normalization": "keras"}), seed=0)
    plain.add(keras.layers.Softmax(name="softmax"))
    plain.set_weights(trained.get_weights())
    temporary = path.with_name(f".{path.name}").with_suffix(".keras")  # Keras insists on the suffix
    plain.save(temporary)
    temporary.replace(path)
