"""The network in training, as the probes of the diagnosis see it."""

import numpy as np
import pytest

from tests.trainer.engine.test_golden import IMAGES, SHAPE, _Rows
from trainer import config
from trainer.data.loader import Feed
from trainer.engine.distributed_network import TrainedNetwork
from trainer.engine.group import Group
from trainer.engine.step import Learner


@pytest.fixture
def trained():
    """A network after one epoch, and what it is made of."""
    data = {"source": "x", "classes": {"a": "a/", "b": "b/"}}
    settings = config.parse({"data": data, "pipeline": {"flip": True, "shift": 2}, "training": {"learning_rate": 1e-3}})
    learner = Learner(Group(), settings, SHAPE, 2)
    options = {"batch_size": settings.training.batch_size, "seed": settings.run.seed, "memory_bytes": 10**9}
    feed = Feed(_Rows(), np.arange(160), **options, flip=True, shift=2, rank=0, size=1)
    learner.resident = feed.load()
    for batch in feed.batches(1):
        learner.train(batch)
    rows = np.arange(160, IMAGES)
    network = TrainedNetwork(
        learner, feed, lambda: np.concatenate([learner.evaluate(images, labels)[0] for _, images, labels in feed.evaluation(rows)])
    )
    network.begin(1)
    return learner, feed, network


def test_probes_leave_no_trace(trained):
    """A run with diagnosis would learn something else than one without."""
    learner, feed, network = trained
    before = learner.state()
    with network.untouched():
        network.moments([0, 3], dropout=True)
        network.moments([1], dropout=False)
        network.assign([weight + 1 for weight in network.weights()])
        network.batch_losses(2)
        network.evaluate()
    after = learner.state()
    assert after.keys() == before.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, err_msg=name)
    first = [float(learner.train(batch).loss) for batch in feed.batches(2)]
    learner.restore(before)
    assert [float(learner.train(batch).loss) for batch in feed.batches(2)] == first


def test_moments_are_those_that_training_adds(trained):
    """Statistics re-estimated by a probe would not be the batches' own, and lag would be found where there is none."""
    learner, feed, network = trained
    moving = [learner.model.weights[i] for i in network.statistics]
    with network.untouched():
        (found,) = network.moments([0], dropout=True)[:1]
        for variable in moving:
            variable.assign(np.zeros(variable.shape))
        learner.optimizer.iterations.assign(0)
        learner.train(next(feed.batches(1)))
        expected = moving[0].numpy() / (1 - learner.settings.model.momentum)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
    with_dropout, without = (network.moments([0], dropout=dropout)[-2][0] for dropout in (True, False))
    assert np.max(np.abs(with_dropout - without)) > 1e-3  # the dense layer's statistics see dropout


def test_batch_losses_are_of_the_batch_as_it_was_trained_on(trained):
    """A bad batch would be looked for among other images."""
    learner, feed, network = trained
    batch = next(feed.batches(1, 3))
    losses = network.batch_losses(3)
    assert losses.shape == (32,)
    plain, _ = learner.evaluate(batch.images, batch.labels)
    assert np.abs(losses - plain).max() > 1e-4  # augmented, as in training
    assert np.abs(losses - plain).max() < 2
