"""The probes of an epoch's batches: changed training data and single bad batches."""

import numpy as np
import pytest

from spikewise import batches
from spikewise.moments import typical
from tests.spikewise.training import STEPS


def _found(training, change=lambda _, x, y: (x, y)):
    """The probe `training_data` after an epoch whose batches `change` spoiled; before it they were the same."""
    before = batches.sorting(training.network, STEPS)
    training.batches[:] = [change(number, x, y) for number, (x, y) in enumerate(training.batches)]
    scene = training.scene(*training.snapshots())
    scene.sorted_before = before
    with training.network.untouched():
        return batches.training_data(scene)


CHANGES = {
    "scaled": lambda _, x, y: (20 * x, y),
    "shifted": lambda _, x, y: (x + 3, y),
    "random labels from the middle on": lambda number, x, y: (x, y if number < STEPS // 2 else 1 - y),
    "scaled from the middle on": lambda number, x, y: (x if number < STEPS // 2 else x / 20, y),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_training_data_are_found_with_their_first_batch(training, name):
    """The network would be blamed for what it was fed, or the user be sent to another part of the epoch."""
    found = _found(training, CHANGES[name])
    assert found is not None
    assert abs(found.facts["first"] - (STEPS // 2 if "middle" in name else 0)) <= 1


def test_images_that_come_class_by_class_are_recognized(training):
    """Sorted images would look like ordinary ones: their mean is the same."""
    x, y = (np.concatenate(values) for values in zip(*training.batches, strict=True))
    order = np.argsort(y, kind="stable").reshape(STEPS, -1)
    found = _found(training, lambda number, *_: (x[order[number]], y[order[number]]))
    assert found is not None
    assert found.facts["clustering"] > batches.CLUSTERED
    assert found.facts["first"] == 0


def test_the_classes_of_the_batches_tell_sorted_images_where_moments_do_not(training, monkeypatch):
    """A network without BatchNormalization, or with one that does not separate classes, would be told to look for bad images."""
    x, y = (np.concatenate(values) for values in zip(*training.batches, strict=True))
    order = np.argsort(y, kind="stable").reshape(STEPS, -1)
    monkeypatch.setattr(batches, "_clustering", lambda *_: 1.0)
    found = _found(training, lambda number, *_: (x[order[number]], y[order[number]]))
    assert found is not None
    assert found.facts["sorting"] > batches.CLUSTERED


def test_images_that_are_always_sorted_did_not_change(training):
    """A run whose batches come class by class in every epoch would have each of its spikes blamed on that."""
    x, y = (np.concatenate(values) for values in zip(*training.batches, strict=True))
    order = np.argsort(y, kind="stable").reshape(STEPS, -1)
    training.batches[:] = [(x[rows], y[rows]) for rows in order]
    assert batches.sorting(training.network, STEPS) > batches.CLUSTERED
    assert _found(training) is None


@pytest.mark.parametrize(
    ("order", "is_sorted"), [("shuffled", False), ("stratified", False), ("sorted", True), ("in blocks", True)]
)
@pytest.mark.parametrize("classes", [2, 10])
def test_sorted_batches_are_those_whose_classes_vary_more_than_by_chance(classes, order, is_sorted):
    """Shuffled images would be called sorted, or batches with only a few classes each would be called shuffled."""
    labels, numbers = np.random.default_rng(1).integers(0, classes, 24 * 32), np.arange(24 * 32)
    orders = {"shuffled": labels, "stratified": numbers % classes, "sorted": np.sort(labels), "in blocks": numbers // 40 % classes}
    assert (batches._sorting(list(orders[order].reshape(24, 32))) > batches.CLUSTERED) == is_sorted


def test_a_short_last_batch_does_not_make_shuffled_images_sorted():
    """Keras makes one out of what is left of an array: a single image is of one class."""
    labels = np.random.default_rng(1).integers(0, 2, 16 * 128 + 1)
    assert batches._sorting(np.split(labels, range(128, len(labels), 128))) < 2


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_layers_that_average_over_positions_show_sorted_images_too(order):
    """Batches of a convolution differ far less than its activations do, so sorted images would look like shuffled ones."""
    r = np.random.default_rng(0)
    images = np.repeat([0.0, 0.5], 400)[:, None] + r.normal(0, 0.1, (800, 4))  # means over positions, of two classes
    shuffled = r.permutation(images).reshape(50, 16, 4).mean(1)
    means = (images if order == "sorted" else r.permutation(images)).reshape(50, 16, 4).mean(1)
    moments = [means, np.ones_like(means)]  # within an image, activations vary by 1
    found = batches._clustering(moments, 16, typical(shuffled)[1])
    assert (found > batches.CLUSTERED) == (order == "sorted")
    assert batches._clustering(moments, 16, None) < batches.CLUSTERED  # not known without shuffled batches


def test_ordinary_training_data_are_not_called_changed(training):
    """The user would search the training data for a change that there was not."""
    assert _found(training) is None


def test_a_few_bad_batches_are_no_change_of_the_training_data(training):
    """The user would look at the whole epoch instead of a few batches."""
    assert _found(training, lambda number, x, y: (30 * x if number in (18, 20, 21) else x, y)) is None


def test_all_bad_batches_are_named_those_outside_of_the_steep_stretch_too(training):
    """Three of twelve bad batches would be named, and the rest stay in the data."""
    bad = [2, 5, 14, 15, 16, 17, 18, 19, 20, 21]
    training.batches[:] = [(30 * x if i in bad else x, y) for i, (x, y) in enumerate(training.batches)]
    scene = training.scene(*training.snapshots())
    with training.network.untouched():
        found = batches.bad_batches(scene, 18, STEPS)
    assert found.facts["batches"] == bad


def test_batches_that_repeat_a_few_images_are_not_called_sorted(training):
    """The user would shuffle images that are shuffled, instead of enlarging the batch."""
    assert _found(training, lambda _, x, y: (np.resize(x[:2], x.shape), np.resize(y[:2], y.shape))) is None


def test_moving_statistics_that_have_not_settled_are_no_change_of_the_training_data(training):
    """In the first epochs they still hold their initial values; every early spike would be blamed on the data."""
    scene = training.scene(*training.snapshots())
    with training.network.untouched():
        moments = training.network.moments(range(STEPS), dropout=True)
        for i in training.network.statistics:
            scene.reference[i] = scene.reference[i] + 500
        assert batches.training_data(scene).facts["shifted"]
        scene.usual = typical(np.concatenate(moments, 1))
        assert not batches.training_data(scene).facts["shifted"]
