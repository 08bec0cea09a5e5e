"""One update, against a plain Keras loop."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import training
from tests.support.training import settings
from trainer import UserError
from trainer.data.loader import Batch
from trainer.engine.step import STEP_RECORD, StateError, StepStats, finite, records
from trainer.model import load

SHAPE = (16, 16, 3)
WITHOUT_DROPOUT = {"dropout": 0.0}
TINY = {"network": "tests.support.networks:tiny"}
"""For tests that hold for any network."""


@pytest.fixture(autouse=True)
def float32():
    """A test may set another precision, which is global in Keras."""
    yield
    keras.config.set_dtype_policy("float32")


def batches(count, size=32, seed=0, shape=SHAPE):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        labels = generator.integers(0, 2, size).astype(np.int32)
        images = generator.integers(0, 200, (size, *shape), dtype=np.uint8)
        images[labels == 1, :4] += 50
        yield Batch(images, labels, np.zeros((size, 3), np.int32))


def build(group=None, shape=SHAPE, **sections):
    return training.learner(settings(**sections), shape, group)


def loss(learner, batch):
    return float(learner.train(batch)[0].loss)


def test_the_step_is_keras_own():
    """Losses and weights would differ from those that plain Keras code reaches on the same batches."""
    model = {**WITHOUT_DROPOUT, "batch_normalization": "keras", "precision": "float64"}
    learner = build(model=model, optimizer={"learning_rate": 1e-3})
    plain = load.build(settings(model=model).model, SHAPE, 2, seed=0)
    plain.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy())
    for batch in batches(8):
        theirs = plain.train_on_batch(batch.images.astype(np.float64), batch.labels, return_dict=True)
        plain.reset_metrics()
        assert loss(learner, batch) == pytest.approx(theirs["loss"], rel=1e-6)  # Keras averages its losses in float32
    for a, b in zip(learner.model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # Adam amplifies the last bits of tiny gradients


def test_the_statistics_of_a_step_are_what_they_are_called():
    """Gradient and update norms in the report and the metrics would be wrong."""
    learner = build(model={**TINY, **WITHOUT_DROPOUT})
    batch = next(batches(1))
    weights = [variable.value for variable in learner.model.trainable_variables]
    with tf.GradientTape() as tape:
        logits = learner.model(tf.cast(batch.images, tf.float32), training=True)
        expected = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch.labels, logits))
    norm = float(tf.linalg.global_norm(tape.gradient(expected, weights)))
    before = [weight.numpy() for weight in weights]
    stats, signals = learner.train(batch, stop=True)
    change = np.sqrt(sum(np.sum((now.numpy() - was) ** 2) for now, was in zip(weights, before, strict=True)))
    assert float(stats.loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(stats.gradient_norm) == pytest.approx(norm, rel=1e-3)
    assert float(stats.update_norm) == pytest.approx(change, rel=1e-3)
    assert float(stats.learning_rate) == pytest.approx(1e-4)
    assert float(stats.correct) == np.sum(np.argmax(logits, -1) == batch.labels)
    assert (float(signals.stop), float(signals.save)) == (1, 0)


def test_records_hold_each_value_under_its_name():
    """The diagnosis would read a gradient norm as a loss; or a run with NaN weights would go on, or stop at the wrong step."""
    usual = StepStats(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    steps = records([usual, usual._replace(loss=np.nan), usual._replace(update_norm=np.inf)])
    assert steps.dtype == STEP_RECORD
    names = ("loss", "regularization", "correct", "gradient_norm", "update_norm", "learning_rate")
    assert [steps[name][0] for name in names] == [1, 2, 3, 4, 5, 6]
    assert finite(steps).tolist() == [True, False, False]
    assert records([]).shape == (0,)


def test_restoring_a_state_repeats_training_exactly():
    """A resumed run would leave the path of the undisturbed one."""
    all_batches = list(batches(6))
    learner = build(model=TINY)
    for batch in all_batches[:3]:
        learner.train(batch)
    state = learner.state()
    first = [loss(learner, batch) for batch in all_batches[3:]]
    resumed, other = build(model=TINY), build(model=TINY, run={"seed": 5})
    resumed.restore(state)
    other.restore(state)
    assert [loss(resumed, batch) for batch in all_batches[3:]] == first
    assert [loss(other, batch) for batch in all_batches[3:]] != first  # another seed, other dropout masks: the comparison can fail


def test_a_restored_learner_keeps_its_own_learning_rate():
    """A user who resumes a diverged run with a lower learning rate would train on with the old one."""
    learner = build(model=TINY, optimizer={"learning_rate": 1e-5})
    learner.restore(build(model=TINY, optimizer={"learning_rate": 1e-1}).state())
    assert float(learner.train(next(batches(1)))[0].learning_rate) == pytest.approx(1e-5)


def test_a_state_of_another_network_is_refused():
    """A checkpoint of another image size would end in a traceback, or silently in a half-restored model."""
    state = build(shape=(32, 32, 3)).state()
    with pytest.raises(UserError, match=r"belongs to another model: .*dense.* Fix: .*another run\.name"):
        build().restore(state)


@pytest.fixture(scope="module")
def exact():
    """The initial weights and the losses of four steps in float64."""
    learner = build(model={**WITHOUT_DROPOUT, "precision": "float64"})
    weights, losses = learner.model.get_weights(), [loss(learner, batch) for batch in batches(4)]
    keras.config.set_dtype_policy("float32")
    return weights, losses


@pytest.mark.parametrize(
    ("model", "first", "later"),
    [
        ({}, 1e-5, 1e-4),
        # float32 flips a few max-poolings, each 0.1 % of the gradient
        pytest.param({"data_format": "channels_first"}, 1e-5, 2e-3, marks=pytest.mark.integration),
        pytest.param({"precision": "mixed_bfloat16"}, 2e-2, 5e-2, marks=pytest.mark.integration),  # 8 significant bits
    ],
)
def test_other_layouts_and_precisions_learn_the_same(exact, model, first, later):
    """model.data_format or model.precision would train another model. Relative tolerances of the first loss and of three more."""
    weights, expected = exact
    learner = build(model={**WITHOUT_DROPOUT, **model})
    learner.model.set_weights(weights)
    found = [loss(learner, batch) for batch in batches(4)]
    np.testing.assert_allclose(found[0], expected[0], rtol=first)
    np.testing.assert_allclose(found, expected, rtol=later)
    assert {variable.dtype for variable in learner.model.trainable_variables} == {"float32"}


def test_resident_rows_are_the_images():
    """Data that stays on the device would be other images than data that is fed."""
    batch = next(batches(1))
    fed, resident = build(model=TINY), build(model=TINY)
    resident.resident = tf.constant(batch.images[::-1])
    rows = np.arange(len(batch.labels))[::-1].copy()
    losses, probabilities = resident.evaluate(rows, batch.labels)
    expected, _ = fed.evaluate(batch.images, batch.labels)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(losses, -np.log(probabilities[np.arange(32), batch.labels]), rtol=1e-4, atol=1e-6)
    assert loss(resident, Batch(rows, *batch[1:])) == pytest.approx(loss(fed, batch), rel=1e-5)


def test_regularization_is_trained_on_and_said_apart():
    """L2 terms of a user's network would be ignored, or hidden in a training loss that then compares with nothing."""
    with_l2 = build(model={**TINY, **WITHOUT_DROPOUT, "arguments": {"l2": 1.0}})
    without = build(model={**TINY, **WITHOUT_DROPOUT})
    batch = next(batches(1))
    expected = sum(float(one) for one in with_l2.model.losses)
    found, plain = (learner.train(batch)[0] for learner in (with_l2, without))
    assert float(found.regularization) == pytest.approx(expected, rel=1e-5)
    assert (float(found.loss), float(plain.regularization)) == (pytest.approx(float(plain.loss), rel=1e-5), 0)
    assert float(found.gradient_norm) != pytest.approx(float(plain.gradient_norm), rel=1e-4)


