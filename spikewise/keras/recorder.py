"""What is kept of the running epoch: the measurements of each step, and its batches.

Shapes: b examples of a batch, s steps of an epoch.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spikewise.records import STEP, Event
from spikewise.steps import ABRUPT, raised


class StepRecorder:
    """Measures each step of an epoch from outside, by the change it makes to weights, optimizer and metrics."""

    def __init__(self, model: keras.Model) -> None:
        """`model`: compiled, its optimizer built."""
        self._model = model
        self.optimizer = optimizer = inner_optimizer(model)
        self._watched = [variable.value for variable in model.trainable_variables]
        moments = [variable.value for variable in optimizer.variables if variable.path.endswith("_momentum")]
        decay = optimizer.beta_1 if isinstance(optimizer, keras.optimizers.Adam) else getattr(optimizer, "momentum", None)
        known = isinstance(optimizer, (keras.optimizers.Adam, keras.optimizers.SGD)) and len(moments) in (0, len(self._watched))
        self._moments, self._decay = (moments, decay) if known else ([], None)
        self._before = [tf.Variable(variable, trainable=False) for variable in (*self._watched, *self._moments)]
        # A model with a training step of its own may have a mean of this name besides Keras'. One that is not updated stays at 0.
        self._means = [metric for metric in model.metrics if metric.name == "loss" and isinstance(metric, keras.metrics.Mean)]
        self._measure = tf.function(self._measured, autograph=False)
        self._synchronize()
        self.clear()

    def clear(self) -> None:
        """Forgets the steps so far."""
        self._losses: list[Any] = []
        self._measurements: list[Any] = []

    @property
    def count(self) -> int:
        """Number of steps so far."""
        return len(self._measurements)

    def record(self, train: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Calls `train`, which makes one step, and returns its logs."""
        rate = tf.cast(tf.convert_to_tensor(self._model.optimizer.learning_rate), tf.float32)
        if not self._measurements:  # another callback may have written the weights between two epochs
            self._synchronize()
        logs = train()
        self._losses.append(logs.get("loss", 0.0))
        self._measurements.append(self._measure(rate))
        return logs

    @property
    def weights(self) -> tuple[list[Any], list[Any]]:
        """The trainable weights after the last step, and now."""
        return self._before[: len(self._watched)], self._watched

    @property
    def scheduled(self) -> bool:
        """Whether the optimizer was compiled with a schedule, so that changes of the learning rate are declared."""
        return isinstance(self.optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule)

    def steps(self) -> np.ndarray:
        """The step records [s] of the epoch, dtype STEP."""
        measured = np.array([np.asarray(values) for values in self._measurements], float).reshape(-1, 5)
        steps = np.zeros(len(measured), STEP)
        for number, name in enumerate(("gradient_norm", "update_norm", "learning_rate")):
            steps[name] = measured[:, number]
        # Keras reports the mean since the epoch began. A training step of one's own may report the loss of its batch instead.
        total, count = np.diff(measured[:, 3], prepend=0), np.diff(measured[:, 4], prepend=0)
        steps["loss"] = [t / c if c > 0 else float(loss) for t, c, loss in zip(total, count, self._losses, strict=True)]
        return steps

    def _measured(self, rate: tf.Tensor) -> tf.Tensor:
        """Gradient norm, step length, learning rate, and the sum and count of the losses so far. If the optimizer does not reveal
        the gradient, its norm is 1."""
        now, count = [*self._watched, *self._moments], len(self._watched)
        changes = [tf.convert_to_tensor(a) - b for a, b in zip(now, self._before, strict=True)]
        length = tf.linalg.global_norm(changes[:count]) if count else tf.zeros(())
        gradient = tf.ones(())
        if self._decay is not None and count:  # recover the gradient from what the step added to the optimizer's moving mean
            pairs = zip(self._before[count:], changes[count:], strict=True)
            if isinstance(self.optimizer, keras.optimizers.Adam):
                gradient = tf.linalg.global_norm([b + change / (1 - self._decay) for b, change in pairs])
            elif self._moments:
                norm = tf.linalg.global_norm([(self._decay - 1) * b - change for b, change in pairs])
                gradient = tf.math.divide_no_nan(norm, rate)  # at a rate of 0, nothing moves
            else:
                gradient = tf.math.divide_no_nan(length, rate)
        sums = sum(mean.total for mean in self._means), sum(mean.count for mean in self._means)
        found = tf.stack([tf.cast(tf.convert_to_tensor(value), tf.float32) for value in (gradient, length, rate, *sums)])
        with tf.control_dependencies([found]):
            self._synchronize()
        return found

    def _synchronize(self) -> None:
        for before, now in zip(self._before, [*self._watched, *self._moments], strict=True):
            before.assign(now)


class EpochBatches:
    """Examples, labels and weights of the running epoch's batches, by number. When they exceed `memory` bytes, every second one is
    dropped, repeatedly, and the nearest remaining batch stands in for a dropped one."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self.clear()

    def clear(self) -> None:
        """Forgets all batches and counts from 0 again."""
        self._kept: dict[int, tuple[Any, Any, Any]] = {}
        self._seen, self._stride, self._bytes = 0, 1, 0

    def add(self, *batch: Any) -> None:
        """Keeps the next batch, or drops it if its number does not fit the current stride."""
        number, self._seen = self._seen, self._seen + 1
        if number % self._stride:
            return
        self._kept[number] = batch
        self._bytes += size_of(*batch)
        while self._bytes > self._memory and len(self._kept) > 1:
            self._stride *= 2
            self._kept = {i: batch for i, batch in self._kept.items() if not i % self._stride}
            self._bytes = sum(size_of(*batch) for batch in self._kept.values())

    def __len__(self) -> int:
        """Number of batches kept."""
        return len(self._kept)

    def held(self, number: int) -> int:
        """The number of the batch kept nearest to `number`."""
        return min(self._kept, key=lambda kept: abs(kept - number))

    def __call__(self, number: int) -> tuple[Any, Any, Any]:
        """Examples, labels and weights (or None) of the batch kept nearest to `number`."""
        return self._kept[self.held(number)]


def inner_optimizer(model: keras.Model) -> Any:
    """The optimizer inside the one that scales the loss for float16."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def raises(before: float, rates: np.ndarray, epoch: int) -> list[Event]:
    """The abrupt raise of the learning rate in the epoch, if there was one, as an event; a warm-up is none. `before`: the last
    learning rate of the epoch before."""
    factors = raised(rates, before)
    at = int(np.argmax(factors))
    rate, factor = float(rates[at]), float(factors[at])
    return [Event("learning_rate", epoch, at, rate / factor, rate)] if factor > ABRUPT else []


def size_of(*arrays: Any) -> int:
    """Bytes of arrays or tensors; None has none."""
    known = [one for one in arrays if one is not None]
    return sum(int(np.prod(one.shape)) * np.dtype(getattr(one.dtype, "as_numpy_dtype", one.dtype)).itemsize for one in known)
