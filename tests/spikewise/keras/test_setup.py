"""What counts as another loss, another optimizer, other layers that train."""

from dataclasses import replace

import keras
import pytest

from spikewise.keras.setup import setup_of
from tests.spikewise.keras.digits import network

losses = keras.losses


def weighted(factor):
    """A loss with a setting in a closure."""

    def loss(y, p):
        return factor * losses.sparse_categorical_crossentropy(y, p)

    return loss


class Focal(losses.Loss):
    """A loss whose setting is in no configuration."""

    def __init__(self, gamma):
        super().__init__()
        self.gamma = gamma

    def call(self, y, p):
        return (1 - p) ** self.gamma * losses.sparse_categorical_crossentropy(y, p)


@pytest.fixture(scope="module")
def model():
    found = network()
    found.optimizer.build(found.trainable_variables)
    return found


def _events(model, before, now):
    found = []
    for loss in (before, now):
        model.loss = loss
        found.append(setup_of(model, 32))
    return [event.kind for event in found[1].events(found[0], 9)]


@pytest.mark.parametrize(
    ("before", "now", "changed"),
    [
        ("mse", "mse", False),
        ("mse", "mae", True),
        (losses.MeanSquaredError(), losses.MeanSquaredError(), False),
        (losses.CategoricalCrossentropy(), losses.CategoricalCrossentropy(label_smoothing=0.1), True),
        (losses.CategoricalCrossentropy(), losses.CategoricalCrossentropy(reduction="sum"), True),
        (Focal(1.0), Focal(1.0), False),
        (Focal(1.0), Focal(2.0), True),
        (weighted(1.0), weighted(1.0), False),
        (weighted(1.0), weighted(2.0), True),
        (lambda y, p: 2 * losses.mse(y, p), lambda y, p: 3 * losses.mse(y, p), True),
        (["mse"], ["mae"], True),
        (losses.MeanSquaredError, losses.MeanAbsoluteError, True),
    ],
)
def test_another_loss_is_told_from_the_same_one(model, before, now, changed):
    """A cell of a notebook that is run twice defines the same loss again; another weight in it is another loss."""
    assert _events(model, before, now) == (["loss"] if changed else [])


def test_changes_are_described_with_what_explains_most_first(model):
    """The event is what the verdict will name."""
    model.loss = "mse"
    now = setup_of(model, 64)
    before = replace(now, optimizer="SGD", trainable=now.trainable[:2], norms=0, batch_size=32)
    frozen, optimizer, size = now.events(before, 11)
    assert (frozen.kind, frozen.epoch, frozen.before, frozen.after) == ("frozen_layers", 11, 2, 6)
    assert frozen.detail == "4 more variables train, BatchNormalization among them"
    assert (optimizer.kind, optimizer.detail) == ("optimizer", "Adam instead of SGD")
    assert (size.kind, size.before, size.after) == ("batch_size", 32, 64)
    (reset,) = now.events(replace(now, iterations=100), 11)
    assert (reset.kind, reset.detail) == ("optimizer_reset", "it had made 100 steps and began again from 0")
