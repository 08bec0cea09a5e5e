"""Augmentation: drawn for a whole epoch at once, applied to each batch on the device.

Shapes: B images of a global batch, b of one worker's part of it, H W C one image.
"""

import numpy as np
import tensorflow as tf


def draw(generator: np.random.Generator, shape: tuple[int, ...], *, flip: bool, shift: int) -> np.ndarray:
    """The changes of the images of an epoch's batches, int32 [steps, B, 3] (see loader.Batch.changes). `shape` is (steps, B).

    With `flip` half of the images, drawn at random, are mirrored. All are shifted by up to `shift` pixels in each direction.
    """
    mirror = generator.integers(0, 2, (*shape, 1)) * flip
    return np.concatenate([mirror, generator.integers(-shift, shift + 1, (*shape, 2))], -1).astype(np.int32)


def augment(pixels: tf.Tensor, changes: tf.Tensor) -> tf.Tensor:
    """Mirrors and shifts uint8 [b, H, W, C] by `changes` (see loader.Batch.changes). Shifts repeat the edge pixels."""
    height, width = pixels.shape[1], pixels.shape[2]
    pixels = tf.where(changes[:, 0, None, None, None] == 1, tf.reverse(pixels, [2]), pixels)
    rows = tf.clip_by_value(tf.range(height)[None] - changes[:, 1, None], 0, height - 1)
    columns = tf.clip_by_value(tf.range(width)[None] - changes[:, 2, None], 0, width - 1)
    return tf.gather(tf.gather(pixels, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
