"""One update: against a plain Keras loop, and on several workers against one."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import training, workers
from tests.support.training import settings
from trainer import UserError
from trainer.data.loader import Batch
from trainer.engine.step import STEP_RECORD, StateError, StepStats, finite, records
from trainer.model import load

SHAPE = (16, 16, 3)
WITHOUT_DROPOUT = {"dropout": 0.0}


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
    learner = build(model=WITHOUT_DROPOUT)
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
    learner = build()
    for batch in all_batches[:3]:
        learner.train(batch)
    state = learner.state()
    first = [loss(learner, batch) for batch in all_batches[3:]]
    resumed, other = build(), build(run={"seed": 5})
    resumed.restore(state)
    other.restore(state)
    assert [loss(resumed, batch) for batch in all_batches[3:]] == first
    assert [loss(other, batch) for batch in all_batches[3:]] != first  # another seed, other dropout masks: the comparison can fail


def test_a_restored_learner_keeps_its_own_learning_rate():
    """A user who resumes a diverged run with a lower learning rate would train on with the old one."""
    learner = build(optimizer={"learning_rate": 1e-5})
    learner.restore(build(optimizer={"learning_rate": 1e-1}).state())
    assert float(learner.train(next(batches(1)))[0].learning_rate) == pytest.approx(1e-5)


def test_a_state_of_another_network_is_refused():
    """A checkpoint of another image size would end in a traceback, or silently in a half-restored model."""
    state = build(shape=(32, 32, 3)).state()
    with pytest.raises(UserError, match=r"belongs to another model: .*dense.* Fix: .*another run\.name"):
        build().restore(state)


@pytest.mark.parametrize(
    ("model", "first", "later"),
    [
        ({}, 1e-5, 1e-4),
        ({"data_format": "channels_first"}, 1e-5, 2e-3),  # float32 flips a few max-poolings, each 0.1 % of the gradient
        ({"precision": "mixed_bfloat16"}, 2e-2, 5e-2),  # 8 significant bits
    ],
    ids=str,
)
def test_other_layouts_and_precisions_learn_the_same(model, first, later):
    """model.data_format or model.precision would train another model. Relative tolerances of the first loss and of three more."""
    exact = build(model={**WITHOUT_DROPOUT, "precision": "float64"})
    weights, expected = exact.model.get_weights(), [loss(exact, batch) for batch in batches(4)]
    keras.config.set_dtype_policy("float32")
    learner = build(model={**WITHOUT_DROPOUT, **model})
    learner.model.set_weights(weights)
    found = [loss(learner, batch) for batch in batches(4)]
    np.testing.assert_allclose(found[0], expected[0], rtol=first)
    np.testing.assert_allclose(found, expected, rtol=later)
    assert {variable.dtype for variable in learner.model.trainable_variables} == {"float32"}


def test_resident_rows_are_the_images():
    """Data that stays on the device would be other images than data that is fed."""
    batch = next(batches(1))
    fed, resident = build(), build()
    resident.resident = tf.constant(batch.images[::-1])
    rows = np.arange(len(batch.labels))[::-1].copy()
    losses, probabilities = resident.evaluate(rows, batch.labels)
    expected, _ = fed.evaluate(batch.images, batch.labels)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(losses, -np.log(probabilities[np.arange(32), batch.labels]), rtol=1e-4, atol=1e-6)
    assert loss(resident, Batch(rows, *batch[1:])) == pytest.approx(loss(fed, batch), rel=1e-5)


SCRIPT = """
import sys; sys.path.insert(0, {root!r})
import numpy as np
from tests.trainer.engine.test_step import batches, build
from trainer.data.loader import Batch
from trainer.engine.group import Group
group = Group()
learner = build(group, launch={{"workers": group.size}}, model={model!r})
part = 32 // group.size
mine = slice(group.rank * part, (group.rank + 1) * part)
losses = []
for batch in batches(6):
    stats, signals = learner.train(Batch(*(values[mine] for values in batch)), stop=group.rank == 1)
    losses.append(float(stats.loss))
    assert float(signals.stop) == (group.size > 1)
