"""One update: against a plain Keras loop, and on several workers against one."""

import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import workers
from trainer import UserError, config
from trainer.data.augmentation import augment
from trainer.data.loader import Batch
from trainer.engine.group import Group
from trainer.engine.step import Learner
from trainer.model import question

SHAPE = (16, 16, 3)


def _settings(**sections):
    data = {"source": "x", "classes": {"a": "a/", "b": "b/"}}
    return config.parse({"data": data, **sections})


def _batches(count, size=32, seed=0):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        labels = generator.integers(0, 2, size).astype(np.int32)
        images = generator.integers(0, 200, (size, *SHAPE), dtype=np.uint8)
        images[labels == 1, :4] += 50
        yield Batch(images, labels, np.zeros((size, 3), np.int32))


def test_the_step_is_keras_own():
    """Losses and weights would differ from those that plain Keras code reaches on the same batches."""
    settings = _settings(model={"dropout": [0.0, 0.0, 0.0], "batch_normalization": "keras"}, training={"learning_rate": 1e-3})
    learner = Learner(Group(), settings, SHAPE, 2)
    plain = question.build(SHAPE, 2, settings.model, seed=0)
    plain.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    for batch in _batches(8):
        ours = learner.train(batch)
        theirs = plain.train_on_batch(batch.images.astype(np.float32), batch.labels, return_dict=True)
        plain.reset_metrics()
        assert float(ours.loss) == pytest.approx(theirs["loss"], rel=1e-4)
    for a, b in zip(learner.model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4)


def test_the_statistics_of_a_step_are_what_they_are_called():
    """Gradient and update norms in report and metrics would be wrong."""
    learner = Learner(Group(), _settings(model={"dropout": [0.0, 0.0, 0.0]}), SHAPE, 2)
    batch = next(_batches(1))
    weights = [variable.value for variable in learner.model.trainable_variables]
    with tf.GradientTape() as tape:
        logits = learner.model(tf.cast(batch.images, tf.float32), training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch.labels, logits))
    norm = float(tf.linalg.global_norm(tape.gradient(loss, weights)))
    before = [weight.numpy() for weight in weights]
    stats = learner.train(batch, stop=True)
    change = np.sqrt(sum(np.sum((now.numpy() - was) ** 2) for now, was in zip(weights, before, strict=True)))
    assert float(stats.loss) == pytest.approx(float(loss), rel=1e-5)
    assert float(stats.gradient_norm) == pytest.approx(norm, rel=1e-3)
    assert float(stats.local_gradient_square) == pytest.approx(norm**2, rel=2e-3)
    assert float(stats.update_norm) == pytest.approx(change, rel=1e-3)
    assert float(stats.correct) == np.sum(np.argmax(logits, -1) == batch.labels)
    assert (float(stats.stop), float(stats.save)) == (1, 0)


def test_restoring_a_state_repeats_training_exactly():
    """A resumed run would leave the path of the undisturbed one."""
    batches = list(_batches(6))
    learner = Learner(Group(), _settings(), SHAPE, 2)
    for batch in batches[:3]:
        learner.train(batch)
    state = learner.state()
    first = [float(learner.train(batch).loss) for batch in batches[3:]]
    other = Learner(Group(), _settings(run={"seed": 5}), SHAPE, 2)
    other.restore(state)
    resumed = Learner(Group(), _settings(), SHAPE, 2)
    resumed.restore(state)
    assert [float(resumed.train(batch).loss) for batch in batches[3:]] == first
    assert [float(other.train(batch).loss) for batch in batches[3:]] != first  # other dropout masks: the comparison can fail


def test_a_state_of_another_network_is_refused():
    """A checkpoint of another image size would end in a traceback, or silently in a half-restored network."""
    state = Learner(Group(), _settings(), (32, 32, 3), 2).state()
    with pytest.raises(UserError, match=r"another network.*dense.*another run\.name"):
        Learner(Group(), _settings(), SHAPE, 2).restore(state)