def test_smoothing_and_class_weights_are_keras():
    """training.label_smoothing or class_weights would train something else than Keras' arguments of that name."""
    model, values, weights = {**TINY, **WITHOUT_DROPOUT, "precision": "float64"}, {"label_smoothing": 0.2}, [0.5, 2.0]
    sections = settings(model=model, training=values, optimizer={"learning_rate": 1e-3})
    learner = training.learner(sections, SHAPE, class_weights=np.array(weights))
    plain = load.build(sections.model, SHAPE, 2, seed=0)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.2)
    plain.compile(keras.optimizers.Adam(1e-3), loss)
    for batch in batches(3):
        targets = np.eye(2)[batch.labels]
        scale = np.array(weights)[batch.labels]
        plain.train_on_batch(batch.images.astype(np.float64), targets, sample_weight=scale)
        learner.train(batch)
    for a, b in zip(learner.model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_averages_that_a_state_lacks_begin_with_the_weights():
    """Whether averaged weights would have avoided a spike could not be tried from the checkpoint before it."""
    plain = build(model=TINY, optimizer={"learning_rate": 1e-2})
    for batch in batches(3):
        plain.train(batch)
    averaging = build(model=TINY, optimizer={"learning_rate": 1e-2, "ema": 0.9})
    averaging.restore(plain.state())
    for weight, average in zip(averaging.model.trainable_variables, averaging.averages, strict=True):
        np.testing.assert_array_equal(average.numpy(), weight.numpy())
    with pytest.raises(StateError, match="belongs to another model"):
        build(model=TINY, optimizer={"name": "SGD", "arguments": {"momentum": 0.9}}).restore(plain.state())
