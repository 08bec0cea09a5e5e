"""A small residual network: BatchNormalization before ReLU, as in He et al. 2016."""

import keras


def build(image_shape: tuple[int, int, int], classes: int, *, width: int = 16, l2: float = 1e-4) -> keras.Model:
    """Pixels 0..255 of `image_shape` (height, width, channels) -> logits [b, classes]. `width`: filters of the first block."""

    def convolve(x, filters: int, size: int = 3, stride: int = 1):
        regularizer = keras.regularizers.L2(l2)
        return keras.layers.Conv2D(filters, size, stride, padding="same", use_bias=False, kernel_regularizer=regularizer)(x)

    def activate(x):
        return keras.layers.ReLU()(keras.layers.BatchNormalization()(x))

    inputs = keras.Input(image_shape)
    x = convolve(keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs), width)
    for filters in (width, 2 * width, 4 * width):
        y = activate(x)
        shortcut = convolve(y, filters, size=1, stride=2)
        y = convolve(y, filters, stride=2)
        y = convolve(activate(y), filters)
        x = keras.layers.Add()([shortcut, y])
    x = keras.layers.GlobalAveragePooling2D()(activate(x))
    x = keras.layers.Dropout(0.2)(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="head")(x), name="residual")
