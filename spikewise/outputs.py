"""Probes of the network's outputs: in float32, and at one temperature. And what a network may offer for them.

A network that lacks one of these methods simply has no such probe.

Shapes: n validation images, K classes.
"""

from typing import Protocol, runtime_checkable

import numpy as np

from spikewise.probes import Scene
from spikewise.records import Probe

SMALLEST = 1e-30
"""Probabilities below it count as this one."""
HOTTEST = 20.0
"""The highest temperature tried. At it, the classes are about as probable as each other, whatever the network says."""
SAME = 0.05
"""Largest relative difference between the run's loss and the cross-entropy of its probabilities."""


@runtime_checkable
class EvaluatesInFloat32(Protocol):
    """What a network in lower precision may offer in addition."""

    def evaluate_in_float32(self) -> np.ndarray | None:
        """Loss of each validation image [n] as `evaluate` returns it, with all arithmetic in float32; None if it is anyway."""


@runtime_checkable
class GivesProbabilities(Protocol):
    """What a network that classifies may offer in addition."""

    def probabilities(self) -> np.ndarray | None:
        """Probabilities of the classes [n, K] for the validation images, in inference mode; None if the outputs are none."""


@runtime_checkable
class UsesAdam(Protocol):
    """What a network in training may offer in addition."""

    @property
    def beta_2(self) -> float:
        """Decay of the second moments of Adam and its relatives; NaN with another optimizer."""

    @property
    def loss_scale(self) -> float:
        """The factor of the loss in float16 training; NaN without one."""


def precision(scene: Scene) -> Probe | None:
    """Evaluates the current and the reference weights in float32. None if the network computes in float32 anyway, or cannot do so.
    Two passes."""
    network = scene.network
    if not isinstance(network, EvaluatesInFloat32):
        return None
    network.assign(scene.now)
    now = network.evaluate_in_float32()
    if now is None:
        return None
    network.assign(scene.reference)
    before = network.evaluate_in_float32()
    if before is None or not np.isfinite(now).all():
        return None
    now, before = np.asarray(now, float), np.asarray(before, float)
    return scene.probe("precision", now - before, passes=2, now=float(now.mean()), before=float(before.mean()))


def temperature(scene: Scene) -> Probe | None:
    """Divides the logits by one temperature, now and at the reference epoch. It is fitted on one half of the images and applied to
    the other, and the other way round. None if the network gives no probabilities, or its loss is not their cross-entropy. Two
    passes."""
    network, labels = scene.network, scene.labels
    if labels is None or not isinstance(network, GivesProbabilities) or len(labels) != len(scene.losses) or len(labels) < 20:
        return None
    network.assign(scene.now)
    now = network.probabilities()
    if now is None or now.ndim != 2 or now.shape[1] <= labels.max():
        return None
    network.assign(scene.reference)
    before = np.asarray(network.probabilities(), float)
    logs = [np.log(np.maximum(np.asarray(values, float), SMALLEST)) for values in (before, now)]
    numbers = np.asarray(labels, int)
    for values, losses in ((before, scene.reference_losses), (now, scene.losses)):
        if not are_cross_entropies(losses, cross_entropies(values, numbers)):
            return None
    (cooled_before, t_before), (cooled, t) = (cross_fitted(values, numbers) for values in logs)
    right_before, right = (values.argmax(1) == numbers for values in logs)
    error = float(np.std(right.astype(float) - right_before) / np.sqrt(len(numbers)))
    return scene.probe(
        "temperature",
        cooled - cooled_before,
        passes=2,
        now=float(cooled.mean()),
        before=float(cooled_before.mean()),
        temperature=t,
        temperature_before=t_before,
        accuracy=float(right.mean()),
        accuracy_before=float(right_before.mean()),
        accuracy_error=1.64 * error,
    )


def cross_entropies(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy [n] in nats of probabilities [n, K] and class numbers [n]."""
    return np.asarray(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels].astype(float), SMALLEST)))


def are_cross_entropies(losses: np.ndarray, entropies: np.ndarray) -> bool:
    """Whether the losses [n] are, on average, these cross-entropies [n]: no other loss, no weights and no penalty. Only then does
    the loss of guessing the class frequencies mean anything."""
    return bool(abs(np.mean(entropies) - np.mean(losses)) <= SAME * np.mean(losses))


def cross_fitted(logs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Losses [n] at the temperature that suits the other half of the images, and the mean of the two temperatures. `logs` [n, K]:
    logarithms of probabilities, or logits."""
    losses, found = np.zeros(len(labels)), []
    for half in (0, 1):
        fitted, applied = slice(half, None, 2), slice(1 - half, None, 2)
        found.append(fit_temperature(logs[fitted], labels[fitted]))
        losses[applied] = _losses(logs[applied] / found[-1], labels[applied])
    return losses, float(np.mean(found))


def fit_temperature(logs: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the lowest mean loss, between 1 / HOTTEST and HOTTEST. The loss is convex in its inverse, so bisection
    finds it."""
    low, high = 1 / HOTTEST, HOTTEST  # of the inverse
    own = logs[np.arange(len(labels)), labels]
    for _ in range(20):
        middle = float(np.sqrt(low * high))
        scaled = middle * logs
        powers = np.exp(scaled - scaled.max(1, keepdims=True))
        expected = (powers * logs).sum(1) / powers.sum(1)
        low, high = (low, middle) if np.mean(expected - own) > 0 else (middle, high)
    return 1 / float(np.sqrt(low * high))


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy [n] of logits [n, K]."""
    highest = logits.max(1)
    return np.asarray(highest + np.log(np.exp(logits - highest[:, None]).sum(1)) - logits[np.arange(len(labels)), labels])
