"""Layers that behave on several workers as Keras' own layers do on one.

BatchNormalization runs on TensorFlow's fused kernels, which Keras 3 does not use, and computes its statistics over the global
batch. Dropout draws the mask of an example from (seed, step, position in the global batch), so that it does not depend on how
many workers share the batch. MaxPooling2D has a gradient that XLA compiles in deterministic mode. All have the same weights as the
Keras layers they replace, so a plain Keras model can load them (export.py). distribute.py exchanges the layers of a network for
these.

Shapes: b images of this worker, H W C one image or feature map, n elements of one channel.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Reduce = Callable[[tf.Tensor], tf.Tensor]
"""Sums a tensor over all workers; all of them must call it in the same order."""


def deterministic() -> bool:
    """Whether TensorFlow and XLA must give the same bits in every run, for which they refuse some kernels of GPUs."""
    return os.environ.get("TF_DETERMINISTIC_OPS", "").lower() in ("1", "true")


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' BatchNormalization on fused kernels; with `reduce`, its statistics are those of all workers' batches together.

    Output, gradients and moving statistics equal Keras' own up to floating-point rounding. The fused kernel applies Bessel's
    correction to the variance; it is undone here.
    """

    fused = True
    """False: Keras' own computation, on this worker's part of the batch."""
    reduce: Reduce | None = None
    under_xla = False
    """Whether XLA compiles the layer. Read when a function is traced."""
    moves = 0
    """How many times a forward pass moves the statistics: calls in training mode while the layer is not frozen. Reset it to
    0 before a forward pass is traced."""

    def __init__(self, *, reduce: Reduce | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reduce = reduce

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        """[b, ..., C], or [b, C, ...] with axis=1 -> the same shape, normalized per channel."""
        moving = bool(training and self.trainable)
        self.moves += moving
        if mask is not None or not self.fused:
            return super().call(inputs, training=training, mask=mask)
        rank = len(inputs.shape)
        axis = self.axis % rank
        order = (*(i for i in range(rank) if i != axis), axis)
        x = inputs if axis == rank - 1 else tf.transpose(inputs, order)
        shape, channels = tf.shape(x), x.shape[-1]
        if rank != 4:
            x = tf.reshape(x, (shape[0], -1, 1, channels))
        mean, variance = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
        gamma = tf.ones_like(mean) if self.gamma is None else tf.convert_to_tensor(self.gamma)
        beta = tf.zeros_like(mean) if self.beta is None else tf.convert_to_tensor(self.beta)
        if moving:
            if self.reduce is None:
                y, batch_mean, batch_variance = _fused(x, gamma, beta, self.epsilon)
            else:
                y, batch_mean, batch_variance = _synchronized(x, gamma, beta, self.epsilon, self.reduce, self.under_xla)
            self.moving_mean.assign(mean * self.momentum + batch_mean * (1 - self.momentum))
            self.moving_variance.assign(variance * self.momentum + batch_variance * (1 - self.momentum))
        else:
            y = _affine(x, gamma, beta, mean, variance, self.epsilon)
        if rank != 4:
            y = tf.reshape(y, shape)
        return y if axis == rank - 1 else tf.transpose(y, [order.index(i) for i in range(rank)])


def _elements(x: tf.Tensor) -> tf.Tensor:
    """Number of elements of one channel of [b, H, W, C], as float32."""
    return tf.cast(tf.size(x, tf.int64) // x.shape[-1], tf.float32)


def _fused(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalizes by the moments of this batch; returns output, mean [C] and biased variance [C]."""
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, data_format="NHWC", is_training=True
    )
    n = _elements(x)
    return y, tf.stop_gradient(mean), tf.stop_gradient(variance * (n - 1) / n)


def _affine(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, epsilon: float) -> tf.Tensor:
    """(x - mean) / sqrt(variance + epsilon) * scale + offset, in one pass."""
    if x.dtype == tf.float64:  # the fused kernels do not support it
        return tf.nn.batch_normalization(x, mean, variance, offset, scale, epsilon)
    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=scale, offset=offset, mean=mean, variance=variance, epsilon=epsilon, data_format="NHWC", is_training=False
    ).y


def _affine_gradient(
    dy: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Gradients of `_affine` with respect to x, scale and offset, with the moments as constants."""
    if x.dtype == tf.float64 or deterministic():  # there is no such fused kernel
        inverse, kind = tf.math.rsqrt(variance + epsilon), x.dtype
        dy, x = tf.cast(dy, scale.dtype), tf.cast(x, scale.dtype)
        dscale, doffset = tf.reduce_sum(dy * (x - mean) * inverse, (0, 1, 2)), tf.reduce_sum(dy, (0, 1, 2))
        return tf.cast(dy * scale * inverse, kind), dscale, doffset
    dx, dscale, doffset, *_ = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=dy,
        x=x,
        scale=scale,
        reserve_space_1=mean,
        reserve_space_2=variance,
        reserve_space_3=tf.zeros_like(mean),
        epsilon=epsilon,
        data_format="NHWC",
        is_training=False,
    )
    return dx, dscale, doffset


def _synchronized(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float, reduce: Reduce, under_xla: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Like `_fused`, with the moments of all workers' batches together.

    Sums within an image use the weights' precision, sums over images and workers use float64. After rounding, the moments are
    therefore the same bits for any number of workers. A difference in the last bits would flip a few max-poolings, and each
    flip changes the gradient by 0.1 %. Everything else is composed of fused kernels in both directions, because an affine pass made
    of ordinary operations would cost more than all the rest: its gradient makes many passes over large tensors.
    """
    channels = x.shape[-1]

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
        values = tf.cast(x, gamma.dtype)
        sums = tf.reduce_sum(values, (1, 2))
        if under_xla:  # which has no such norm, and squares and sums in one pass by itself
            squares = tf.cast(tf.reduce_sum(values**2, (1, 2)), tf.float64)
        else:
            squares = tf.cast(tf.math.reduce_euclidean_norm(values, (1, 2)), tf.float64) ** 2  # in one pass
        parts = [tf.reduce_sum(tf.cast(sums, tf.float64), 0), tf.reduce_sum(squares, 0)]
        total = reduce(tf.concat([*parts, [tf.cast(_elements(x), tf.float64)]], 0))
        exact = total[:channels] / total[-1]
        mean = tf.cast(exact, gamma.dtype)
        variance = tf.cast(tf.maximum(total[channels:-1] / total[-1] - exact**2, 0.0), gamma.dtype)
        y = _affine(x, gamma, beta, mean, variance, epsilon)

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            # The gradient in inference mode treats the moments as constants; their own part is affine in x (Ioffe & Szegedy, 2015).
            direct, dgamma, dbeta = _affine_gradient(dy, x, gamma, mean, variance, epsilon)
            sums = reduce(tf.concat([dgamma, dbeta], 0))
            factor = -gamma * tf.math.rsqrt(variance + epsilon) / tf.cast(total[-1], gamma.dtype)
            through = _affine(x, factor * sums[:channels], factor * sums[channels:], mean, variance, epsilon)
            return direct + through, dgamma, dbeta

        return (y, mean, variance), gradient

    y, mean, variance = normalize(x, gamma, beta)
    return y, tf.stop_gradient(mean), tf.stop_gradient(variance)


class MaxPooling2D(keras.layers.MaxPooling2D):
    """Keras' MaxPooling2D. In deterministic mode, windows that do not overlap have a gradient of elementwise operations, because
    XLA refuses its own. Output and gradient are the same: the gradient goes to the first maximum of a window."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[b, H, W, C], or [b, C, H, W] with channels_first -> the largest values of the windows."""
        first = self.data_format == "channels_first"
        sides = inputs.shape[2:] if first else inputs.shape[1:3]
        apart = self.pool_size == self.strides and all(sides)
        if not deterministic() or not apart or (self.padding == "same" and any(np.mod(sides, self.pool_size))):
            return super().call(inputs)
        y = _pooled(tf.transpose(inputs, (0, 2, 3, 1)) if first else inputs, *self.pool_size)
        return tf.transpose(y, (0, 3, 1, 2)) if first else y


def _pooled(x: tf.Tensor, p: int, q: int) -> tf.Tensor:
    """The largest values of the windows of p times q pixels: [b, H, W, C] -> [b, H // p, W // q, C]."""
    height, width = x.shape[1] // p * p, x.shape[2] // q * q

    @tf.custom_gradient
    def pool(x: tf.Tensor) -> Any:
        parts = [x[:, i:height:p, j:width:q] for i in range(p) for j in range(q)]
        y = functools.reduce(tf.maximum, parts)

        def gradient(dy: tf.Tensor) -> tf.Tensor:
            gradients, taken = [], tf.zeros_like(y, tf.bool)
            for part in parts:
                largest = (part == y) & ~taken
                gradients.append(tf.where(largest, dy, tf.zeros_like(dy)))
                taken |= largest
            rows = [tf.stack(gradients[i * q : (i + 1) * q], 3) for i in range(p)]  # [b, h, w, q, C] for each row of a window
            dx = tf.reshape(tf.stack(rows, 2), (-1, height, width, x.shape[3]))
            return tf.pad(dx, ((0, 0), (0, x.shape[1] - height), (0, x.shape[2] - width), (0, 0)))

        return y, gradient

    return pool(x)


@dataclass(eq=False)
class Place:
    """Where a worker's examples stand in the run. A dropout mask depends on nothing else."""

    seed: int
    rank: int
    step: Any
    """Integer variable: number of updates so far."""
    dropping: bool = True
    """False turns dropout off in training mode. Read when a function is traced."""


class GlobalDropout(keras.layers.Dropout):
    """Keras' Dropout or SpatialDropout with the same masks for the global batch on any number of workers.

    A counter-based generator (Philox) starts at this worker's first element, so each worker draws only its own part of the mask.
    A layer that a network calls twice draws the same mask both times.
    """

    place: Place
    key: int
    """Of the generator: a function of the run's seed and the layer's number."""

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[b, ...] -> [b, ...]. This worker's images are numbers rank * b to (rank + 1) * b - 1 of the global batch."""
        if not training or self.rate == 0 or not self.place.dropping:
            return inputs
        shape = self._mask_shape(inputs)
        size = tf.reduce_prod(tf.cast(shape, tf.int64))
        start = self.place.rank * size
        skip = start % 8  # one count of the generator yields 128 bits, and a draw takes 16
        counter = tf.bitcast(tf.stack([start // 8, tf.cast(self.place.step, tf.int64)]), tf.uint64)
        words = tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=((skip + size + 3) // 4)[None], key=tf.constant([self.key], tf.uint64), counter=counter, alg=1, dtype=tf.uint64
        )
        draws = tf.reshape(tf.bitcast(words, tf.uint16), [-1])[skip : skip + size]
        dropped = min(round(self.rate * 2**16), 2**16 - 1)  # out of the 2**16 values of a draw
        keep = tf.reshape(tf.cast(draws >= dropped, inputs.dtype), shape)
        return inputs * (keep * tf.cast(2**16 / (2**16 - dropped), inputs.dtype))

    def _mask_shape(self, inputs: tf.Tensor) -> tf.Tensor:
        """The shape of the mask: the input's, or 1 where a value is shared, as in SpatialDropout."""
        shape = tf.shape(inputs)
        own = getattr(self, "_get_noise_shape", None)  # SpatialDropout
        shared = own(inputs) if own else self.noise_shape
        if shared is None:
            return shape
        return tf.stack([shape[i] if size is None else size for i, size in enumerate(shared)])
