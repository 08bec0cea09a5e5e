"""The probes of the network's outputs, and a network without any."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from spikewise import outputs
from spikewise.detect import Resampler
from spikewise.keras.network import KerasNetwork, beta_2
from spikewise.probes import Scene
from spikewise.records import STEP, Spike

N, K = 400, 5


def _scene(network, before, now, labels=None) -> Scene:
    """A scene with these losses [n] and one weight, whose value is 0 before and 1 now."""
    rise = float(now.mean() - before.mean())
    spike = Spike(9, float(now.mean()), float(before.mean()), 0.01, 0.05, rise, rise, rise, 0.01, len(now))
    steps = np.zeros(4, STEP)
    weights = [[np.zeros(1)], [np.ones(1)]]
    return Scene(
        network=network,
        spike=spike,
        resampler=Resampler(len(now)),
        losses=now,
        reference_losses=before,
        reference=weights[0],
        path=[(0, weights[0]), (4, weights[1])],
        reference_average=None,
        steps=steps,
        earlier=steps,
        batch_size=32,
        labels=labels,
    )


class _Classifier:
    """A network whose logits are given for weight 0 and weight 1."""

    statistics = ()

    def __init__(self, before, now) -> None:
        self.both, self.weight = (before, now), 0

    def assign(self, weights) -> None:
        self.weight = int(weights[0][0])

    def probabilities(self):
        powers = np.exp(self.both[self.weight])
        return powers / powers.sum(1, keepdims=True)


def _logits(confidence: float, seed: int = 0):
    """Logits [N, K] that are right for about 80 % of the images, and labels [N]."""
    r = np.random.default_rng(seed)
    labels = r.integers(0, K, N)
    logits = r.normal(0, 1, (N, K))
    logits[np.arange(N), labels] += 2
    return confidence * logits, labels


def _losses(logits, labels):
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]


def test_a_network_that_only_became_surer_is_cooled_to_the_loss_of_before():
    """Overconfidence would stay unexplained, and the user would not learn that the predicted classes are the same."""
    (before, labels), (now, _) = _logits(1.0), _logits(4.0)
    found = outputs.temperature(_scene(_Classifier(before, now), _losses(before, labels), _losses(now, labels), labels))
    assert found.fraction > 0.95
    assert found.low > 0.5
    assert found.facts["temperature"] == pytest.approx(4 * found.facts["temperature_before"], rel=0.01)
    assert found.facts["accuracy"] == found.facts["accuracy_before"]


def test_a_network_that_became_worse_is_not_overconfident():
    """Broken weights would be called overconfidence, and labels be smoothed in vain."""
    before, labels = _logits(1.0)
    now = 4 * np.random.default_rng(1).normal(0, 1, (N, K))
    found = outputs.temperature(_scene(_Classifier(before, now), _losses(before, labels), _losses(now, labels), labels))
    assert found.facts["accuracy_before"] - found.facts["accuracy"] > found.facts["accuracy_error"]


@pytest.mark.parametrize("case", ["no labels", "another loss", "no probabilities", "a class it does not have"])
def test_without_the_classes_there_is_no_temperature(case):
    """A regression, or a loss that is no cross-entropy, would be divided by a temperature."""
    (before, labels), (now, _) = _logits(1.0), _logits(4.0)
    network = _Classifier(before, now)
    losses, later = _losses(before, labels), _losses(now, labels)
    if case == "another loss":
        losses, later = 2 * losses, 2 * later
    if case == "no probabilities":
        network = SimpleNamespace(assign=lambda _: None)
    if case == "a class it does not have":
        labels = labels + K
    assert outputs.temperature(_scene(network, losses, later, None if case == "no labels" else labels)) is None


def test_the_best_temperature_is_found():
    """The remedy would divide the logits by a number that makes the loss worse."""
    logits, labels = _logits(3.0)
    best = outputs.fit_temperature(logits, labels)
    around = [float(_losses(logits / (best * factor), labels).mean()) for factor in (0.9, 1, 1.1)]
    assert min(around) == around[1]


class _Rounded:
    """A network whose losses in low precision differ from those in float32."""

    def __init__(self, exact) -> None:
        self.exact, self.weight = exact, 0

    def assign(self, weights) -> None:
        self.weight = int(weights[0][0])

    def evaluate_in_float32(self):
        return self.exact[self.weight]


def test_what_float32_does_not_show_is_the_precisions():
    """The weights would be blamed for what the arithmetic did."""
    r = np.random.default_rng(0)
    before = r.exponential(0.5, N)
    now = before + 0.4
    network = _Rounded((before, before + 0.01))
    assert outputs.precision(_scene(network, before, now)).fraction > 0.95
    assert outputs.precision(_scene(_Rounded((before, now)), before, now)).fraction == pytest.approx(0, abs=1e-6)
    assert outputs.precision(_scene(_Rounded((None, None)), before, now)) is None
    assert outputs.precision(_scene(_Classifier(before, now), before, now)) is None
    overflowed = np.where(np.arange(N) % 2, np.nan, now)
    assert outputs.precision(_scene(network, before, overflowed)).fraction == 1
    assert outputs.precision(_scene(_Rounded((before, overflowed)), before, overflowed)) is None


def test_a_keras_model_in_float16_is_evaluated_in_float32_and_left_as_it_was():
    """A loss that overflows in float16 would be called a divergence, or the probe would change how the model trains."""
    r = np.random.default_rng(0)
    x, y = r.normal(0, 1, (60, 6)).astype(np.float32), r.integers(0, 2, 60)
    first = keras.layers.Dense(8, dtype="mixed_float16")
    model = keras.Sequential([keras.Input((6,)), first, keras.layers.Rescaling(1e-5, dtype="mixed_float16"), keras.layers.Dense(2)])
    exact = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Rescaling(1e-5), keras.layers.Dense(2)])
    first.kernel.assign(1e5 * first.kernel)
    exact.set_weights(model.get_weights())
    loss = keras.losses.SparseCategoricalCrossentropy(True, reduction=None)
    network = KerasNetwork(model, lambda: np.asarray(loss(y, network.infer(x))), lambda _: (x, y), loss)
    overflowed = network.evaluate()
    assert not np.isfinite(overflowed).all()
    np.testing.assert_allclose(network.evaluate_in_float32(), np.asarray(loss(y, exact(x))), rtol=1e-3)
    np.testing.assert_array_equal(network.evaluate(), overflowed)
    assert first.compute_dtype == "float16"
    full = KerasNetwork(exact, lambda: np.zeros(1), lambda _: (x, y), loss)
    assert full.evaluate_in_float32() is None


def test_adam_is_recognized_also_behind_a_loss_scale():
    """Steps of SGD would be measured in Adam's terms, or a stale optimizer state be missed in float16."""
    assert beta_2(keras.optimizers.Adam(beta_2=0.98)) == 0.98
    assert beta_2(keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW())) == 0.999
    for other in (keras.optimizers.SGD(), keras.optimizers.Lion(), None):
        assert np.isnan(beta_2(other))
