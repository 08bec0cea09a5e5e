"""trainer.data.jpeg against Pillow's encoder and decoder, which are libjpeg-turbo."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from trainer.data.jpeg import recompress


def _photographs(height, width, count=6):
    """Smooth colors with edges and a little noise, uint8 [count, height, width, 3]."""
    generator, images = np.random.default_rng(0), []
    for _ in range(count):
        small = Image.fromarray(generator.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        image = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
        top, left = generator.integers(0, height // 2), generator.integers(0, width // 2)
        image[top : top + height // 3, left : left + width // 3] += generator.normal(0, 60, 3)
        images.append(image + generator.normal(0, 3, image.shape))
    return np.array(images).clip(0, 255).round().astype(np.uint8)


def _pillow(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(buffer)).astype(np.float32)


@pytest.mark.parametrize("shape", [(64, 64), (61, 50), (24, 40)], ids=str)
def test_pixels_are_those_of_a_real_jpeg(shape):
    """Recompression would leave other traces than the JPEGs that the model meets later. The rest of the difference comes from
    coefficients in the middle between two steps, because libjpeg computes with integers: 0.02 to 0.2 pixel values on average."""
    images = _photographs(*shape)
    for quality in (10, 50, 75, 90, 95):
        expected = np.array([_pillow(image, quality) for image in images])
        found = recompress(tf.constant(images, tf.float32), tf.fill([len(images)], quality)).numpy()
        assert np.abs(found - expected).mean() < 0.25
        assert np.abs(found - expected).mean() < 0.15 * np.abs(images - expected).mean()
        np.testing.assert_array_equal(found, found.round())
        assert found.min() >= 0
        assert found.max() <= 255


def test_each_image_has_its_own_quality():
    """All images would get the quality of the first."""
    images, qualities = _photographs(40, 32), [10, 20, 50, 75, 90, 95]
    found = recompress(tf.constant(images, tf.float32), tf.constant(qualities)).numpy()
    for image, quality, ours in zip(images, qualities, found, strict=True):
        assert np.abs(ours - _pillow(image, quality)).mean() < 0.25
