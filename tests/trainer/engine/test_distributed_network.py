"""The model in training, as the probes of the diagnosis see it."""

import numpy as np
import pytest

from tests.support import training
from tests.trainer.engine.test_golden import IMAGES, SHAPE, _Rows
from trainer import config
from trainer.data.augmentation import augment
from trainer.engine.distributed_network import DistributedNetwork
from trainer.engine.evaluate import evaluate

MOMENTUM = 0.9


@pytest.fixture(scope="module")
def learners():
    """Learners after one epoch by what was changed in their configuration, each with its settings, feed and state. Tests share
    them, because TensorFlow takes seconds to trace a step."""
    return {}


@pytest.fixture
def trained(request, learners):
    """A learner after one epoch, its feed, and the network that probes get. The parameter changes sections of the configuration."""
    changed = getattr(request, "param", {})
    if str(changed) not in learners:
        settings = training.settings(
            augmentation={"flip": True, "shift": 2},
            optimizer={"learning_rate": 1e-3, **changed.get("optimizer", {})},
            model={"momentum": MOMENTUM, **changed.get("model", {})},
        )
        learner = training.learner(settings, SHAPE)
        feed = training.feed(settings, _Rows(), np.arange(160))
        learner.resident = feed.load()
        for batch in feed.batches(1):
            learner.train(batch)
        learners[str(changed)] = settings, learner, feed, learner.state()
    settings, learner, feed, state = learners[str(changed)]
    learner.restore(state)
    rows = np.arange(160, IMAGES)
    network = DistributedNetwork(learner, feed, rows, np.arange(40), precise=settings.model.statistics == "precise")
    network.begin(1)
    return learner, feed, network


def losses_of_epoch_2(learner, feed):
    return [float(learner.train(batch)[0].loss) for batch in feed.batches(2)]


def test_probes_leave_no_trace(trained):
    """A run with the diagnosis would learn something else than a run without it."""
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
    first = losses_of_epoch_2(learner, feed)
    learner.restore(before)
    assert losses_of_epoch_2(learner, feed) == first


