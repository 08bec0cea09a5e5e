"""Augmentation: drawn for a whole epoch at once, applied to each batch on the device.

The random numbers of an image are a function of (seed, epoch, position in the global batch), drawn on the host (`draw`). What an
image becomes is a function of its pixels and its numbers alone, to the last bit, whatever other images share its batch (`augment`).
Hence the curve is the same for any number of workers and after a resume. That takes some care:
- TensorFlow's vectorized and scalar versions of sin, log and so on differ in the last bits, and the batch size decides which of
  them computes an element. Angles come from a table, and noise from bits.
- Sums over pixels are exact, so that their order does not matter.
- Noise comes from a generator that is a function of (the image's key, number of the pixel).

Shapes: B images of a global batch, b of one worker's part of it, H W C one image.
"""

import numpy as np
import tensorflow as tf

from trainer import config
from trainer.data.jpeg import recompress

WHOLE = ("mirror", "down", "right")
"""Columns of `changes` with whole numbers: mirror left-right (0 or 1), shift down and shift right in pixels."""
UNIFORM = (
    *("mirror_vertical", "angle", "crop", "crop_down", "crop_right", "brightness", "contrast", "noise", "jpeg"),
    *("cutout", "cutout_down", "cutout_right"),
)
"""Columns with uniform numbers of 0 to RANGE - 1, scaled by the settings on the device. All are drawn whatever the settings are, so
that one setting does not change the random numbers of another."""
KEYS = ("key_low", "key_high")
"""Columns with 64 bits, from which the noise of the image is computed."""
COLUMNS = (*WHOLE, *UNIFORM, *KEYS)

RANGE = 2**23
"""Such a number divided by it is exact in float32, and n times that is below n after rounding."""
ANGLES = 4096
"""Number of different angles."""
BEST_QUALITY = 95
"""Highest quality of recompression: above it, JPEG leaves little trace."""
GRAY = 128
"""The pixel value that cutout fills with."""


def draw(generator: np.random.Generator, shape: tuple[int, ...], settings: config.Augmentation) -> np.ndarray:
    """The changes of the images of an epoch's batches, int32 [steps, B, len(COLUMNS)]. `shape` is (steps, B)."""
    others = generator.spawn(1)[0]  # which does not depend on how many numbers flip and shift take
    shift = settings.shift
    mirror = generator.integers(0, 2, (*shape, 1)) * settings.flip
    moves = generator.integers(-shift, shift + 1, (*shape, 2))
    uniform = others.integers(0, RANGE, (*shape, len(UNIFORM)), np.int32)
    keys = others.integers(-(2**31), 2**31, (*shape, len(KEYS)), np.int32)
    return np.concatenate([mirror, moves, uniform, keys], -1).astype(np.int32)


def augment(pixels: tf.Tensor, changes: tf.Tensor, settings: config.Augmentation) -> tf.Tensor:
    """Changes uint8 [b, H, W, C] by `changes` [b, len(COLUMNS)], in the order of the settings.

    The result is uint8 if only whole pixels were moved or covered, else float32 of 0 to 255. Without any setting, it is `pixels`.
    """
    levels = _levels(pixels, changes, settings) if settings.brightness or settings.contrast else None
    if settings.rotation or settings.crop < 1:
        pixels = _resample(pixels, changes, settings)
    elif settings.flip or settings.flip_vertical or settings.shift:
        pixels = _move(pixels, changes, settings)
    if levels is not None or settings.noise or settings.jpeg:
        pixels = tf.cast(pixels, tf.float32)
    if levels is not None:
        factor, offset = levels
        pixels = pixels * _per_image(factor) + _per_image(offset)
    if settings.noise:
        pixels += _per_image(_uniform(changes, "noise") * settings.noise) * _normal(changes, pixels.shape[1:])
    if levels is not None or settings.noise:
        pixels = tf.clip_by_value(pixels, 0.0, 255.0)
    if settings.jpeg:
        quality = settings.jpeg + tf.floor(_uniform(changes, "jpeg") * (BEST_QUALITY + 1.0 - settings.jpeg))
        pixels = recompress(tf.round(pixels), tf.cast(quality, tf.int32))
    if settings.cutout:
        pixels = tf.where(_covered(changes, pixels.shape, settings.cutout), tf.cast(GRAY, pixels.dtype), pixels)
    return pixels


