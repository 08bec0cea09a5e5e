"""The trained model as the plain Keras model that the configuration names, which loads without this project."""

from pathlib import Path

import keras

from trainer import config
from trainer.model.load import build


def export(trained: keras.Model, shape: tuple[int, int, int], classes: int, settings: config.Model, path: Path) -> None:
    """Writes `path` (`model.keras`), whole or not at all: the network as `settings` build it, in float32, with the weights of
    `trained`. `shape`: H W C of the images; the exported model takes pixels 0..255."""
    plain = build(settings, shape, classes, seed=0, precision="float32")
    plain.set_weights(trained.get_weights())
    temporary = path.with_name(f".{path.name}").with_suffix(".keras")  # Keras insists on the suffix
    plain.save(temporary)
    temporary.replace(path)
