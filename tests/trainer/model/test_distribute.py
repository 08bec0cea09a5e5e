"""What becomes of a network's layers in training: exchanged wherever they are, and back for the export."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import training
from tests.support.training import settings
from trainer.data.loader import Batch
from trainer.model import load
from trainer.model.distribute import distribute
from trainer.model.export import export
from trainer.model.layers import BatchNormalization, GlobalDropout, Place
from trainer.model.module import NetworkError

OWN = "tests.support.networks:"
SHAPE = (32, 32, 3)
NETWORKS = {
    "residual": {"network": f"{OWN}residual"},
    "depthwise": {"network": f"{OWN}depthwise"},
    "custom layer": {"network": f"{OWN}custom"},
    "backbone": {"network": "keras.applications:MobileNetV2", "arguments": {"alpha": 0.35}},
}
"""Name -> settings of [model]."""


def _distributed(classes=2, **model):
    network = load.build(settings(model=model).model, SHAPE, classes, seed=0)
    return distribute(network, place=Place(0, 0, tf.Variable(0, dtype=tf.int64)), reduce=lambda total: total)


SLOW = [name if name != "backbone" else pytest.param(name, marks=pytest.mark.integration) for name in NETWORKS]
"""The names of NETWORKS; the large one takes seconds to build."""
COUNTS = {"residual": (5, 2), "depthwise": (0, 1), "custom layer": (1, 1), "backbone": (52, 1)}
"""Numbers of their BatchNormalization and Dropout layers."""


@pytest.mark.parametrize("name", SLOW)
def test_layers_are_exchanged_wherever_they_are(name):
    """Layers inside blocks would keep statistics of their worker's part of a batch, and masks of their own."""
    network = _distributed(**NETWORKS[name])
    assert (len(network.norms), len(network.dropouts)) == COUNTS[name]
    for _, layer in load.layers(network.model):
        if isinstance(layer, keras.layers.BatchNormalization):
            assert isinstance(layer, BatchNormalization)
        if isinstance(layer, keras.layers.Dropout):
            assert isinstance(layer, GlobalDropout)
    assert network.warnings() == []


@pytest.mark.parametrize("name", SLOW)
def test_the_exchanged_network_computes_the_same(name):
    """A network would be another one in this job than in plain Keras."""
    model = NETWORKS[name]
    plain = load.build(settings(model=model).model, SHAPE, 2, seed=0)
    network = _distributed(**model)
    network.model.set_weights(plain.get_weights())
    images = np.random.default_rng(0).integers(0, 256, (4, *SHAPE)).astype(np.float32)
    outputs = plain(images, training=False).numpy()
    probabilities = tf.nn.softmax(network.logits(network.model(images, training=False))).numpy()
    if outputs.shape[-1] == 1:
        outputs = np.concatenate([1 - outputs, outputs], -1)
    elif network.ending == "logits":
        outputs = tf.nn.softmax(outputs).numpy()
    np.testing.assert_allclose(probabilities, outputs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", SLOW)
def test_the_export_is_the_users_own_network(name, tmp_path):
    """model.keras would contain layers of this project, or other weights than those that were trained."""
    learner = training.learner(settings(model=NETWORKS[name], optimizer={"learning_rate": 1e-2}), SHAPE)
    generator = np.random.default_rng(0)
    labels = np.arange(32, dtype=np.int32) % 2
    learner.train(Batch(generator.integers(0, 256, (32, *SHAPE), np.uint8), labels, np.zeros((32, 3), np.int32)))
    export(learner.model, SHAPE, 2, settings(model=NETWORKS[name]).model, tmp_path / "model.keras")
    exported = keras.models.load_model(tmp_path / "model.keras")
    assert {type(layer).__module__.split(".")[0] for _, layer in load.layers(exported)} <= {"keras", "tests"}
    images = generator.integers(0, 256, (4, *SHAPE), np.uint8)
    _, expected = learner.evaluate(images, labels[:4])
    outputs = exported(images.astype(np.float32), training=False).numpy()
    if learner.network.ending == "logits":
        outputs = tf.nn.softmax(outputs).numpy()
    np.testing.assert_allclose(outputs[:, -1], expected[:, -1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("last", "classes", "ending"),
    [
        ([keras.layers.Dense(3)], 3, "logits"),
        ([keras.layers.Dense(3, activation="softmax")], 3, "softmax"),
        ([keras.layers.Dense(3), keras.layers.Softmax()], 3, "softmax"),
        ([keras.layers.Dense(3), keras.layers.Activation("softmax")], 3, "softmax"),
        ([keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])], 3, "softmax"),
        ([keras.layers.Dense(1, activation="sigmoid")], 2, "sigmoid"),
        ([keras.layers.Dense(1)], 2, "logits"),
        ([keras.layers.Dense(3), keras.layers.Lambda(lambda x: keras.ops.softmax(x))], 3, "probabilities"),
        ([keras.layers.Dense(1), keras.layers.Lambda(lambda x: keras.ops.sigmoid(x))], 2, "probabilities"),
        ([keras.layers.Dense(1, bias_initializer="ones"), keras.layers.Lambda(lambda x: x / 2)], 2, "logits"),
        ([keras.layers.Dense(3, activation="softmax", activity_regularizer="l2")], 3, "probabilities"),
    ],
    ids=[
        *("logits", "softmax", "Softmax", "Activation", "nested", "sigmoid", "one logit"),
        *("hidden softmax", "hidden sigmoid", "hidden logit", "regularized"),
    ],
)
def test_every_ending_gives_the_same_loss(last, classes, ending):
    """The loss would be computed from probabilities as if they were logits, or the other way round."""
    model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), *last])
    x, labels = np.random.default_rng(0).normal(size=(5, 2, 2, 1)).astype(np.float32), np.arange(5) % classes
    outputs = model(x).numpy()
    network = distribute(model, place=Place(0, 0, tf.Variable(0, dtype=tf.int64)))
    assert network.ending == ending
    if outputs.shape[-1] == 1:
        probability = tf.sigmoid(outputs).numpy() if ending == "logits" else outputs
        outputs = np.concatenate([1 - probability, probability], -1)
    elif ending == "logits":
        outputs = tf.nn.softmax(outputs).numpy()
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, network.logits(model(x)))
    np.testing.assert_allclose(losses, -np.log(outputs[np.arange(5), labels]), rtol=1e-4, atol=1e-5)


