"""What baseline JPEG does to pixels, as tensor operations: the loss of quality without the file.

The steps are those of libjpeg with its default settings (ITU-T T.81, JFIF): RGB to YCbCr, chroma at half the resolution (4:2:0),
the cosine transform of 8x8 blocks, division by the quantization tables and rounding; then all of it backwards, with libjpeg's
smooth ("fancy") upsampling of the chroma. The lossless part of the codec has no effect on pixels and is left out.

Everything is elementwise on purpose. The order of a matrix product's sums depends on the number of images, and a GPU computes it in
TF32; rounding to another coefficient would then change a pixel by several levels. Elementwise, an image's result is the same bits
in every batch.

Shapes: b images, H W the image, C channels; n 8x8 blocks of a channel.
"""

from functools import cache

import numpy as np
import tensorflow as tf

LUMINANCE = """
16 11 10 16  24  40  51  61
12 12 14 19  26  58  60  55
14 13 16 24  40  57  69  56
14 17 22 29  51  87  80  62
18 22 37 56  68 109 103  77
24 35 55 64  81 104 113  92
49 64 78 87 103 121 120 101
72 92 95 98 112 100 103  99
"""
CHROMINANCE = """
17 18 24 47 99 99 99 99
18 21 26 66 99 99 99 99
24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
"""
"""Quantization tables of T.81, Annex K, for quality 50: row is the vertical frequency."""

COSINES = np.array([[1 if u == 0 else 2**0.5 * np.cos((2 * k + 1) * u * np.pi / 16) for k in range(8)] for u in range(8)])
"""The transform of 8 samples, times the root of 8. Its first row is exact in float32, and so is the sum of a block."""


