"""Whether two sets of images look alike."""

import numpy as np
import pytest

from spikewise.looks import NOTICED, compare, matching

COUNT = 128


def photographs(count: int, seed: int, *, channels: int = 3) -> np.ndarray:
    """Blurred noise [count, 16, 16, channels], uint8, each image with a brightness and a contrast of its own."""
    r = np.random.default_rng(seed)
    noise = r.normal(0, 1, (count, 16, 16, channels))
    noise = sum(np.roll(noise, shift, axis) for shift in (0, 1, 2) for axis in (1, 2))
    values = r.uniform(60, 190, (count, 1, 1, 1)) + r.uniform(5, 15, (count, 1, 1, 1)) * noise
    return np.clip(values, 0, 255).astype(np.uint8)


TRAINING = photographs(COUNT, 0)


@pytest.mark.parametrize("seed", range(1, 21))
def test_two_sets_of_the_same_kind_look_alike(seed):
    """Every healthy run would be told that its validation images are prepared in another way."""
    assert compare(photographs(COUNT, seed), TRAINING).distance < NOTICED


def darker(pixels):
    return (0.3 * pixels).astype(np.uint8)


def scaled(pixels):
    return (pixels / 255).astype(np.float32)


def cast(pixels):
    return np.clip(pixels + np.array([0, 0, 150.0]), 0, 255)


@pytest.mark.parametrize(
    ("change", "features", "channels"),
    [
        (darker, {"brightness", "contrast"}, {0, 1, 2}),
        (scaled, {"brightness", "contrast"}, {0, 1, 2}),
        (cast, {"brightness"}, {2}),
    ],
)
def test_another_preparation_shows(change, features, channels):
    """The commonest mistake with a validation set would pass for overfitting."""
    look = compare(change(photographs(COUNT, 1)), TRAINING)
    assert look.feature in features
    assert look.channel in channels
    assert look.distance > NOTICED


def test_a_forgotten_scaling_is_far_off_in_numbers_that_a_person_recognizes():
    """ "0.49, not 125" is what tells the user that one set was divided by 255."""
    look = compare(scaled(photographs(COUNT, 1)), TRAINING)
    assert look.distance > 3 * NOTICED
    assert look.validation < 1
    assert look.training == pytest.approx(255 * look.validation, rel=0.1)


def test_images_that_were_standardized_one_by_one_are_not_far_apart():
    """Their brightness does not vary at all, so that any difference would be many standard deviations."""

    def standardized(pixels):
        values = pixels.astype(float)
        return (values - values.mean((1, 2, 3), keepdims=True)) / values.std((1, 2, 3), keepdims=True)

    assert compare(standardized(photographs(COUNT, 1)), standardized(TRAINING)).distance < NOTICED


@pytest.mark.parametrize(
    ("validation", "training"),
    [
        (np.zeros((9, 5), np.int32), np.zeros((9, 5), np.int32)),  # numbers of words
        (np.zeros((9, 5), np.float32), np.zeros((9, 5), np.float32)),  # the same as Keras converts them, or a table
        (np.zeros((9, 5, 3), np.int32), np.zeros((9, 5, 3), np.int32)),
        (np.zeros((9, 5, 5), np.float32), np.zeros((9, 4, 4), np.float32)),
        (np.array(["a"] * 9)[:, None], np.array(["a"] * 9)[:, None]),
        (np.zeros(9), np.zeros(9)),
        (np.zeros((9, 5, 5)), np.full((9, 5, 5), np.nan)),
        (np.zeros((9, 5, 5)), np.zeros((0, 5, 5))),
    ],
)
def test_what_cannot_be_compared_is_not(validation, training):
    """A model of texts, or a fault in the inputs, would end the measurement with an error."""
    assert compare(validation, training) is None


SHAPES = [(20, 2), (16, 16), (16, 16, 3), (3, 16, 16), (4, 8, 8, 1)]


@pytest.mark.parametrize("shape", [(COUNT, *shape) for shape in SHAPES])
def test_matching_undoes_a_scaling_and_an_offset_in_any_form(shape):
    """The loss that it is said to cost would be that of another change."""
    r = np.random.default_rng(0)
    training, validation = r.normal(5, 2, shape).astype(np.float32), r.normal(5, 2, shape).astype(np.float32)
    change = matching(0.1 * validation - 7, training)
    matched = change((0.1 * validation - 7)[:10])
    assert matched.shape == (10, *shape[1:])
    assert matched.dtype == np.float32
    np.testing.assert_allclose(matched, validation[:10], atol=0.6)  # the two sets are different draws
    assert compare(0.1 * validation - 7, training).distance > 3 * NOTICED


def test_matched_pixels_stay_pixels():
    """Values beyond the range would wrap around: white would become black."""
    change = matching(TRAINING // 4, TRAINING)
    matched = change(np.full((1, 16, 16, 3), 255, np.uint8))
    assert matched.dtype == np.uint8
    assert (matched == 255).all()
