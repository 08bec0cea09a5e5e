"""trainer.data.augmentation: what each setting does to an image, and that nothing else has an effect on the result.

Shapes: b images, H W C one image.
"""

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from trainer.config import Augmentation
from trainer.data.augmentation import COLUMNS, GRAY, RANGE, augment, draw
from trainer.data.order import epoch_generator, epoch_order

SINGLE = {
    "flip": True,
    "flip_vertical": True,
    "shift": 3,
    "rotation": 20.0,
    "crop": 0.6,
    "brightness": 0.3,
    "contrast": 0.3,
    "noise": 8.0,
    "jpeg": 40,
    "cutout": 0.5,
}
"""A value that turns each setting on."""
SETTINGS = [{name: value} for name, value in SINGLE.items()] + [SINGLE]


def _names(settings):
    return "all" if len(settings) > 1 else next(iter(settings))


def _images(count=8, shape=(13, 11, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def _draw(settings, count=8, seed=0, epoch=1):
    return draw(epoch_generator(seed, epoch), (1, count), settings)[0]


def _augment(images, changes, **settings):
    return augment(tf.constant(images), tf.constant(changes), Augmentation(**settings)).numpy()


def _changes(**columns):
    """Changes of one image: uniform numbers as fractions of their range, in the middle of it by default; the others 0."""
    values = np.array([0 if name in ("mirror", "down", "right", "key_low", "key_high") else RANGE // 2 for name in COLUMNS])
    for name, value in columns.items():
        values[COLUMNS.index(name)] = round(value * RANGE) if isinstance(value, float) else value
    return values.astype(np.int32)[None]


def test_flip_and_shift_are_drawn_as_ever():
    """A run of an earlier version would continue with other images."""
    generator = epoch_generator(0, 3)
    order = epoch_order(generator, 64, 8)
    changes = draw(generator, order.shape, Augmentation(flip=True, shift=2))
    assert changes.dtype == np.int32
    assert changes[0, :, :3].tolist() == [
        [0, 1, -1],
        [0, 1, -1],
        [1, -1, 0],
        [0, -2, 1],
        [1, 0, 0],
        [1, -1, -2],
        [0, -2, -2],
        [1, -1, 2],
    ]
    assert changes[-1, -1, :3].tolist() == [0, 1, -2]


@pytest.mark.parametrize("settings", [{"flip": True}, {"shift": 2}, {"flip": True, "shift": 5}], ids=str)
def test_mirrored_and_shifted_pixels_are_exact(settings):
    """Pixels would be mixed or lost where an image only moves."""
    images, changes = _images(16), _draw(Augmentation(**settings), 16)
    found = _augment(images, changes, **settings)
    rows, columns = np.arange(13), np.arange(11)
    for image, (mirror, down, right), result in zip(images, changes[:, :3], found, strict=True):
        mirrored = image[:, ::-1] if mirror else image
        np.testing.assert_array_equal(result, mirrored[(rows - down).clip(0, 12)][:, (columns - right).clip(0, 10)])
    assert found.dtype == np.uint8


@pytest.mark.parametrize("settings", SETTINGS, ids=_names)
def test_an_image_becomes_the_same_in_every_batch(settings):
    """Another number of workers would train on other images, and the loss curve would differ."""
    images, changes = _images(4), _draw(Augmentation(**settings), 4)
    signature = [tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in (images, changes)]  # traced once: tracing is slow
    compiled = tf.function(lambda pixels, changes: augment(pixels, changes, Augmentation(**settings)), signature)
    whole = compiled(images, changes).numpy()
    assert (whole != images).any()
    assert whole.shape == images.shape
    for workers in (2, 4):
        parts = [compiled(*part).numpy() for part in zip(np.split(images, workers), np.split(changes, workers), strict=True)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(_augment(images[::-1], changes[::-1], **settings)[::-1], whole)


@pytest.mark.parametrize("settings", SETTINGS, ids=_names)
def test_another_epoch_or_seed_gives_other_images(settings):
    """Every epoch would show the same images again."""
    images = _images(16)
    first, again, *others = (
        _augment(images, _draw(Augmentation(**settings), 16, *place), **settings) for place in ((0, 1), (0, 1), (0, 2), (1, 1))
    )
    np.testing.assert_array_equal(again, first)
    for other in others:
        assert (other != first).any((1, 2, 3)).mean() > 0.2


def test_a_setting_does_not_change_the_numbers_of_another():
    """A comparison of two runs, with and without noise, would also compare two sequences of crops."""
    changes = _draw(Augmentation(rotation=20.0, flip=True))
    np.testing.assert_array_equal(_draw(Augmentation(rotation=20.0, flip=True, noise=5.0, jpeg=50)), changes)
    np.testing.assert_array_equal(_draw(Augmentation(rotation=20.0, shift=9))[:, 3:], changes[:, 3:])


def test_nothing_is_computed_when_all_is_off():
    """A run without augmentation would pay for it."""
    pixels = tf.constant(_images())
    assert augment(pixels, tf.constant(_draw(Augmentation())), Augmentation()) is pixels


def test_xla_compiles_all_of_it():
    """A training step compiled by XLA would fail. XLA may differ in the last bits, because it fuses operations."""
    images, changes = _images(2, (16, 16, 3)), _draw(Augmentation(**SINGLE), 2)
    compiled = tf.function(lambda pixels, changes: augment(pixels, changes, Augmentation(**SINGLE)), jit_compile=True)
    difference = np.abs(compiled(images, changes).numpy() - _augment(images, changes, **SINGLE))
    assert difference.mean() < 0.05


def test_flipping_upside_down_twice_is_the_image():
    """Images would lose a row, or be shifted."""
    image = _images(1)
    once = _augment(image, _changes(mirror_vertical=0.0), flip_vertical=True)
    np.testing.assert_array_equal(once, image[:, ::-1])
    np.testing.assert_array_equal(_augment(once, _changes(mirror_vertical=0.0), flip_vertical=True), image)
    np.testing.assert_array_equal(_augment(image, _changes(mirror_vertical=0.5), flip_vertical=True), image)


def test_an_upside_down_image_is_shifted_like_any_other():
    """Shifts of flipped images would go the other way, and differ from those of rotated images."""
    image, changes = _images(1), _changes(mirror_vertical=0.0, mirror=1, down=2, right=-3)
    expected = image[0, ::-1, ::-1][(np.arange(13) - 2).clip(0, 12)][:, (np.arange(11) + 3).clip(0, 10)]
    np.testing.assert_array_equal(_augment(image, changes, flip=True, flip_vertical=True, shift=3)[0], expected)
    resampled = _augment(image, changes, flip=True, flip_vertical=True, shift=3, rotation=1e-6)[0]
    np.testing.assert_allclose(resampled, expected, atol=1e-2)


def test_a_quarter_turn_is_exact():
    """Images would be rotated by another angle than configured, or about another point than the middle."""
    image = _images(1, (12, 12, 3))
    for angle, turned in ((0.0, np.rot90(image[0], -1)), (1 - 1 / RANGE, np.rot90(image[0]))):
        found = _augment(image, _changes(angle=angle), rotation=90.0)[0]
        np.testing.assert_allclose(found, turned, atol=1e-2)


def test_a_bright_pixel_moves_where_the_rotation_moves_it():
    """Angles would be taken as radians, or rotations of images that are not square would stretch them."""
    image = np.zeros((1, 41, 61, 1), np.uint8)
    image[0, 20, 50] = 255  # 20 pixels right of the middle
    found = _augment(image, _changes(angle=1 - 1 / RANGE), rotation=30.0)[0, ..., 0]
    rows, columns = np.mgrid[:41, :61]
    down, right = ((found * place).sum() / found.sum() for place in (rows - 20, columns - 30))
    assert (right, abs(down)) == pytest.approx((20 * np.cos(np.pi / 6), 20 * np.sin(np.pi / 6)), abs=0.2)
    assert down < 0  # the last angle is counterclockwise


def test_a_crop_is_enlarged_to_the_full_size():
    """The network would see another part of the image than drawn, or pixels from outside of it."""
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None] * 5, (40, 40, 1))[None]
    smallest = 1 - 1 / RANGE  # half of the side
    for place, first in ((0.0, 0.0), (0.5, 10.0), (1 - 1 / RANGE, 20.0)):
        found = _augment(ramp, _changes(crop=smallest, crop_down=place), crop=0.5)[0, :, 7, 0]
        centers = (first + (np.arange(40) + 0.5) * 0.5 - 0.5).clip(0, 39)
        np.testing.assert_allclose(found, centers * 5, atol=1e-2)
    np.testing.assert_allclose(_augment(ramp, _changes(crop=0.0), crop=0.5), ramp, atol=1e-2)  # the whole image
    constant = np.full((8, 13, 11, 3), 77, np.uint8)
    np.testing.assert_array_equal(_augment(constant, _draw(Augmentation()), crop=0.3, rotation=45.0), constant)


def test_brightness_and_contrast_scale_the_pixel_values():
    """Images would become darker or flatter than the configuration allows."""
    image = _images(1).astype(np.uint8) // 2 + 40
    for drawn, factor in ((0.0, 0.8), (0.5, 1.0), (0.75, 1.1)):
        np.testing.assert_allclose(_augment(image, _changes(brightness=drawn), brightness=0.2), image * factor, rtol=1e-5)
        expected = image.mean() + (image - image.mean()) * factor
        np.testing.assert_allclose(_augment(image, _changes(contrast=drawn), contrast=0.2), expected, rtol=1e-4)
    bright = _augment(np.full_like(image, 250), _changes(brightness=0.9), brightness=0.9)
    np.testing.assert_array_equal(bright, np.full_like(image, 255))


def test_noise_has_the_drawn_deviation_and_is_independent():
    """Noise would be stronger or weaker than configured, or form a pattern that the network learns."""
    images, settings = np.full((8, 64, 64, 3), 128, np.uint8), Augmentation(noise=20.0)
    changes = _draw(settings)
    noise = _augment(images, changes, noise=20.0) - 128
    deviations = changes[:, COLUMNS.index("noise")] / RANGE * 20
    np.testing.assert_allclose(noise.std((1, 2, 3)), deviations, rtol=0.03)
    flat = (noise / deviations[:, None, None, None]).reshape(8, -1)
    limit = 5 / np.sqrt(flat.shape[1])
    assert np.abs(flat.mean(1)).max() < limit
    assert np.abs(np.corrcoef(flat) - np.eye(8)).max() < limit
    for distance in (1, 2, 3, 3 * 64):
        assert np.abs((flat[:, distance:] * flat[:, :-distance]).mean(1)).max() < limit
    assert [np.mean(np.abs(flat) < deviation) for deviation in (1, 2, 3)] == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.005)


def test_jpeg_takes_qualities_from_the_lowest_to_95():
    """Images would be compressed more than configured, or all alike."""
    image = np.repeat(_images(1, (16, 16, 1)), 3, axis=-1)  # without color, whose resolution every quality halves
    worst, best = (_augment(image, _changes(jpeg=drawn), jpeg=30) for drawn in (0.0, 1 - 1 / RANGE))
    np.testing.assert_array_equal(best, _augment(image, _changes(jpeg=0.0), jpeg=95))
    assert np.abs(worst - image).mean() > 2 * np.abs(best - image).mean()


def test_cutout_covers_a_square_of_at_most_the_stated_side():
    """More of the image would be hidden than configured, or nothing."""
    images = np.zeros((256, 20, 30, 3), np.uint8)
    covered = _augment(images, _draw(Augmentation(), 256), cutout=0.5) == GRAY
    assert (covered.all(-1) == covered.any(-1)).all()
    areas = covered[..., 0].sum((1, 2))
    assert set(areas) == {side**2 for side in range(11)}  # 0 to half of 20
    rows, columns = covered[..., 0].any(2).sum(1), covered[..., 0].any(1).sum(1)
    np.testing.assert_array_equal(rows, columns)
    assert covered.any((0, 2, 3)).all()  # every row and every column may be hit
    assert covered.any((0, 1, 3)).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("rotation", value) for value in (-1.0, 181.0, float("nan"))),
        *(("crop", value) for value in (0.05, 1.5)),
        *((name, value) for name in ("brightness", "contrast") for value in (-0.1, 0.95)),
        *(("noise", value) for value in (-1.0, 65.0)),
        *(("jpeg", value) for value in (-1, 96, 50.5)),
        *(("cutout", value) for value in (-0.1, 1.1)),
        *(("shift", value) for value in (-1, 65)),
    ],
)
def test_values_out_of_bounds_are_refused(name, value):
    """Training would fail after hours of decoding, or learn from black images."""
    with pytest.raises(ValidationError, match=name):
        Augmentation(**{name: value})
