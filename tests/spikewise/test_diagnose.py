"""From a spike made on purpose to its name."""

import json
from contextlib import nullcontext

import numpy as np
import pytest

from spikewise import describe
from spikewise.diagnose import Diagnostician, diagnosis_from
from spikewise.records import Event
from tests.support import training as support
from tests.trainer.engine.test_golden import SHAPE, _Rows
from trainer import config
from trainer.engine.distributed_network import DistributedNetwork
from trainer.engine.step import records

VALIDATION = np.arange(120, 200)
EPOCHS = 10


class _Training:
    """A network in training, with a diagnostician."""

    def __init__(self) -> None:
        data = {"source": "x", "classes": {"a": "a/", "b": "b/"}}
        model = {"momentum": 0.5, "dropout": [0.0, 0.0, 0.0]}
        settings = config.parse({"data": data, "model": model, "training": {"batch_size": 8, "learning_rate": 1e-4}})
        rows = _Rows()
        self.learner = support.learner(settings, SHAPE)
        self.feed = support.feed(settings, rows, np.arange(120))
        self.learner.resident = self.feed.load()
        self.labels = rows.labels[VALIDATION].copy()
        self.network = DistributedNetwork(self.learner, self.feed, self.evaluate)
        self.diagnostician = Diagnostician(self.network, batch_size=8, labels=self.labels, momentum=0.5)

    def evaluate(self) -> np.ndarray:
        return self.learner.evaluate(VALIDATION, self.labels)[0]

    def epoch(self, number: int, before_evaluation=lambda: None, events=()):
        snapshots, steps = self.diagnostician.snapshots(self.feed.steps), []
        self.network.begin(number)
        for batch in self.feed.batches(number):
            steps.append(self.learner.train(batch)[0])
            if len(steps) == self.feed.steps:
                before_evaluation()
            if len(steps) in snapshots:
                self.diagnostician.snapshot(len(steps))
        sample, _ = self.learner.evaluate(np.arange(100), self.feed.rows.labels[:100])
        return self.diagnostician.close_epoch(self.evaluate(), sample, records(steps), learning_rate=1e-4, events=events)


@pytest.fixture
def training():
    found = _Training()
    for number in range(1, EPOCHS + 1):
        found.epoch(number)
    return found


def test_lost_statistics_are_named_and_nothing_is_changed(training):
    """The commonest cause of a spike would be missed, or the diagnosis itself would change the run."""
    statistics = [training.learner.model.weights[i] for i in training.network.statistics]

    def lose() -> None:
        nonlocal state
        for variable in statistics:
            variable.assign(variable.numpy() * 0.2)
        state = training.learner.state()

    state: dict[str, np.ndarray] = {}
    known = len(training.diagnostician.diagnoses)
    news = training.epoch(EPOCHS + 1, lose)
    assert news.diagnosis is not None
    assert len(training.diagnostician.diagnoses) == known + 1
    assert news.diagnosis.verdict.name == "batchnorm_statistics"
    assert news.diagnosis.verdict.fraction > 0.5
    for name, values in state.items():
        np.testing.assert_array_equal(training.learner.state()[name], values)
    assert diagnosis_from(news.diagnosis.as_dict()) == news.diagnosis  # or the report of a finished run would lack it
    assert f"SPIKE in epoch {EPOCHS + 1}" in describe.block(news.diagnosis)


def test_a_network_whose_statistics_lag_for_long_is_not_called_lost(training):
    """A run that comes back would be reported as the end of training."""
    statistics = [training.learner.model.weights[i] for i in training.network.statistics]

    def spoil() -> None:
        for variable in statistics:
            variable.assign(variable.numpy() * 0.05)

    news = [training.epoch(EPOCHS + 1 + number, spoil) for number in range(6)]
    outcomes = [found.resolved.spike.outcome for found in news if found.resolved]
    assert outcomes == ["level shift"]