learner.average_statistics()
np.savez(f"{{group.size}}-{{group.rank}}.npz", losses=losses, **learner.state())
assert group.sum(np.array([1.0, group.rank])).tolist() == [group.size, sum(range(group.size))]
assert group.gather(group.rank, 7.0).tolist() == [[rank, 7.0] for rank in range(group.size)]
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("model", "same"),
    [
        ({"batch_normalization": "synchronized", "precision": "float64"}, True),
        ({"batch_normalization": "fused"}, False),  # each worker has its own statistics: the comparison can fail
    ],
    ids=["synchronized", "fused"],
)
def test_two_workers_are_one(tmp_path, model, same):
    """Two workers would drift apart, or learn something else than one worker does with the same global batches."""
    script = SCRIPT.format(root=os.getcwd(), model=model)
    workers.run(script, 1, tmp_path)
    workers.run(script, 2, tmp_path)
    one, first, second = (dict(np.load(tmp_path / name)) for name in ("1-0.npz", "2-0.npz", "2-1.npz"))
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values, err_msg=f"{name} differs between the workers")
    difference = np.max(np.abs(first["losses"] / one["losses"] - 1))
    assert difference < 1e-9 if same else difference > 2e-3


def test_regularization_is_trained_on_and_said_apart():
    """L2 terms of a user's network would be ignored, or hidden in a training loss that then compares with nothing."""
    network = {"network": "tests.support.networks:residual", "arguments": {"l2": 0.01}}
    with_l2 = build(model={**network, **WITHOUT_DROPOUT})
    without = build(model={"network": network["network"], **WITHOUT_DROPOUT})
    batch = next(batches(1))
    expected = sum(float(one) for one in with_l2.model.losses)
    found, plain = (learner.train(batch)[0] for learner in (with_l2, without))
    assert float(found.regularization) == pytest.approx(expected, rel=1e-5)
    assert (float(found.loss), float(plain.regularization)) == (pytest.approx(float(plain.loss), rel=1e-5), 0)
    assert float(found.gradient_norm) != pytest.approx(float(plain.gradient_norm), rel=1e-4)


@pytest.mark.parametrize(
    ("values", "weights"),
    [({"label_smoothing": 0.1}, None), ({}, [0.5, 2.0]), ({"label_smoothing": 0.2}, [0.5, 2.0])],
    ids=["smoothing", "weights", "both"],
)
def test_smoothing_and_class_weights_are_keras(values, weights):
    """training.label_smoothing or class_weights would train something else than Keras' arguments of that name."""
    model = {**WITHOUT_DROPOUT, "precision": "float64"}
    sections = settings(model=model, training=values, optimizer={"learning_rate": 1e-3})
    learner = training.learner(sections, SHAPE, class_weights=weights and np.array(weights))
    plain = load.build(sections.model, SHAPE, 2, seed=0)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=values.get("label_smoothing", 0.0))
    plain.compile(keras.optimizers.Adam(1e-3), loss)
    for batch in batches(3):
        targets = np.eye(2)[batch.labels]
        scale = None if weights is None else np.array(weights)[batch.labels]
        plain.train_on_batch(batch.images.astype(np.float64), targets, sample_weight=scale)
        learner.train(batch)
    for a, b in zip(learner.model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize(
    "model",
    [
        {"network": "tests.support.networks:residual", "arguments": {"l2": 0.001}},
        {"network": "tests.support.networks:depthwise"},
        {"network": "keras.applications:MobileNet", "arguments": {"alpha": 0.25, "dropout": 0.2}},
    ],
    ids=["residual", "depthwise", "backbone"],
)
def test_networks_of_users_learn_the_same_on_any_number_of_workers(tmp_path, model):
    """The curve of a user's own network would depend on the number of workers, as in any other tool."""
    script = SCRIPT.replace("build(group,", "build(group, shape=(32, 32, 3),").replace(
        "batches(6)", "batches(4, shape=(32, 32, 3))"
    )
    script = script.format(root=os.getcwd(), model={**model, "precision": "float64"})
    for size in (1, 2, 4):
        workers.run(script, size, tmp_path)
    one = dict(np.load(tmp_path / "1-0.npz"))
    for size in (2, 4):
        found = dict(np.load(tmp_path / f"{size}-0.npz"))
        np.testing.assert_allclose(found["losses"], one["losses"], rtol=1e-9)
        other = dict(np.load(tmp_path / f"{size}-1.npz"))
        for name, values in found.items():
            np.testing.assert_array_equal(other[name], values, err_msg=f"{name} differs between the workers")


def test_averages_that_a_state_lacks_begin_with_the_weights():
    """Whether averaged weights would have avoided a spike could not be tried from the checkpoint before it."""
    plain = build(optimizer={"learning_rate": 1e-2})
    for batch in batches(3):
        plain.train(batch)
    averaging = build(optimizer={"learning_rate": 1e-2, "ema": 0.9})
    averaging.restore(plain.state())
    for weight, average in zip(averaging.model.trainable_variables, averaging.averages, strict=True):
        np.testing.assert_array_equal(average.numpy(), weight.numpy())
    with pytest.raises(StateError, match="belongs to another model"):
        build(optimizer={"name": "SGD", "arguments": {"momentum": 0.9}}).restore(plain.state())
