"""The network of the question that README.md opens with, as a Keras model.

A plain Keras 3 Sequential; only the layers that must know about the other workers differ (layers.py). It ends in logits, from which
the loss is computed without losing precision; the exported model (export.py) ends in softmax, as in the question.

Shapes: b images, H W C one image (C H W with channels_first), K classes.
"""

import keras

from trainer import config
from trainer.model.layers import BatchNormalization, Dropout, Place, Reduce


def build(
    shape: tuple[int, int, int],
    classes: int,
    settings: config.Model,
    *,
    seed: int,
    place: Place | None = None,
    reduce: Reduce | None = None,
) -> keras.Sequential:
    """The model to train: pixels 0..255 of `shape` (H, W, C) -> logits [b, K].

    Conv16-Conv16-pool-Conv32-Conv32-pool-Dense64, each followed by ReLU and then BatchNormalization; dropout after both poolings
    and after the dense layer. `seed` determines the initial weights. `place` makes the dropout masks independent of the number of
    workers; without it, dropout is Keras' own. `reduce` sums over the workers and synchronizes BatchNormalization. Sets Keras'
    random seed.
    """
    keras.utils.set_random_seed(seed)  # the same initial weights on every worker
    axis = 1 if settings.data_format == "channels_first" else -1

    def normalize(number: int, axis: int) -> keras.Layer:
        arguments = {"axis": axis, "momentum": settings.momentum, "name": f"normalization{number}"}
        if settings.batch_normalization == "keras":
            return keras.layers.BatchNormalization(**arguments)
        return BatchNormalization(reduce=reduce, **arguments)

    def drop(number: int) -> keras.Layer:
        rate, name = settings.dropout[number - 1], f"dropout{number}"
        return keras.layers.Dropout(rate, name=name) if place is None else Dropout(rate, place=place, index=number, name=name)

    def convolve(number: int, filters: int) -> list[keras.Layer]:
        layout = settings.data_format
        convolution = keras.layers.Conv2D(
            filters, 3, padding="same", activation="relu", data_format=layout, name=f"convolution{number}"
        )
        return [convolution, normalize(number, axis)]

    def pool(number: int) -> keras.Layer:
        return keras.layers.MaxPooling2D(2, data_format=settings.data_format, name=f"pooling{number}")

    height, width, channels = shape
    layers = [
        keras.Input((channels, height, width) if axis == 1 else shape),
        keras.layers.Rescaling(1 / 255, name="rescaling"),
        *convolve(1, 16),
        *convolve(2, 16),
        pool(1),
        drop(1),
        *convolve(3, 32),
        *convolve(4, 32),
        pool(2),
        drop(2),
        keras.layers.Flatten(data_format=settings.data_format, name="flatten"),
        keras.layers.Dense(64, activation="relu", name="dense"),
        normalize(5, -1),
        drop(3),
        keras.layers.Dense(classes, dtype=keras.config.dtype_policy().variable_dtype, name="logits"),
    ]
    return keras.Sequential(layers, name="spikewise")