def test_a_network_that_forgot_its_images_is_called_lost(training):
    """A dead network would be called a level shift, and the user would train on."""
    weights = [variable for variable in training.learner.model.trainable_variables if len(variable.shape) > 1]

    def destroy() -> None:
        for number, variable in enumerate(weights):
            variable.assign(np.random.default_rng(number).normal(0, 3 * variable.numpy().std(), variable.shape))

    news = [training.epoch(EPOCHS + 1 + number, destroy) for number in range(6)]
    resolved = [found.resolved for found in news if found.resolved]
    assert [diagnosis.verdict.name for diagnosis in resolved] == ["divergence"]


@pytest.mark.parametrize(("later", "blamed"), [(1, True), (3, False)])
def test_a_raised_learning_rate_is_remembered_for_two_epochs(training, later, blamed):
    """Harm often comes an epoch after a warm restart, and the user would be told of long steps but not where they came from."""
    training.epoch(EPOCHS + 1, events=[Event("learning_rate", EPOCHS + 1, 0, 1e-4, 10.0)])
    for number in range(EPOCHS + 2, EPOCHS + 1 + later):
        training.epoch(number)
    facts, arrays = training.diagnostician.state()
    training.diagnostician.restore(json.loads(json.dumps(facts)), arrays, at_epoch_end=True)
    training.learner.optimizer.learning_rate.assign(10.0)
    news = training.epoch(EPOCHS + 1 + later)
    assert news.diagnosis is not None
    assert (news.diagnosis.verdict.name == "run_event") == blamed  # what else is named turns on the last bits of so wild a step
    assert (f"in epoch {EPOCHS + 1};" in news.diagnosis.verdict.evidence) == blamed


class _Told:
    """A network whose losses are told: those of its only weight, the number of the epoch."""

    statistics: tuple[int, ...] = ()
    drops = False

    def __init__(self, losses) -> None:
        self.losses, self.weight = losses, 0.0

    def untouched(self):
        return nullcontext()

    def weights(self):
        return [np.array([self.weight])]

    def assign(self, weights) -> None:
        self.weight = float(weights[0][0])

    def evaluate(self):
        return self.losses[round(self.weight)]

    def batch_losses(self, batch):  # noqa: ARG002
        return np.full(8, 0.3)


def _told(losses, sampled, predict=None):
    """The diagnosis of an epoch with the last of these validation losses [k, n], training losses [k] given."""
    network = _Told(losses)
    diagnostician = Diagnostician(network, batch_size=8)
    steps = np.tile([0.3, 6, 1, 1, 2, 0, 0], (10, 1))
    for number, sample in enumerate(sampled):
        network.weight = float(number)
        news = diagnostician.close_epoch(losses[number], np.full(8, sample), steps, predict=predict)
    return news.diagnosis


def test_a_rise_over_two_epochs_that_training_images_share_is_no_shift_of_the_validation_images():
    """The second epoch's training images would be compared with both epochs' validation images."""
    means = np.array([*(0.7 + 0.005 * np.sin(np.arange(16))), 0.84, 0.865])
    losses = means[:, None] + np.random.default_rng(0).normal(0, 0.05, 300)
    found = _told(losses, means - 0.2)
    assert found.spike.rise > 0.14
    assert found.training.validation_rise == pytest.approx(found.training.train_rise)
    assert found.training.train_rise == pytest.approx(0.025)
    assert found.verdict.name == "unexplained"


def test_images_without_a_finite_loss_are_named():
    """Two damaged images would make a spike that nothing explains."""
    losses = np.full((8, 300), 0.5) + 0.01 * np.sin(np.arange(8))[:, None]
    losses[-1, [7, 90]] = np.inf, np.nan
    found = _told(losses, losses[:, 0], lambda images: dict.fromkeys(images, ("cat", "dog", 0.99)))
    assert found.spike.outcome == "open"
    assert found.verdict.name == "few_examples"
    assert sorted(one.image for one in found.suspects) == [7, 90]
    assert describe.name(found) == "2 images, probably mislabelled"


def test_a_first_epoch_without_a_finite_loss_is_told():
    """A run that was broken from the start would have no diagnosis, or one of a loss that was expected to be nan."""
    found = _told(np.full((1, 300), np.nan), [np.nan])
    assert found.verdict.name == "divergence"
    assert "nan" not in describe.block(found)
    assert found.verdict.remedy == "start again with a lower learning rate."
