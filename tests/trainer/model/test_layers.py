"""The layers against Keras' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.model.distribute import distribute
from trainer.model.layers import BatchNormalization, MaxPooling2D, Place


def _images(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).gamma(2.0, 2.0, shape).astype(dtype)


def _both(ours, shape, training=True):
    """Runs Keras' layer and `ours` with the same weights; output, gradients and moving statistics of each."""
    x, results = tf.constant(_images(shape)), []
    weight = tf.constant(np.random.default_rng(1).normal(size=shape).astype(np.float32))
    for layer in (keras.layers.BatchNormalization(axis=ours.axis, momentum=0.9), ours):
        layer.build(shape)
        channels = shape[layer.axis]
        generator = np.random.default_rng(2)
        layer.set_weights([generator.uniform(0.5, 2, channels).astype(np.float32) for _ in range(4)])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
            loss = tf.reduce_sum(y * weight)
        gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
        results.append([y, *gradients, layer.moving_mean.value, layer.moving_variance.value])
    return results


@pytest.mark.parametrize("shape", [(8, 6, 5, 3), (16, 7), (8, 9, 4), (4, 2, 3, 5, 2)], ids=str)
@pytest.mark.parametrize("reduce", [None, lambda total: total], ids=["fused", "synchronized"])
@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_is_kerass(shape, reduce, training):
    """A model trained here would differ from the same model trained by Keras."""
    theirs, ours = _both(BatchNormalization(momentum=0.9, reduce=reduce), shape, training)
    for name, a, b in zip(("output", "dx", "dgamma", "dbeta", "mean", "variance"), theirs, ours, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16], ids=lambda dtype: dtype.name)
def test_batch_normalization_is_the_same_in_deterministic_mode(dtype, monkeypatch):
    """A run that must repeat its bits would learn something else, or would end in an error on a GPU, which has no such kernel."""
    x, found = tf.cast(_images((8, 6, 5, 3)), dtype), []
    for value in ("0", "1"):
        monkeypatch.setenv("TF_DETERMINISTIC_OPS", value)
        layer = BatchNormalization(reduce=lambda total: total, dtype="mixed_bfloat16" if dtype == tf.bfloat16 else "float32")
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=True) ** 3)
        found.append(tape.gradient(loss, [x, layer.gamma.value, layer.beta.value]))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        bound = 0.02 if dtype == tf.bfloat16 else 1e-5
        scale = np.abs(theirs.numpy().astype(float)).max()
        np.testing.assert_allclose(tf.cast(ours, tf.float64), tf.cast(theirs, tf.float64), rtol=bound, atol=bound * scale)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.float64], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(
    ("pool", "options", "size"),
    [(2, {}, (8, 6)), (2, {}, (7, 9)), ((3, 2), {}, (9, 8)), (2, {"padding": "same"}, (7, 8)), (3, {"strides": 2}, (9, 9))],
    ids=str,
)
def test_max_pooling_is_the_same_in_deterministic_mode(pool, options, size, dtype, monkeypatch):
    """A run that must repeat its bits would learn something else, most of all where ReLU has left several maxima of 0."""
    monkeypatch.setenv("TF_DETERMINISTIC_OPS", "1")
    generator = np.random.default_rng(0)
    x = tf.cast(np.maximum(generator.integers(-3, 4, (4, *size, 5)), 0), dtype)  # ties in most windows
    results = []
    for kind in (keras.layers.MaxPooling2D, MaxPooling2D):
        layer = kind(pool, dtype=dtype.name, **options)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            weight = tf.cast(np.random.default_rng(1).normal(size=y.shape), dtype)
            loss = tf.reduce_sum(y * weight)
        results.append((y, tape.gradient(loss, x)))
    for theirs, ours in zip(*results, strict=True):
        np.testing.assert_array_equal(tf.cast(ours, tf.float64), tf.cast(theirs, tf.float64), strict=True)


