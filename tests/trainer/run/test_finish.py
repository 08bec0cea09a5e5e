"""The model that a run leaves behind, with real checkpoints in a folder."""

import json

import numpy as np
import pytest

from tests.support import training
from tests.support.epochs import report
from trainer import config
from trainer.run.finish import load_best, store_model
from trainer.storage import open_store
from trainer.storage.checkpoint import Checkpoints

SHAPE = (16, 16, 3)
HISTORY = [report(1, 0.5), report(2, 0.25), report(3, 0.75)]


@pytest.fixture
def learner():
    return training.learner(training.settings(), SHAPE)


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "storage"), config.S3())


def save(checkpoints, learner, *epochs):
    """Checkpoints of these epochs; the first weight of each is filled with the epoch's number."""
    for epoch in epochs:
        fill(learner, epoch)
        state = learner.state() | {"epoch/steps/loss": np.zeros(0)}
        checkpoints.save(10 * epoch, state, {"validation_loss": HISTORY[epoch - 1].validation_loss})


def fill(learner, number):
    weight = learner.model.weights[0]
    weight.assign(np.full(weight.shape, number))


def load(learner, checkpoints):
    """As the only worker of a run."""
    return load_best(learner, checkpoints, HISTORY, chief=True, broadcast=lambda step: step)


def filled(learner):
    return float(learner.model.weights[0].numpy().mean())


def test_the_best_epoch_is_loaded(learner, store, caplog):
    """model.keras would be the last epoch's model although training.keep = "best"."""
    checkpoints = Checkpoints(store, "first", 3)
    save(checkpoints, learner, 1, 2, 3)
    assert load(learner, checkpoints) == 2
    assert filled(learner) == 2
    assert not caplog.records


def test_all_workers_load_the_best_epoch(learner, store):
    """Workers would evaluate the test images with the weights of different epochs."""
    checkpoints = Checkpoints(store, "first", 3)
    save(checkpoints, learner, 1, 2, 3)
    assert load_best(learner, checkpoints, HISTORY, chief=False, broadcast=lambda step: 20 if step is None else step) == 2
    assert filled(learner) == 2


def test_a_missing_best_epoch_is_reported(learner, store, caplog):
    """The user would take the second best model for the best one."""
    checkpoints = Checkpoints(store, "first", 3)
    save(checkpoints, learner, 1, 3)
    assert load(learner, checkpoints) == 1
    assert "model.keras has the weights of epoch 1: the best epoch, 2, has no intact checkpoint" in caplog.text


def test_without_checkpoints_the_weights_stay(learner, store, caplog):
    """A run whose saves all failed would leave no model at all."""
    fill(learner, 3)
    assert load(learner, Checkpoints(store, "first", 3)) == 3
    assert filled(learner) == 3
    assert "the best epoch, 2" in caplog.text


def test_the_model_is_stored_beside_the_checkpoints(learner, store):
    """The user would find no model.keras in the bucket, or would not know which output is which class."""
    store_model(learner, SHAPE, ["authentic", "fake"], training.settings().model, store, "first")
    assert len(store.get("runs/first/model.keras")) > 10_000
    about = json.loads(store.get("runs/first/model.json"))
    assert about == {
        "classes": ["authentic", "fake"],
        "image_size": list(SHAPE[:2]),
        "data_format": "channels_last",
        "output": "softmax",
    }