@pytest.mark.parametrize("resident", [True, False])
def test_images_can_be_looked_at_and_changed_before_they_are_evaluated(trained, resident):
    """What another preparation of the validation images costs would be measured on other images."""
    learner, feed, network = trained
    feed.resident, kept = resident, feed.resident
    try:
        validation, sample = network.inputs(16)
        np.testing.assert_array_equal(sample, _Rows().pixels[np.linspace(0, 39, 16).astype(int)])
        positions, losses = network.evaluate_part(16)
        np.testing.assert_array_equal(validation, _Rows().pixels[160 + positions])
        np.testing.assert_allclose(network.evaluate_changed(16, lambda pixels: pixels), losses, rtol=1e-5)
        changed, _ = learner.evaluate(validation // 2, _Rows().labels[160 + positions])
        np.testing.assert_allclose(network.evaluate_changed(16, lambda pixels: pixels // 2), changed, rtol=1e-5)
        assert not np.allclose(changed, losses, rtol=1e-2)
    finally:
        feed.resident = kept


def test_moments_are_those_that_training_adds(trained):
    """Re-estimated statistics would not be those of the batches, and the diagnosis would report a lag where there is none."""
    learner, feed, network = trained
    moving = [learner.model.weights[i] for i in network.statistics]
    with network.untouched():
        (found,) = network.moments([0], dropout=True)[:1]
        for variable in moving:
            variable.assign(np.zeros(variable.shape))
        learner.optimizer.iterations.assign(0)
        learner.train(next(feed.batches(1)))
        expected = moving[0].numpy() / (1 - MOMENTUM)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
    with_dropout, without = (network.moments([0], dropout=dropout)[-2][0] for dropout in (True, False))
    assert np.max(np.abs(with_dropout - without)) > 1e-3  # dropout changes the statistics of the dense layer


def test_batch_losses_are_those_of_the_batch_as_it_was_trained_on(trained):
    """The diagnosis would look for a bad batch among other images, or among images without their augmentation."""
    learner, feed, network = trained
    batch = next(feed.batches(1, 3))
    pixels = feed.rows.take(batch.images.numpy())
    mirror, down, right = batch.changes.numpy().T[:3]
    assert mirror.any()
    assert down.any()
    rows, columns = np.arange(SHAPE[0]), np.arange(SHAPE[1])
    augmented = np.array(
        [
            (image[:, ::-1] if m else image)[(rows - d).clip(0, SHAPE[0] - 1)][:, (columns - r).clip(0, SHAPE[1] - 1)]
            for image, m, d, r in zip(pixels, mirror, down, right, strict=True)
        ]
    )
    expected, _ = learner.evaluate(augmented, batch.labels.numpy())
    np.testing.assert_allclose(network.batch_losses(3), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(network.batch_classes([1, 3])[1], batch.labels)


@pytest.mark.parametrize("trained", [{"model": {"statistics": "precise"}}, {"optimizer": {"ema": 0.8}}], indirect=True, ids=str)
def test_what_is_evaluated_leaves_training_alone(trained):
    """Precise statistics or averaged weights would change what is learned; or the exported model would not be the evaluated one."""
    learner, feed, network = trained
    rows = np.arange(160, IMAGES)
    before, raw = learner.state(), evaluate(learner, feed, rows)[0]
    with network.as_evaluated():
        evaluated = evaluate(learner, feed, rows)[0]
    state = learner.state()
    for name, values in before.items():
        np.testing.assert_array_equal(state[name], values, err_msg=name)
    assert np.abs(evaluated - raw).max() > 1e-3
    np.testing.assert_array_equal(network.evaluate() if not learner.averages else evaluated, evaluated)
    resumed = training.learner(training.settings(optimizer={"ema": 0.8} if learner.averages else {}), SHAPE)
    resumed.resident = learner.resident
    resumed.restore(state)
    resumed.assume_evaluated()
    np.testing.assert_allclose(evaluate(resumed, feed, rows)[0], evaluated, rtol=1e-6)
    assert network.statistics == []  # no moving statistics that could lag


@pytest.mark.parametrize("trained", [{"model": {"statistics": "precise", "dropout": 0.5}}], indirect=True, ids=str)
def test_precise_statistics_are_those_of_all_training_images(trained):
    """ "precise" statistics would be those of a few batches, or with dropout's extra variance."""
    learner, feed, network = trained
    with network.as_evaluated():
        pass
    first = learner.network.model.layers[1]  # the first convolution
    pixels = np.concatenate([_augmented(feed, batch) for batch in feed.batches(1)])
    outputs = first(pixels.astype(np.float32) / 255).numpy().astype(np.float64)
    mean, variance = learner.statistics[:2]
    np.testing.assert_allclose(mean, outputs.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variance, outputs.var((0, 1, 2)), rtol=1e-3, atol=1e-6)


def _augmented(feed, batch):
    return augment(feed.rows.take(batch.images.numpy()), batch.changes, config.Augmentation(flip=True, shift=2)).numpy()


@pytest.mark.parametrize("trained", [{"optimizer": {"ema": 0.8}}], indirect=True, ids=str)
def test_averaged_weights_are_the_average(trained):
    """The evaluated weights would be those of the last step, or would include the random first weights for ever."""
    learner, feed, network = trained
    kernel, average = learner.model.trainable_variables[0], learner.averages[0]
    expected = average.numpy()
    for batch in feed.batches(2):
        learner.train(batch)
        expected = 0.8 * expected + 0.2 * kernel.numpy()
    np.testing.assert_allclose(average.numpy(), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(network.weights()[0], average.numpy())


@pytest.mark.parametrize("trained", [{"model": {"network": "tests.support.networks:twice"}}], indirect=True, ids=str)
def test_statistics_of_a_layer_that_is_called_twice(trained):
    """Re-estimated statistics would be twice as large as the true ones, and so would be precise statistics."""
    learner, feed, network = trained
    with network.untouched():
        mean = network.moments([0], dropout=True)[0][0]
        expected = learner.moving[0][0]
        expected.assign(mean)  # the same batch does not move it away from its own moments
        learner.optimizer.iterations.assign(0)
        learner.train(next(feed.batches(1)))
        np.testing.assert_allclose(expected.numpy(), mean, rtol=1e-4, atol=1e-5)


def test_probabilities_belong_to_the_losses_of_the_same_evaluation(trained):
    """A temperature would be fitted to another network than the one that is evaluated."""
    _, _, network = trained
    with network.untouched():
        losses, probabilities = network.evaluate(), network.probabilities()
    assert probabilities.sum(1) == pytest.approx(1, abs=1e-3)
    nearest = np.abs(-np.log(probabilities) - losses[:, None]).min(1)  # the loss is that of the image's own class
    assert nearest.max() < 0.01


def test_reduced_precision_is_evaluated_in_float32_and_left_as_it_is():
    """A rise that rounding makes would be blamed on the weights, or training go on in another precision."""
    settings = training.settings(model={"precision": "mixed_bfloat16"})
    learner, feed = training.learner(settings, SHAPE), training.feed(settings, _Rows(), np.arange(160))
    learner.resident = feed.load()
    rows = np.arange(160, IMAGES)
    network = DistributedNetwork(learner, feed, rows, rows[:0])
    rounded, exact = network.evaluate(), network.evaluate_in_float32()
    assert exact is not None
    assert 0 < np.abs(rounded - exact).max() < 0.2
    np.testing.assert_array_equal(network.evaluate(), rounded)
    assert all(layer.compute_dtype == "bfloat16" for layer in learner.reduced)
    full = training.learner(training.settings(), SHAPE)
    assert DistributedNetwork(full, feed, rows, rows[:0]).evaluate_in_float32() is None
