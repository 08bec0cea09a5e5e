"""Watches `model.fit` from outside: sees each batch on its way to the training step, and measures the step by the change it makes
to weights and optimizer. The step itself stays Keras' own, and so do its numbers.

Shapes: n validation examples, b examples of a batch, s steps of an epoch.
"""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spikewise import describe
from spikewise.diagnose import Diagnostician
from spikewise.errors import UserError
from spikewise.keras.data import Examples, classes, labelled, loss_of, predicted, probabilities
from spikewise.keras.network import KerasNetwork
from spikewise.records import STEP, Diagnosis, Event
from spikewise.steps import ABRUPT, raised

log = logging.getLogger(__name__)

SAMPLE = 500
"""Number of training examples whose loss in inference mode is followed: the first ones of the first epoch."""


class Watch:
    """Connects the training of one model with a Diagnostician. The callback calls its methods in the order of `fit`."""

    def __init__(self, validation_data: Any, names: Mapping[str, Sequence[Any]], *, sensitivity: float, memory: int) -> None:
        """`names`: `keys` and `groups` [n], if known; the rest as for SpikeDiagnosis. Raises UserError."""
        self.bad_batches: dict[int, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
        """Examples and labels of bad batches, by epoch and number."""
        self._examples = Examples(validation_data, "validation_data")
        self._names = names
        self._sensitivity = sensitivity
        self._batches = EpochBatches(memory)
        self._diagnostician: Diagnostician | None = None
        self._model: keras.Model | None = None
        self._sample: list[tuple[Any, Any]] = []
        self._steps = 0
        """Number of steps of the last epoch."""
        self._rate = np.nan
        """Learning rate of the last step."""
        self._lines: list[str] = []
        """Lines to print between two epochs."""

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """One for each spike so far."""
        return self._diagnostician.diagnoses if self._diagnostician else []

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return self._diagnostician.detector.epoch if self._diagnostician else 0

    @property
    def summary(self) -> str:
        """What happened to the validation loss, in plain words."""
        if self._diagnostician is None:
            return "No epoch was finished."
        return describe.summary(self.diagnoses, self._diagnostician.overfitting, self.epochs, self._diagnostician.course)

    def as_dict(self) -> dict[str, Any]:
        """The results as JSON types."""
        trend = self._diagnostician.overfitting if self._diagnostician else None
        spikes = [{**d.as_dict(), "name": describe.name(d), "headline": describe.headline(d.spike)} for d in self.diagnoses]
        return {"summary": self.summary, "spikes": spikes, "overfitting": trend and trend.as_dict()}

    def begin(self, model: keras.Model) -> None:
        """Taps the training function of `model`. Raises UserError if the model, the data or their names do not fit."""
        if self._model not in (None, model):
            raise UserError("This SpikeDiagnosis watches another model. Fix: create a new SpikeDiagnosis for this model.")
        _check(model)
        self._model = model
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._loss = loss_of(model)
        self._network = KerasNetwork(
            model, lambda: self._evaluate()[0], self._batches, self._loss, probabilities=self._probabilities
        )
        losses, outputs, self._labels = self._evaluate()
        self._classes = classes(self._labels, outputs)
        for name, values in self._names.items():
            if len(values) != len(losses):
                raise UserError(f"{name} has {len(values)} entries for {len(losses)} validation examples. Fix: pass one for each.")
        if self._diagnostician:
            self._diagnostician.network = self._network
        self._recorder = StepRecorder(model)
        inner = model.train_function
        model.train_function = BatchTap(inner.inner if isinstance(inner, BatchTap) else inner, self._step, eager=model.run_eagerly)

    def begin_epoch(self) -> None:
        """Forgets what an interrupted epoch left behind, and prints what is due."""
        self._print()
        self._batches.clear()
        self._recorder.clear()
        self._snapshots: frozenset[int] = frozenset()
        if self._diagnostician:
            self._diagnostician.discard_epoch()
            self._snapshots = self._diagnostician.snapshots(self._steps)

    def close_epoch(self) -> float | None:
        """Evaluates and diagnoses the epoch. Returns the validation loss, None for an epoch without steps. Raises UserError if the
        order of the validation data changed."""
        steps = self._recorder.steps()
        self._steps = len(steps)
        if self._diagnostician is None or not len(steps):
            return None
        rates = steps["learning_rate"]
        before, self._rate = self._rate, float(rates[-1])
        losses, outputs, labels = self._evaluate()
        if labels.shape != self._labels.shape or not np.array_equal(labels, self._labels):
            raise UserError(
                "validation_data is in a different order each time. "
                "Fix: leave out shuffle(), or set reshuffle_each_iteration=False."
            )
        sample = np.concatenate([np.asarray(self._loss(y, self._network.infer(x))) for x, y in self._sample])
        try:
            news = self._diagnostician.close_epoch(
                losses,
                sample,
                steps,
                learning_rate=np.nan if self._recorder.scheduled else self._rate,
                events=[] if self._recorder.scheduled else _raises(before, rates, self.epochs + 1),
                predict=lambda numbers: predicted(numbers, self._classes, outputs),
            )
        except Exception as error:  # a failed diagnosis must not end the training
            log.exception("The diagnosis of epoch %d failed.", self.epochs)
            self._lines.append(f"warning: the diagnosis of epoch {self.epochs} failed: {error!r}")
            return float(losses.mean())
        if news.diagnosis:
            self._lines.append(describe.block(news.diagnosis))
            self._keep_bad_batches(news.diagnosis)
        self._lines += [describe.headline(resolved.spike) for resolved in news.resolved]
        return float(losses.mean())

    def end(self) -> None:
        """Prints the summary and takes the tap off."""
        self._lines.append(self.summary)
        self._print()
        self._batches.clear()
        if self._model is not None and isinstance(self._model.train_function, BatchTap):
            self._model.train_function = self._model.train_function.inner

    def _evaluate(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._examples.evaluate(self._network.infer, self._loss)

    def _probabilities(self) -> np.ndarray | None:
        """Probabilities of the classes [n, K] for the validation examples; None if they have no classes."""
        return None if self._classes is None else probabilities(self._evaluate()[1])

    def _step(self, data: Any, train: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Runs and records one training step on the batch `data`."""
        x, y = labelled(data, "training data")
        if self._diagnostician is None:
            self._diagnostician = self._begin(len(x))
        if sum(len(labels) for _, labels in self._sample) < SAMPLE and not self.epochs:
            self._sample.append((x, y))
        self._batches.add(x, y)
        logs = self._recorder.record(len(x), lambda: train(data))
        if (done := self._recorder.count) in self._snapshots:
            self._diagnostician.snapshot(done)
        return logs

    def _begin(self, batch_size: int) -> Diagnostician:
        return Diagnostician(
            self._network,
            batch_size=batch_size,
            labels=self._classes,
            momentum=self._network.momentum,
            dropout=self._network.dropout,
            sensitivity=self._sensitivity,
            keys=self._names.get("keys"),
            groups=self._names.get("groups"),
        )

    def _keep_bad_batches(self, diagnosis: Diagnosis) -> None:
        if diagnosis.verdict.name == "bad_batch":
            numbers = next(probe.facts["batches"] for probe in diagnosis.probes if probe.name == "bad_batches")
            batches = {number: self._batches(number) for number in numbers}
            self.bad_batches[diagnosis.spike.epoch] = {number: (np.asarray(x), np.asarray(y)) for number, (x, y) in batches.items()}

    def _print(self) -> None:
        """Prints between two epochs, so as not to break a progress bar."""
        if self._lines:
            sys.stdout.write("\n".join([*self._lines, ""]))
            sys.stdout.flush()
        self._lines = []


def _check(model: keras.Model) -> None:
    """Raises UserError if the model is not trained one step at a time on one device."""
    if model.steps_per_execution != 1:
        raise UserError(
            f"SpikeDiagnosis looks at every step, but the model was compiled with steps_per_execution={model.steps_per_execution}. "
            "Fix: compile it with steps_per_execution=1."
        )
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if (accumulated := optimizer.gradient_accumulation_steps or 1) != 1:
        raise UserError(
            f"SpikeDiagnosis compares single steps, but the optimizer has gradient_accumulation_steps={accumulated}. "
            "Fix: set it to None."
        )
    if (replicas := model.distribute_strategy.num_replicas_in_sync) > 1:
        raise UserError(f"SpikeDiagnosis watches one device, but the model trains on {replicas}. Fix: train on one device.")


class BatchTap:
    """Replaces Keras' training function, and passes each batch through `step` on its way."""

    def __init__(self, inner: Callable[[Any], Any], step: Callable[..., Any], *, eager: bool) -> None:
        """`step(batch, train)` calls `train(batch)` and returns its result; `eager`: do not compile."""
        self.inner = inner
        self._step = step
        self._eager = eager
        self._compiled: Callable[[Any], Any] | None = None

    def __call__(self, iterator: Any) -> Any:
        if self._compiled is None:
            # Compiled for the shapes that the iterator declares, as Keras does, not for those of its first batch: with a known
            # batch size TensorFlow chooses other kernels, and the last bits differ.
            compiled = tf.function(self._one, input_signature=[iterator.element_spec], autograph=False)
            self._compiled = self._one if self._eager else compiled
        return self._step(next(iterator), self._compiled)

    def _one(self, data: Any) -> Any:
        return self.inner(iter([data]))


class EpochBatches:
    """Examples and labels of the running epoch's batches, by number. When they exceed `memory` bytes, every second one is dropped,
    repeatedly, and the nearest remaining batch stands in for a dropped one."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self.clear()

    def clear(self) -> None:
        """Forgets all batches and counts from 0 again."""
        self._kept: dict[int, tuple[Any, Any]] = {}
        self._seen, self._stride, self._bytes = 0, 1, 0

    def add(self, x: Any, y: Any) -> None:
        """Keeps the next batch, or drops it if its number does not fit the current stride."""
        number, self._seen = self._seen, self._seen + 1
        if number % self._stride:
            return
        self._kept[number] = (x, y)
        self._bytes += _bytes(x, y)
        while self._bytes > self._memory and len(self._kept) > 1:
            self._stride *= 2
            self._kept = {i: batch for i, batch in self._kept.items() if not i % self._stride}
            self._bytes = sum(_bytes(*batch) for batch in self._kept.values())

    def __len__(self) -> int:
        """Number of batches kept."""
        return len(self._kept)

    def __call__(self, number: int) -> tuple[Any, Any]:
        """Examples and labels of the batch kept nearest to `number`."""
        return self._kept[min(self._kept, key=lambda kept: abs(kept - number))]


class StepRecorder:
    """Measures each step of an epoch from outside: loss, gradient norm, length and learning rate."""

    def __init__(self, model: keras.Model) -> None:
        """`model`: compiled, its optimizer built."""
        self._model = model
        optimizer = model.optimizer
        self._watched = [variable.value for variable in model.trainable_variables]
        moments = [variable.value for variable in optimizer.variables if variable.path.endswith("_momentum")]
        decay = optimizer.beta_1 if isinstance(optimizer, keras.optimizers.Adam) else getattr(optimizer, "momentum", None)
        known = isinstance(optimizer, (keras.optimizers.Adam, keras.optimizers.SGD)) and len(moments) in (0, len(self._watched))
        self._moments, self._decay = (moments, decay) if known else ([], None)
        self._before = [tf.Variable(variable, trainable=False) for variable in (*self._watched, *self._moments)]
        self._measure = tf.function(self._measured)
        self._synchronize()
        self.clear()

    def clear(self) -> None:
        """Forgets the steps so far."""
        self._losses: list[Any] = []
        self._sizes: list[int] = []
        self._measurements: list[Any] = []

    @property
    def count(self) -> int:
        """Number of steps so far."""
        return len(self._sizes)

    def record(self, size: int, train: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Calls `train`, which makes one step on a batch of `size` examples, and returns its logs."""
        rate = tf.convert_to_tensor(self._model.optimizer.learning_rate, tf.float32)
        if not self._sizes:  # another callback may have written the weights between two epochs
            self._synchronize()
        logs = train()
        self._losses.append(logs.get("loss", 0.0))
        self._sizes.append(size)
        self._measurements.append(self._measure(rate))
        return logs

    @property
    def scheduled(self) -> bool:
        """Whether the optimizer was compiled with a schedule, so that changes of the learning rate are declared."""
        optimizer = getattr(self._model.optimizer, "inner_optimizer", self._model.optimizer)
        return isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule)

    def steps(self) -> np.ndarray:
        """The step records [s] of the epoch, dtype STEP."""
        seen = np.cumsum(self._sizes)
        totals = np.array([float(loss) for loss in self._losses]) * seen  # Keras reports the mean since the epoch began
        measured = np.array([np.asarray(values) for values in self._measurements]).reshape(-1, 3)
        steps = np.zeros(len(seen), STEP)
        steps["loss"] = np.diff(totals, prepend=0) / self._sizes if len(seen) else 0
        for number, name in enumerate(("gradient_norm", "update_norm", "learning_rate")):
            steps[name] = measured[:, number]
        return steps

    def _measured(self, rate: tf.Tensor) -> tf.Tensor:
        """Gradient norm, step length, learning rate. If the optimizer does not reveal the gradient, its norm is 1."""
        now, count = [*self._watched, *self._moments], len(self._watched)
        changes = [tf.convert_to_tensor(a) - b for a, b in zip(now, self._before, strict=True)]
        length = tf.linalg.global_norm(changes[:count])
        gradient = tf.ones(())
        if self._decay is not None:  # recover the gradient from what the step added to the optimizer's moving mean
            if isinstance(self._model.optimizer, keras.optimizers.Adam):
                pairs = zip(self._before[count:], changes[count:], strict=True)
                gradient = tf.linalg.global_norm([b + change / (1 - self._decay) for b, change in pairs])
            elif self._moments:
                pairs = zip(self._before[count:], changes[count:], strict=True)
                gradient = tf.linalg.global_norm([(self._decay - 1) * b - change for b, change in pairs]) / rate
            else:
                gradient = length / rate
        with tf.control_dependencies([length, gradient]):
            self._synchronize()
        return tf.stack([gradient, length, rate])

    def _synchronize(self) -> None:
        for before, now in zip(self._before, [*self._watched, *self._moments], strict=True):
            before.assign(now)


def _raises(before: float, rates: np.ndarray, epoch: int) -> list[Event]:
    """The abrupt raise of the learning rate in the epoch, if there was one, as an event; a warm-up is none. `before`: the last
    learning rate of the epoch before."""
    factors = raised(rates, before)
    at = int(np.argmax(factors))
    rate, factor = float(rates[at]), float(factors[at])
    return [Event("learning_rate", epoch, at, rate / factor, rate)] if factor > ABRUPT else []


def _bytes(*arrays: Any) -> int:
    """Size of arrays or tensors."""
    return sum(int(np.prod(one.shape)) * np.dtype(getattr(one.dtype, "as_numpy_dtype", one.dtype)).itemsize for one in arrays)
