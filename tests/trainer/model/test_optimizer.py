"""Optimizers and learning-rate schedules."""

import keras
import numpy as np
import pytest

from tests.support.training import settings
from trainer.model import optimizer
from trainer.model.optimizer import OptimizerError, Schedule


def _rates(epochs=10, steps=4, **values):
    schedule = Schedule(settings(training={"epochs": epochs}, optimizer=values).optimizer, epochs=epochs, steps=steps)
    return np.array([float(schedule(step)) for step in range(epochs * steps)])


def test_schedules():
    """The learning rate would not be what the configuration says."""
    np.testing.assert_allclose(_rates(learning_rate=0.1), 0.1)
    cosine = _rates(learning_rate=0.1, schedule="cosine")
    np.testing.assert_allclose(cosine[[0, 20]], [0.1, 0.05], rtol=1e-5)
    assert (np.diff(cosine) < 0).all()
    assert cosine[-1] < 0.001
    steps = _rates(learning_rate=0.1, schedule="step", step_epochs=[3, 6], step_factor=0.5)
    np.testing.assert_allclose(steps[[0, 11, 12, 23, 24, 39]], [0.1, 0.1, 0.05, 0.05, 0.025, 0.025], rtol=1e-5)
    warm = _rates(learning_rate=0.1, warmup_epochs=1.5)
    np.testing.assert_allclose(warm[:6], 0.1 * np.arange(1, 7) / 6, rtol=1e-5)
    np.testing.assert_allclose(warm[6:], 0.1)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Lion", "adafactor", "RMSprop"])
def test_optimizers_of_keras_learn(name):
    """A name that Keras knows would not work."""
    built = optimizer.build(settings(optimizer={"name": name, "learning_rate": 0.05}).optimizer, epochs=1, steps=100)
    variable = keras.Variable(np.ones((2, 2), np.float32))
    for _ in range(20):
        built.apply([2 * variable.value], [variable])
    assert np.abs(variable.numpy()).max() < 0.95


def test_arguments_reach_the_optimizer():
    """optimizer.arguments, weight_decay, clip_norm and ema would be ignored."""
    values = {
        "name": "SGD",
        "learning_rate": 1.0,
        "clip_norm": 2.0,
        "weight_decay": 0.1,
        "ema": 0.9,
        "arguments": {"momentum": 0.0},
    }
    built = optimizer.build(settings(optimizer=values).optimizer, epochs=1, steps=1)
    variable = keras.Variable(np.array([10.0, 0.0], np.float32))
    built.apply([np.array([3.0, 4.0], np.float32)], [variable])
    np.testing.assert_allclose(variable.numpy(), [10 - 1 - 3 * 2 / 5, -4 * 2 / 5], rtol=1e-5)  # decay, then the clipped step
    assert (built.momentum, built.use_ema, built.ema_momentum) == (0.0, True, 0.9)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "Adamm"}, "optimizer.name = 'Adamm': no such optimizer. Fix: use one of Adadelta, Adafactor"),
        ({"name": "LossScaleOptimizer"}, "no such optimizer"),
        ({"arguments": {"beta_3": 0.9}}, "optimizer.arguments = {'beta_3': 0.9} do not fit Adam: "),
        ({"arguments": {"beta_1": "much"}}, "do not fit Adam"),
        ({"arguments": {"gradient_accumulation_steps": 2}}, "has gradient_accumulation_steps, which this job does not support"),
        ({"arguments": {"learning_rate": 1.0}}, "optimizer.arguments has learning_rate. Fix: use optimizer.learning_rate"),
    ],
)
def test_what_keras_does_not_know_is_refused(values, said):
    """A typing error would end in a traceback from inside Keras, or be ignored."""
    with pytest.raises(OptimizerError) as caught:
        optimizer.build(settings(optimizer=values).optimizer, epochs=1, steps=1)
    assert said in str(caught.value)
    assert "Fix: " in str(caught.value)