def recompress(pixels: tf.Tensor, quality: tf.Tensor) -> tf.Tensor:
    """Saves and loads each RGB image as a JPEG, in effect. Pixels float32 [b, H, W, 3] with integers of 0 to 255; quality int32
    [b], 1 to 100, as libjpeg counts it -> the same shape, again integers of 0 to 255."""
    height, width = pixels.shape[1:3]
    red, green, blue = tf.unstack(pixels, axis=-1)
    y = tf.round(0.299 * red + 0.587 * green + 0.114 * blue)
    cb = tf.round(0.5 * blue - 0.168735892 * red - 0.331264108 * green) + 128.0
    cr = tf.round(0.5 * red - 0.418687589 * green - 0.081312411 * blue) + 128.0
    y = _code(y[..., None], tf.gather(_tables(LUMINANCE), quality))[..., 0]
    chroma = _halve(_repeat_edges(tf.stack([cb, cr], -1), height % 2, -width % 16))  # libjpeg pads rows later than columns
    chroma = _code(chroma, tf.gather(_tables(CHROMINANCE), quality))
    chroma = _double(chroma[:, :, : (width + 1) // 2])  # libjpeg interpolates within the image, not into its padding
    cb, cr = tf.unstack(chroma[:, :height, :width] - 128.0, axis=-1)
    rgb = [y + tf.round(1.402 * cr), y - tf.round(0.344136286 * cb + 0.714136286 * cr), y + tf.round(1.772 * cb)]
    return tf.clip_by_value(tf.stack(rgb, -1), 0.0, 255.0)


@cache
def _scaled(base: str) -> np.ndarray:
    """libjpeg's tables for each quality, int [101, 8, 8]. Quality 0 is that of 1."""
    values = np.array(base.split(), np.int64).reshape(8, 8)
    percent = [5000 // max(quality, 1) if quality < 50 else 200 - 2 * quality for quality in range(101)]
    return np.array([((values * p + 50) // 100).clip(1, 255) for p in percent])


def _tables(base: str) -> tf.Tensor:
    return tf.constant(_scaled(base), tf.float32)


def _repeat_edges(pixels: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """[b, H, W, C] -> [b, H + rows, W + columns, C]."""
    if rows:
        pixels = tf.concat([pixels, tf.repeat(pixels[:, -1:], rows, axis=1)], 1)
    if columns:
        pixels = tf.concat([pixels, tf.repeat(pixels[:, :, -1:], columns, axis=2)], 2)
    return pixels


def _halve(planes: tf.Tensor) -> tf.Tensor:
    """The mean of 2x2 pixels. It is rounded down in even columns and up in odd ones, as libjpeg does, to remain unbiased."""
    bias = np.arange(planes.shape[2] // 2) % 2 * 0.25 + 0.25
    return tf.floor(tf.nn.avg_pool2d(planes, 2, 2, "VALID") + tf.constant(bias, tf.float32)[:, None])


def _double(planes: tf.Tensor) -> tf.Tensor:
    """Twice the height and width: 3/4 of the nearer pixel and 1/4 of the farther one, in both directions."""
    _, height, width, _ = planes.shape
    large = tf.image.resize(planes, (2 * height, 2 * width), "bilinear")
    bias = 8 / 16 - np.arange(2 * width) % 2 / 16
    return tf.floor(large + tf.constant(bias, tf.float32)[:, None])


def _code(planes: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """Quantizes the 8x8 blocks of [b, H, W, C] by `table` [b, 8, 8] and restores them."""
    shape = planes.shape
    planes = _repeat_edges(planes, -shape[1] % 8, -shape[2] % 8)
    _, height, width, channels = planes.shape
    blocks = tf.reshape(planes - 128.0, (-1, height // 8, 8, width // 8, 8, channels))
    blocks = tf.reshape(tf.transpose(blocks, (2, 4, 0, 1, 3, 5)), (8, 8, -1, height * width * channels // 64))  # [8, 8, b, n]
    divisor = tf.transpose(table, (1, 2, 0))[..., None]
    coefficients = tf.round(_transform(_transform(blocks, 0), 1))  # 8 times the true ones; libjpeg rounds them here, too
    # Ties are common, because the coefficients are whole numbers. The last factor rounds them away from zero, as libjpeg does.
    steps = tf.round(coefficients * ((0.125 / divisor) * (1 + 1e-6)))
    restored = _inverse(_inverse(steps * (divisor * 0.125), 1), 0)
    restored = tf.reshape(restored, (8, 8, -1, height // 8, width // 8, channels))
    restored = tf.reshape(tf.transpose(restored, (2, 3, 0, 4, 1, 5)), (-1, height, width, channels))
    return tf.clip_by_value(tf.round(restored[:, : shape[1], : shape[2]]) + 128.0, 0.0, 255.0)


def _weighted(weights: np.ndarray, values: list[tf.Tensor]) -> tf.Tensor:
    """The sum of the products, from left to right."""
    total = values[0] * np.float32(weights[0])
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total += value * np.float32(weight)
    return total


def _transform(blocks: tf.Tensor, axis: int) -> tf.Tensor:
    """COSINES times that axis. Even rows of COSINES are symmetric, odd ones antisymmetric, which halves the work."""
    samples = tf.unstack(blocks, axis=axis)
    sums = [samples[k] + samples[7 - k] for k in range(4)]
    differences = [samples[k] - samples[7 - k] for k in range(4)]
    return tf.stack([_weighted(COSINES[u, :4], differences if u % 2 else sums) for u in range(8)], axis)


def _inverse(blocks: tf.Tensor, axis: int) -> tf.Tensor:
    """COSINES, transposed, times that axis."""
    frequencies = tf.unstack(blocks, axis=axis)
    even = [_weighted(COSINES[0::2, k], frequencies[0::2]) for k in range(4)]
    odd = [_weighted(COSINES[1::2, k], frequencies[1::2]) for k in range(4)]
    return tf.stack([even[k] + odd[k] for k in range(4)] + [even[k] - odd[k] for k in reversed(range(4))], axis)
