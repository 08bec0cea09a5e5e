"""A small network in training, for tests that probe or diagnose it. Fixtures in conftest.py share it."""

import copy
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from spikewise import probes
from spikewise.curve import BUDGET
from spikewise.detect import Resampler
from spikewise.diagnose import Diagnostician, News
from spikewise.keras.network import KerasNetwork
from spikewise.probes import Scene
from spikewise.records import STEP, Event, Spike

STEPS, BATCH, VALIDATION = 24, 16, 300
RATE = 3e-3
DROPOUT = 0.2


class SmallTraining:
    """A network with dropout and BatchNormalization that learns to separate two clouds of points. Single steps can be disturbed."""

    def __init__(self) -> None:
        keras.utils.set_random_seed(3)
        r = np.random.default_rng(3)
        self.y = r.integers(0, 2, (STEPS * BATCH + VALIDATION,)).astype(np.int32)
        self.x = (r.normal(0, 1, (len(self.y), 6)) + 1.2 * (2 * self.y[:, None] - 1) * (np.arange(6) < 3)).astype(np.float32)
        self.dropout = keras.layers.Dropout(DROPOUT, seed=1)
        self.norm = keras.layers.BatchNormalization(momentum=0.8)
        self.model = keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(16, activation="relu"), self.dropout, self.norm, keras.layers.Dense(2)]
        )
        self.optimizer = keras.optimizers.Adam(RATE)
        self.optimizer.build(self.model.trainable_variables)
        self._infer = tf.function(lambda x: self.model(x, training=False))
        self.validation = slice(STEPS * BATCH, None)
        self.batches = [(self.x[i : i + BATCH], self.y[i : i + BATCH]) for i in range(0, STEPS * BATCH, BATCH)]
        self.loss = keras.losses.SparseCategoricalCrossentropy(True, reduction=None)
        self.model.compile(self.optimizer)  # for the diagnosis, which looks at the optimizer
        self.network = KerasNetwork(
            self.model,
            self.evaluate,
            self.batches.__getitem__,
            self.loss,
            self.optimizer.variables,
            self.probabilities,
            part=self.part,
            sample=lambda most: self.sample()[:most],
        )
        self._compiled: dict[float, Callable[..., tf.Tensor]] = {}

    def remember(self) -> None:
        """Makes this the state that `restore` goes back to."""
        self._kept = [variable.numpy() for variable in self.variables()]
        self._data = self.x.copy(), self.y.copy(), list(self.batches)

    def restore(self) -> None:
        """Goes back to the remembered state, so that tests can share a network: TensorFlow takes seconds to trace a step."""
        for variable, value in zip(self.variables(), self._kept, strict=True):
            variable.assign(value)
        self.x[:], self.y[:], self.batches[:] = self._data
        self.dropout.rate, self.network.evaluate = DROPOUT, self.evaluate

    def variables(self) -> list[keras.Variable]:
        """Everything that training changes, the dropout's random state included."""
        return [*self.model.variables, *self.optimizer.variables]

    def moving(self) -> list[keras.Variable]:
        """The moving statistics."""
        return [self.norm.moving_mean, self.norm.moving_variance]

    def evaluate(self) -> np.ndarray:
        """Losses [VALIDATION] of the validation examples."""
        return np.asarray(self.loss(self.y[self.validation], self._infer(self.x[self.validation])))

    def part(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and losses of at most `most` validation examples."""
        positions = np.arange(0, VALIDATION, -(-VALIDATION // most))
        return positions, self.evaluate()[positions]

    def probabilities(self) -> np.ndarray:
        """Probabilities [VALIDATION, 2] of the classes of the validation examples."""
        return np.asarray(tf.nn.softmax(self._infer(self.x[self.validation])))

    def sample(self) -> np.ndarray:
        """Losses of some training examples in inference mode."""
        return np.asarray(self.loss(self.y[:200], self._infer(self.x[:200])))

    def epoch(self, before: Callable[[int], None] = lambda _: None, after: Callable[[int], None] = lambda _: None) -> np.ndarray:
        """Trains an epoch and returns its step records [STEPS]; `trace` then holds the statistics before and after each. `before`
        gets the number of each step, `after` the steps done."""
        records, self.trace = [], [self.statistics()]
        step = self._compiled.setdefault(self.dropout.rate, tf.function(self._step))  # the rate is a constant in it
        for number, (x, y) in enumerate(self.batches):
            before(number)
            records.append(tuple(step(x, y).numpy()))
            self.trace.append(self.statistics())
            after(number + 1)
        return np.array(records, STEP)

    def statistics(self) -> np.ndarray:
        """The moving statistics [m], one after the other."""
        return np.concatenate([variable.numpy() for variable in self.moving()])

    def _step(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        weights = [variable.value for variable in self.model.trainable_variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.loss(y, self.model(x, training=True)))
        gradients, before = tape.gradient(loss, weights), [tf.identity(weight) for weight in weights]
        rate = tf.identity(self.optimizer.learning_rate.value)
        with tf.control_dependencies([*before, rate]):
            self.optimizer.apply(gradients)
        moved = tf.linalg.global_norm([tf.convert_to_tensor(now) - was for now, was in zip(weights, before, strict=True)])
        return tf.stack([loss, tf.linalg.global_norm(gradients), moved, rate])


class DiagnosedTraining(SmallTraining):
    """A network in training with a Diagnostician."""

    def __init__(self, budget: float = BUDGET) -> None:
        super().__init__()
        self.budget = budget
        self.diagnostician = self.diagnosing()

    def diagnosing(self) -> Diagnostician:
        """A new Diagnostician of this training."""
        labels, momentum = self.y[self.validation], self.norm.momentum
        return Diagnostician(self.network, batch_size=BATCH, labels=labels, momentum=momentum, budget=self.budget)

    def remember(self) -> None:
        super().remember()
        self._diagnostician = self._copy(self.diagnostician)

    def restore(self) -> None:
        super().restore()
        self.diagnostician = self._copy(self._diagnostician)

    def _copy(self, diagnostician: Diagnostician) -> Diagnostician:
        """A copy that watches the same network."""
        return copy.deepcopy(diagnostician, {id(self.network): self.network})

    def close(self, before_evaluation: Callable[[], None] = lambda: None, events: Sequence[Event] = ()) -> News:
        """Trains an epoch and has it diagnosed."""
        snapshots = self.diagnostician.snapshots(STEPS)

        def after(done: int) -> None:
            if done == STEPS:
                before_evaluation()
            if done in snapshots:
                self.diagnostician.snapshot(done)

        steps = self.epoch(after=after)
        rate = float(self.optimizer.learning_rate)
        return self.diagnostician.close_epoch(
            self.evaluate(), self.sample(), steps, learning_rate=rate, events=events, trace=np.array(self.trace)
        )


SNAPSHOTS = (6, 12, 18, STEPS)


class ProbedTraining(SmallTraining):
    """A network after six healthy epochs, and one more epoch that a test can disturb."""

    def __init__(self) -> None:
        super().__init__()
        for _ in range(6):
            path, self.earlier = self.snapshots()
        self.reference, self.average, self.reference_losses = self.network.weights(), probes.average(path), self.evaluate()
        self.remember()

    def snapshots(self, before=lambda _: None):
        """An epoch: the weights at SNAPSHOTS, and the step records."""
        path = []
        steps = self.epoch(before, lambda done: path.append((done, self.network.weights())) if done in SNAPSHOTS else None)
        return path, steps

    def scene(self, path, steps) -> Scene:
        """What the diagnosis passes to the probes after that epoch."""
        losses = self.evaluate()
        loss, baseline = float(losses.mean()), float(self.reference_losses.mean())
        rise = loss - baseline
        spike = Spike(9, loss, baseline, 0.01, 0.05, rise=rise, low=rise, high=rise, error=0.01, images=VALIDATION)
        return Scene(
            network=self.network,
            spike=spike,
            resampler=Resampler(VALIDATION),
            losses=losses,
            reference_losses=self.reference_losses,
            reference=[values.copy() for values in self.reference],
            path=[(0, self.reference), *path],
            reference_average=self.average,
            steps=steps,
            earlier=self.earlier,
            batch_size=BATCH,
            labels=self.y[self.validation],
        )
