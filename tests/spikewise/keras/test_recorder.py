"""How steps are measured, and batches kept, during `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from spikewise.keras.recorder import EpochBatches, StepRecorder, size_of
from spikewise.records import STEP
from spikewise.steps import as_array
from tests.spikewise.keras.digits import TRAINING, network


@pytest.mark.parametrize(
    "optimizer",
    [keras.optimizers.Adam(1e-3), keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.RMSprop()],
    ids=["adam", "sgd", "momentum", "another"],
)
def test_steps_are_measured_from_outside(optimizer):
    """With wrong lengths or gradients, the wrong step would be blamed."""
    model = network(optimizer=optimizer)
    model.layers[3].rate = 0.0  # without dropout, so that gradients can be recomputed
    optimizer.build(model.trainable_variables)
    recorder = StepRecorder(model)
    expected = []
    for number in range(3):
        x, y = tf.constant(TRAINING[0][:32], tf.float32), tf.constant(TRAINING[1][:32])
        before = [v.numpy() for v in model.trainable_variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, model(x, training=True)))
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])

        def train(gradients=gradients, loss=loss, size=32 - number):
            optimizer.apply(gradients, model.trainable_variables)
            model._loss_tracker.update_state(loss, sample_weight=size)
            return {"loss": model._loss_tracker.result()}

        recorder.record(train)
        length = np.sqrt(sum(np.sum((v.numpy() - b) ** 2) for v, b in zip(model.trainable_variables, before, strict=True)))
        known = not isinstance(optimizer, keras.optimizers.RMSprop)
        gradient = float(tf.linalg.global_norm(gradients)) if known else 1.0
        expected.append((float(loss), gradient, length, float(optimizer.learning_rate)))
    steps = recorder.steps()
    assert steps.dtype == STEP
    np.testing.assert_allclose(as_array(steps), expected, rtol=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_at_a_rate_of_0_has_a_gradient_that_is_a_number(momentum):
    """A warm-up from 0 would make every later comparison of gradients NaN."""
    optimizer = keras.optimizers.SGD(0.0, momentum=momentum)
    model = network(optimizer=optimizer)
    optimizer.build(model.trainable_variables)
    recorder = StepRecorder(model)
    ones = [tf.ones(v.shape) for v in model.trainable_variables]
    recorder.record(lambda: optimizer.apply(ones, model.trainable_variables) or {"loss": 1.0})
    assert np.isfinite(as_array(recorder.steps())).all()


def test_the_learning_rate_of_each_step_is_that_of_its_update():
    """A schedule moves on with each step; the rate of the next step would be recorded for this one."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1, 2], [0.3, 0.2, 0.1])
    model = network(optimizer=keras.optimizers.SGD(schedule))
    model.optimizer.build(model.trainable_variables)
    recorder = StepRecorder(model)
    gradients = [tf.ones_like(variable) for variable in model.trainable_variables]
    for _ in range(3):
        recorder.record(lambda: model.optimizer.apply(gradients, model.trainable_variables) or {})
    steps = recorder.steps()
    size = np.sqrt(sum(np.prod(variable.shape) for variable in model.trainable_variables))
    np.testing.assert_allclose(steps["update_norm"] / size, steps["learning_rate"], rtol=1e-4)
    assert recorder.scheduled


def test_batches_beyond_the_memory_are_thinned():
    """Otherwise a large data set would fill the machine's memory."""
    batches = EpochBatches(4 * 80)
    for number in range(20):
        batches.add(np.full((8, 1), number, float), np.zeros(2, float), None)
    assert len(batches) <= 4
    assert [float(batches(i)[0][0, 0]) for i in (0, 7, 19)] == [0, 8, 16]


def test_a_training_step_may_report_the_loss_of_its_batch():
    """Training steps of one's own often do; taken for a mean since the epoch began, it would make steps out of nothing."""
    model = network()
    model.optimizer.build(model.trainable_variables)
    recorder = StepRecorder(model)
    for loss in (2.0, 1.0, 4.0):
        recorder.record(lambda loss=loss: {"loss": tf.constant(loss)})
    recorder.record(dict)
    np.testing.assert_array_equal(recorder.steps()["loss"], [2, 1, 4, 0])


def test_the_optimizer_inside_a_loss_scaling_one_reveals_the_gradient():
    """mixed_float16 wraps every optimizer; bad batches would be found by their loss alone."""
    model = network(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-3), initial_scale=8.0))
    model.optimizer.build(model.trainable_variables)
    recorder = StepRecorder(model)
    gradients = [tf.ones_like(variable) for variable in model.trainable_variables]
    scaled = [8 * gradient for gradient in gradients]
    recorder.record(lambda: model.optimizer.apply(scaled, model.trainable_variables) or {})
    assert recorder.steps()["gradient_norm"][0] == pytest.approx(float(tf.linalg.global_norm(gradients)), rel=1e-4)


def test_sizes_count_what_is_there():
    """`memory` would be wrong by the weights, or by the type of the images."""
    assert size_of(tf.zeros((2, 3), tf.bfloat16), np.zeros(4, np.int64), None) == 2 * 3 * 2 + 4 * 8