def test_max_pooling_channels_first_in_deterministic_mode(monkeypatch):
    """A channels_first model would pool over channels and rows."""
    monkeypatch.setenv("TF_DETERMINISTIC_OPS", "1")
    x = tf.constant(_images((2, 6, 8, 3)))
    ours = MaxPooling2D(2, data_format="channels_first")(tf.transpose(x, (0, 3, 1, 2)))
    np.testing.assert_array_equal(tf.transpose(ours, (0, 2, 3, 1)), keras.layers.MaxPooling2D(2)(x), strict=True)


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}], ids=str)
def test_batch_normalization_without_scale_or_offset(options):
    """Networks such as InceptionV3 would fail."""
    x = _images((8, 4, 4, 3))
    ours, theirs = (kind(**options)(x, training=True) for kind in (BatchNormalization, keras.layers.BatchNormalization))
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("reduce", [None, lambda total: total], ids=["fused", "synchronized"])
def test_batch_normalization_channels_first(reduce):
    """A channels_first model would be normalized over the wrong axis."""
    theirs, ours = _both(BatchNormalization(axis=1, momentum=0.9, reduce=reduce), (8, 3, 6, 5))
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("offset", [0, 100])
def test_the_variance_survives_an_offset(offset):
    """A channel far from zero (here 25 standard deviations) would get a wrong or negative variance, because sums cancel."""
    layer = BatchNormalization(momentum=0.5, reduce=lambda total: total)
    x = _images((64, 4, 4, 2)) + offset
    layer(x, training=True)
    expected = 0.5 + 0.5 * x.astype(np.float64).var((0, 1, 2))
    np.testing.assert_allclose(layer.moving_variance, expected, rtol=1e-3)


def test_batch_normalization_takes_low_precision():
    """Training with mixed_bfloat16 would fail, or keep its statistics in low precision."""
    layer = BatchNormalization(dtype="mixed_bfloat16")
    y = layer(tf.cast(_images((8, 4, 4, 3)), tf.bfloat16), training=True)
    assert y.dtype == tf.bfloat16
    assert layer.moving_mean.dtype == "float32"


def _mask(rank, size, step, batch, features, rate=0.5, seed=7, index=0, kind=keras.layers.Dropout, **options):
    drops = [kind(rate, **options) for _ in range(2)]
    model = keras.Sequential([keras.Input(features), *drops, keras.layers.Flatten(), keras.layers.Dense(1)])
    distribute(model, place=Place(seed, rank, tf.Variable(step, dtype=tf.int64)))
    return drops[index](tf.ones((batch // size, *features)), training=True).numpy()


@pytest.mark.parametrize("features", [(64,), (4, 4, 16), (3, 3, 5)])
def test_dropout_masks_do_not_depend_on_the_number_of_workers(features):
    """One worker and four workers would get different loss curves from the same seed."""
    whole = _mask(0, 1, 3, 8, features)
    for size in (2, 4, 8):
        parts = np.concatenate([_mask(rank, size, 3, 8, features) for rank in range(size)])
        np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize(
    ("kind", "features", "options"),
    [
        (keras.layers.SpatialDropout2D, (3, 5, 4), {}),
        (keras.layers.SpatialDropout1D, (6, 4), {}),
        (keras.layers.Dropout, (3, 5, 4), {"noise_shape": (None, 1, 1, 1)}),
    ],
    ids=["spatial 2D", "spatial 1D", "stochastic depth"],
)
def test_masks_shared_within_an_image(kind, features, options):
    """SpatialDropout, or the stochastic depth of EfficientNet, would drop single values, or differ between numbers of workers."""
    whole = _mask(0, 1, 3, 16, features, kind=kind, **options)
    parts = np.concatenate([_mask(rank, 4, 3, 16, features, kind=kind, **options) for rank in range(4)])
    np.testing.assert_array_equal(parts, whole)
    shared = whole.reshape(16, -1) if options else np.moveaxis(whole, -1, 1).reshape(16 * features[-1], -1)
    assert (shared == shared[:, :1]).all()
    assert 0.2 < (shared[:, 0] == 0).mean() < 0.8


def test_dropout_masks_change_with_step_layer_and_seed():
    """The same units would be dropped at every step, or in every layer."""
    base = _mask(0, 1, 3, 8, (64,))
    assert (base != _mask(0, 1, 4, 8, (64,))).mean() > 0.3
    assert (base != _mask(0, 1, 3, 8, (64,), index=1)).mean() > 0.3
    assert (base != _mask(0, 1, 3, 8, (64,), seed=8)).mean() > 0.3


def test_dropout_keeps_the_expectation():
    """Activations in training would be larger or smaller than in inference."""
    mask = _mask(0, 1, 0, 100, (10, 100), rate=0.25)
    assert set(np.unique(mask).round(4)) == {0.0, np.float32(1.3333)}
    assert abs(mask.mean() - 1) < 0.01