@pytest.mark.parametrize(
    "settings", [{"data_format": "channels_first"}, {"precision": "mixed_bfloat16"}, {"precision": "float64"}], ids=str
)
def test_other_layouts_and_precisions_learn_the_same(settings):
    """model.data_format or question.precision would train another model."""
    losses, weights = [], None
    for chosen in ({}, settings):
        learner = Learner(Group(), _settings(model={"dropout": [0.0, 0.0, 0.0], **chosen}), SHAPE, 2)
        weights = weights or learner.model.get_weights()
        learner.model.set_weights(weights)
        losses.append([float(learner.train(batch).loss) for batch in _batches(4)])
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)


def test_resident_rows_are_the_images():
    """Data kept on the device would be trained on other images than data that is fed."""
    batch = next(_batches(1))
    fed, resident = Learner(Group(), _settings(), SHAPE, 2), Learner(Group(), _settings(), SHAPE, 2)
    resident.resident = tf.constant(batch.images[::-1])
    rows = np.arange(len(batch.labels))[::-1].copy()
    losses, probabilities = resident.evaluate(rows, batch.labels)
    expected, _ = fed.evaluate(batch.images, batch.labels)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(losses, -np.log(probabilities[np.arange(32), batch.labels]), rtol=1e-4, atol=1e-6)
    assert float(resident.train(Batch(rows, *batch[1:])).loss) == pytest.approx(float(fed.train(batch).loss), rel=1e-5)


def test_augmentation_mirrors_and_shifts():
    """Augmented images would not be what the configuration says."""
    image = np.arange(4 * 5 * 1, dtype=np.uint8).reshape(1, 4, 5, 1)
    mirrored, moved = augment(np.concatenate([image, image]), np.array([[1, 0, 0], [0, 1, -2]], np.int32)).numpy()
    np.testing.assert_array_equal(mirrored, image[0, :, ::-1])
    np.testing.assert_array_equal(moved[1:, :3], image[0, :3, 2:])
    np.testing.assert_array_equal(moved[0], moved[1])  # the edge is repeated


SCRIPT = """
import sys; sys.path.insert(0, {root!r})
import json, numpy as np
from tests.trainer.engine.test_step import _batches, _settings, SHAPE
from trainer.engine.step import Batch, Group, Learner
group = Group()
settings = _settings(launch={{"workers": group.size}}, model={{"batch_normalization": {mode!r}}})
learner = Learner(group, settings, SHAPE, 2)
part = 32 // group.size
mine = slice(group.rank * part, (group.rank + 1) * part)
losses, norms = [], []
for batch in _batches(6):
    stats = learner.train(Batch(*(values[mine] for values in batch)), stop=group.rank == 1)
    losses.append(float(stats.loss)); norms.append(float(stats.local_gradient_square) / float(stats.gradient_norm) ** 2)
    assert float(stats.stop) == (group.size > 1)
learner.average_statistics()
np.savez(f"{{group.size}}-{{group.rank}}.npz", losses=losses, norms=norms, **learner.state())
assert group.sum(np.array([1.0, group.rank])).tolist() == [group.size, sum(range(group.size))]
"""


@pytest.mark.integration
@pytest.mark.parametrize("mode", ["synchronized", "fused"])
def test_two_workers_are_one(tmp_path, mode):
    """Two workers would drift apart, or learn something else than one worker does with the same global batches."""
    script = SCRIPT.format(root=os.getcwd(), mode=mode)
    workers.run(script, 1, tmp_path)
    workers.run(script, 2, tmp_path)
    one, first, second = (dict(np.load(tmp_path / name)) for name in ("1-0.npz", "2-0.npz", "2-1.npz"))
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values, err_msg=f"{name} differs between the workers")
    if mode == "synchronized":
        np.testing.assert_allclose(first["losses"], one["losses"], rtol=2e-3)
    else:
        assert np.max(np.abs(first["losses"] / one["losses"] - 1)) > 2e-3  # local statistics do differ: the comparison can fail
    assert (first["norms"] > 1).all()  # a part's gradient is longer than the mean over parts
    assert json.dumps(one["norms"].round(3).tolist()) == json.dumps([1.0] * 6)
