"""The network of the question that README.md opens with, in plain Keras."""

from collections.abc import Sequence

import keras


def build(image_shape: tuple[int, int, int], classes: int, *, dropout: Sequence[float] = (0.25, 0.25, 0.5)) -> keras.Sequential:
    """The question's network: pixels 0..255 of `image_shape` (in the order of keras.config.image_data_format()) -> probabilities
    [b, classes].

    Conv16 3x3, Conv16 1x1, pool, Conv32 1x1, Conv32 1x1, pool, Dense64; each convolution and the dense layer is followed by ReLU
    and then BatchNormalization. `dropout`: the rates after the first pooling, the second pooling and the dense layer.
    """
    axis = 1 if keras.config.image_data_format() == "channels_first" else -1

    def convolve(number: int, filters: int, kernel: int) -> list[keras.Layer]:
        return [
            keras.layers.Conv2D(filters, kernel, padding="same", activation="relu", name=f"convolution{number}"),
            keras.layers.BatchNormalization(axis=axis, name=f"normalization{number}"),
        ]

    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Rescaling(1 / 255, name="rescaling"),
            *convolve(1, 16, kernel=3),
            *convolve(2, 16, kernel=1),
            keras.layers.MaxPooling2D(2, name="pooling1"),
            keras.layers.Dropout(dropout[0], name="dropout1"),
            *convolve(3, 32, kernel=1),
            *convolve(4, 32, kernel=1),
            keras.layers.MaxPooling2D(2, name="pooling2"),
            keras.layers.Dropout(dropout[1], name="dropout2"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(64, activation="relu", name="dense"),
            keras.layers.BatchNormalization(name="normalization5"),
            keras.layers.Dropout(dropout[2], name="dropout3"),
            keras.layers.Dense(classes, activation="softmax", name="classes"),
        ],
        name="question",
    )