def _column(changes: tf.Tensor, name: str) -> tf.Tensor:
    return changes[:, COLUMNS.index(name)]


def _uniform(changes: tf.Tensor, name: str) -> tf.Tensor:
    """float32 [b], at least 0 and below 1."""
    return tf.cast(_column(changes, name), tf.float32) * (1 / RANGE)


def _signed(changes: tf.Tensor, name: str) -> tf.Tensor:
    """float32 [b], at least -1 and below 1."""
    return _uniform(changes, name) * 2.0 - 1.0


def _per_image(values: tf.Tensor) -> tf.Tensor:
    return values[:, None, None, None]


def _is_upside_down(changes: tf.Tensor, settings: config.Augmentation) -> tf.Tensor:
    """bool [b]."""
    return (_uniform(changes, "mirror_vertical") < 0.5) & settings.flip_vertical


def _move(pixels: tf.Tensor, changes: tf.Tensor, settings: config.Augmentation) -> tf.Tensor:
    """Mirrors, then shifts, by whole pixels."""
    height, width = pixels.shape[1:3]
    rows = tf.clip_by_value(tf.range(height)[None] - _column(changes, "down")[:, None], 0, height - 1)
    columns = tf.clip_by_value(tf.range(width)[None] - _column(changes, "right")[:, None], 0, width - 1)
    columns = tf.where(_column(changes, "mirror")[:, None] == 1, width - 1 - columns, columns)
    if settings.flip_vertical:
        rows = tf.where(_is_upside_down(changes, settings)[:, None], height - 1 - rows, rows)
    return tf.gather(tf.gather(pixels, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _resample(pixels: tf.Tensor, changes: tf.Tensor, settings: config.Augmentation) -> tf.Tensor:
    """Mirrors, shifts, rotates about the middle, crops and enlarges: as one bilinear interpolation, float32 of 0 to 255."""
    height, width = pixels.shape[1:3]
    angles = np.deg2rad(np.linspace(-settings.rotation, settings.rotation, ANGLES))
    table = tf.constant(np.stack([np.cos(angles), np.sin(angles)], -1), tf.float32)
    turn = tf.gather(table, tf.cast(_uniform(changes, "angle") * ANGLES, tf.int32))
    cosine, sine = turn[:, :1, None], turn[:, 1:, None]
    scale = 1.0 - _uniform(changes, "crop") * (1.0 - settings.crop)

    def cropped(name: str, size: int) -> tf.Tensor:
        """Where the rows or columns of the result are in the uncropped image, as distances from its middle: [b, size]."""
        centers = tf.range(size, dtype=tf.float32) - (size - 1) / 2
        room = (1.0 - scale) * (size / 2)
        return centers[None] * scale[:, None] + (_signed(changes, name) * room)[:, None]

    down, right = cropped("crop_down", height)[:, :, None], cropped("crop_right", width)[:, None, :]
    y = sine * right + cosine * down - tf.cast(_column(changes, "down"), tf.float32)[:, None, None]
    x = cosine * right - sine * down - tf.cast(_column(changes, "right"), tf.float32)[:, None, None]
    y = tf.where(_is_upside_down(changes, settings)[:, None, None], -y, y)
    x = tf.where((_column(changes, "mirror") == 1)[:, None, None], -x, x)
    return _bilinear(pixels, y + (height - 1) / 2, x + (width - 1) / 2)


def _bilinear(pixels: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The values of [b, H, W, C] at rows y and columns x, both float32 [b, H, W]; outside, the edge is repeated."""
    height, width, channels = pixels.shape[1:]
    y, x = tf.clip_by_value(y, 0.0, height - 1.0), tf.clip_by_value(x, 0.0, width - 1.0)
    top, left = tf.minimum(tf.floor(y), height - 2.0), tf.minimum(tf.floor(x), width - 2.0)
    corner = tf.reshape(top * width + left, (-1, height * width))  # float, because int32 arithmetic of a GPU's step runs on the CPU
    flat = tf.cast(tf.reshape(pixels, (-1, height * width, channels)), tf.float32)

    def at(offset: int) -> tf.Tensor:
        return tf.gather(flat, tf.cast(corner + offset, tf.int32), axis=1, batch_dims=1)

    lower, right = (tf.reshape(part, (-1, height * width, 1)) for part in (y - top, x - left))
    upper_row = at(0) + (at(1) - at(0)) * right
    lower_row = at(width) + (at(width + 1) - at(width)) * right
    return tf.reshape(upper_row + (lower_row - upper_row) * lower, (-1, height, width, channels))


def _levels(pixels: tf.Tensor, changes: tf.Tensor, settings: config.Augmentation) -> tuple[tf.Tensor, tf.Tensor]:
    """Brightness and contrast as the factor and the offset [b] of all pixel values."""
    rows = tf.reduce_sum(tf.cast(pixels, tf.float32), 2)  # whole numbers, hence exact; float64 keeps the next sum exact too
    mean = tf.cast(tf.reduce_sum(tf.cast(rows, tf.float64), (1, 2)) * (1 / np.prod(pixels.shape[1:])), tf.float32)
    brightness = 1.0 + _signed(changes, "brightness") * settings.brightness
    contrast = 1.0 + _signed(changes, "contrast") * settings.contrast
    return brightness * contrast, mean * brightness * (1.0 - contrast)


def _normal(changes: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
    """Noise with mean 0, variance 1 and nearly the normal distribution, float32 [b, *shape], from the keys of the images.

    The bits are those of SplitMix with 32 bits: a mixed arithmetic sequence, with a start and a step of each image's own.
    (TensorFlow's generators take one key for all images, and a loop over images would be slow on a GPU.) The number of ones among
    24 random bits is nearly normal; 8 more bits fill the gaps between whole numbers.
    """
    count = int(np.prod(shape))
    start, step = (tf.bitcast(_column(changes, name), tf.uint32)[:, None] for name in KEYS)
    bits = tf.constant(np.arange(count), tf.uint32)[None] * (step | _word(1)) + start
    bits = (bits ^ _shifted(bits, 16)) * _word(0x85EBCA6B)  # the finalizer of MurmurHash3
    bits = (bits ^ _shifted(bits, 13)) * _word(0xC2B2AE35)
    bits = bits ^ _shifted(bits, 16)
    ones = tf.cast(tf.raw_ops.PopulationCount(x=tf.bitcast(bits & _word(2**24 - 1), tf.int32)), tf.float32)
    gaps = tf.cast(tf.bitcast(_shifted(bits, 24), tf.int32), tf.float32) * (1 / 256)
    variance = 24 / 4 + (1 - 2**-16) / 12
    return tf.reshape((ones + gaps - (12 + 255 / 512)) * variance**-0.5, (-1, *shape))


def _word(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint32)


def _shifted(bits: tf.Tensor, places: int) -> tf.Tensor:
    return tf.bitwise.right_shift(bits, _word(places))


def _covered(changes: tf.Tensor, shape: tuple[int, int, int, int], largest: float) -> tf.Tensor:
    """bool [b, H, W, 1]: the square that is cut out, entirely inside the image."""
    _, height, width, _ = shape
    most = round(largest * min(height, width))
    side = tf.floor(_uniform(changes, "cutout") * (most + 1))

    def within(name: str, size: int) -> tf.Tensor:
        first = tf.floor(_uniform(changes, name) * (size + 1.0 - side))[:, None]
        places = tf.range(size, dtype=tf.float32)[None]
        return (places >= first) & (places < first + side[:, None])

    return (within("cutout_down", height)[:, :, None] & within("cutout_right", width)[:, None, :])[..., None]