def test_a_last_layer_with_a_second_use_keeps_its_activation():
    """Removing the softmax would change what the layer computes elsewhere in the network: the export would predict otherwise."""
    shared = keras.layers.Dense(2, activation="softmax")
    inputs = keras.Input((2,))
    model = keras.Model(inputs, shared(shared(inputs)))
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    expected = model(x).numpy()
    network = distribute(model, place=Place(0, 0, tf.Variable(0, dtype=tf.int64)))
    np.testing.assert_allclose(tf.nn.softmax(network.logits(model(x))), expected, rtol=1e-5)


def test_sigmoids_for_several_labels_are_refused():
    """A network for another task would be trained on a loss that makes no sense."""
    with pytest.raises(NetworkError, match=r"ends in a sigmoid over 3 outputs\. Fix: use a softmax"):
        _distributed(classes=3, network=f"{OWN}many_sigmoids")


def test_statistics_that_training_does_not_move():
    """Frozen statistics would count as lagging ones in the diagnosis, and precise statistics would replace them."""
    learner = training.learner(settings(model={"network": f"{OWN}frozen_part"}), SHAPE)
    assert len(learner.network.norms) == 2
    assert len(learner.moving) == 2  # mean and variance of the second layer
    frozen = training.learner(settings(model={"network": f"{OWN}residual", "trainable": "^head"}), SHAPE)
    assert frozen.moving == []


def test_other_random_layers_are_named():
    """A user would not learn why two workers draw another curve than one."""
    (line,) = _distributed(network=f"{OWN}noisy").warnings()
    assert "noise draw random numbers that depend on the number of workers" in line


def test_other_random_layers_resume_exactly():
    """A run with noise would continue with other noise than the undisturbed one."""
    generator = np.random.default_rng(0)
    batches = [
        Batch(generator.integers(0, 256, (32, *SHAPE), np.uint8), np.arange(32, dtype=np.int32) % 2, np.zeros((32, 3), np.int32))
        for _ in range(4)
    ]
    one, other = (training.learner(settings(model={"network": f"{OWN}noisy"}), SHAPE) for _ in range(2))
    for batch in batches[:2]:
        one.train(batch)
    state = one.state()
    expected = [float(one.train(batch)[0].loss) for batch in batches[2:]]
    other.restore(state)
    assert [float(other.train(batch)[0].loss) for batch in batches[2:]] == expected
