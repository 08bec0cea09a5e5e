# ruff: noqa: ARG001
"""Networks of users, as `model.network = "tests.support.networks:NAME"`."""

import keras
import numpy as np


def tiny(image_shape, classes, *, l2=0.0):
    """One layer of each kind: TensorFlow traces it several times faster than the question's network."""
    regularizer = keras.regularizers.L2(l2) if l2 else None
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, 2, activation="relu", kernel_regularizer=regularizer),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )


def residual(image_shape, classes, *, width=8, l2=0.0):
    """BatchNormalization before ReLU, strides, shortcuts, and a block that is a model of its own."""
    regularizer = keras.regularizers.L2(l2) if l2 else None

    def convolve(x, filters, size, stride=1):
        return keras.layers.Conv2D(filters, size, stride, padding="same", use_bias=False, kernel_regularizer=regularizer)(x)

    def block(shape, filters, name):
        x = inputs = keras.Input(shape)
        y = convolve(keras.layers.ReLU()(keras.layers.BatchNormalization()(x)), filters, 3, 2)
        y = keras.layers.Dropout(0.2)(keras.layers.ReLU()(keras.layers.BatchNormalization()(y)))
        y = convolve(y, filters, 3)
        return keras.Model(inputs, keras.layers.Add()([convolve(x, filters, 1, 2), y]), name=name)

    inputs = keras.Input(image_shape)
    x = convolve(keras.layers.Rescaling(1 / 127.5, -1)(inputs), width, 3)
    for number in (1, 2):
        x = block(x.shape[1:], width * 2**number, f"block{number}")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(keras.layers.BatchNormalization(scale=False)(x)))
    return keras.Model(inputs, keras.layers.Dense(classes, name="head")(x))


def depthwise(image_shape, classes):
    """Depthwise convolutions and GroupNormalization; ends in one sigmoid."""
    x = inputs = keras.Input(image_shape)
    x = keras.layers.Conv2D(8, 3, 2, padding="same")(keras.layers.Rescaling(1 / 255)(x))
    for _ in range(2):
        x = keras.layers.DepthwiseConv2D(3, padding="same")(x)
        x = keras.layers.Conv2D(16, 1, activation="relu")(keras.layers.GroupNormalization(4)(x))
    x = keras.layers.SpatialDropout2D(0.2)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    assert classes == 2
    return keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(x))


def noisy(image_shape, classes):
    """Draws random numbers in a layer that the job does not exchange."""
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, 2, activation="relu"),
            keras.layers.GaussianNoise(0.5, name="noise"),
            keras.layers.Flatten(),
            keras.layers.Dense(classes),
            keras.layers.Softmax(),
        ]
    )


@keras.saving.register_keras_serializable("tests")
class Inner(keras.layers.Layer):
    """A layer with layers inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(8)
        self.norm = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(0.3)

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((shape[0], 8))

    def call(self, x, training=None):
        return self.drop(self.norm(self.dense(x), training=training), training=training)


def custom(image_shape, classes):
    """BatchNormalization and Dropout inside a layer of the user's own."""
    inputs = keras.Input(image_shape)
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 255)(inputs)))
    return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax")(Inner(name="inner")(x)))


class Still(keras.layers.Layer):
    """A BatchNormalization layer that is always called in inference mode."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = keras.layers.BatchNormalization()

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x):
        return self.norm(x, training=False)


def frozen_part(image_shape, classes):
    """A part whose statistics do not move."""
    inputs = keras.Input(image_shape)
    x = keras.layers.Flatten()(Still()(keras.layers.Conv2D(4, 3, 2)(inputs)))
    return keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.BatchNormalization()(x)))


def none(image_shape, classes):
    """Forgets to return the model."""


def without_arguments():
    """Has the wrong signature."""


def fails(image_shape, classes):
    """Raises an error."""
    raise RuntimeError("two\nlines")


def two_inputs(image_shape, classes):
    a, b = keras.Input(image_shape), keras.Input(image_shape)
    return keras.Model([a, b], keras.layers.Dense(classes)(keras.layers.Flatten()(keras.layers.Add()([a, b]))))


def two_outputs(image_shape, classes):
    x = keras.layers.Flatten()(inputs := keras.Input(image_shape))
    return keras.Model(inputs, [keras.layers.Dense(classes)(x), keras.layers.Dense(classes)(x)])


def dictionary(image_shape, classes):
    x = keras.layers.Flatten()(inputs := keras.Input(image_shape))
    return keras.Model(inputs, {"label": keras.layers.Dense(classes)(x)})


class NotSaved(keras.layers.Layer):
    """A layer that Keras cannot save."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def not_saved(image_shape, classes):
    x = keras.layers.Flatten()(inputs := keras.Input(image_shape))
    return keras.Model(inputs, keras.layers.Dense(classes)(NotSaved(lambda x: x / 255)(x)))


def fails_in_training(image_shape, classes):
    """Raises an error when it is trained."""

    class Fails(keras.layers.Layer):
        def call(self, x, training=False):
            if training:
                raise RuntimeError("two\nlines")
            return x

    x = keras.layers.Flatten()(inputs := keras.Input(image_shape))
    return keras.Model(inputs, keras.layers.Dense(classes)(Fails()(x)))


def twice(image_shape, classes):
    """Calls one BatchNormalization layer twice."""
    norm = keras.layers.BatchNormalization(name="norm")
    inputs = keras.Input(image_shape)
    x = keras.layers.Conv2D(4, 3, padding="same")(keras.layers.Rescaling(1 / 255)(inputs))
    x = norm(keras.layers.Conv2D(4, 3, padding="same")(norm(x)))
    return keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.GlobalAveragePooling2D()(x)))


def segmentation(image_shape, classes):
    inputs = keras.Input(image_shape)
    return keras.Model(inputs, keras.layers.Conv2D(classes, 1)(inputs))


def too_deep(image_shape, classes):
    """Does not fit small images."""
    x = inputs = keras.Input(image_shape)
    for _ in range(5):
        x = keras.layers.MaxPooling2D(2)(keras.layers.Conv2D(4, 3)(x))
    return keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.Flatten()(x)))


def fixed_size(image_shape, classes):
    inputs = keras.Input((224, 224, 3))
    return keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.GlobalAveragePooling2D()(inputs)))


def many_sigmoids(image_shape, classes):
    x = keras.layers.Flatten()(inputs := keras.Input(image_shape))
    return keras.Model(inputs, keras.layers.Dense(classes, activation="sigmoid")(x))


def nothing_to_learn(image_shape, classes):
    x = keras.layers.Flatten()(inputs := keras.Input(image_shape))
    return keras.Model(inputs, keras.layers.Lambda(lambda x: x[:, :classes])(x))


def other_weights_each_time(image_shape, classes):
    model = residual(image_shape, classes)
    model.set_weights([np.random.default_rng().normal(size=weight.shape) for weight in model.get_weights()])
    return model
