"""Each spike of the validation loss of a plain `model.fit`, explained. Needs Keras on TensorFlow; no Ray, no cluster, no storage.

    spikes = SpikeDiagnosis((x_validation, y_validation))
    model.fit(x, y, epochs=100, callbacks=[spikes])
    spikes.summary, spikes.diagnoses

The callback sees each batch on its way to the training step and measures the step from outside, by what it left in weights and
optimizer; the step itself stays Keras' own, and so do its numbers. docs/diagnosis.md says what the causes mean.

Shapes: n validation examples, b of a batch, s steps of an epoch.
"""

import itertools
import logging
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spikewise import describe
from spikewise.detect import SMALLEST_FRACTION
from spikewise.diagnose import RECORDS, Diagnostician
from spikewise.errors import UserError
from spikewise.keras.data import Examples, classes, labelled, loss_of, predicted
from spikewise.keras.network import KerasNetwork
from spikewise.records import Diagnosis, Event
from spikewise.steps import GRADIENT, LOCAL_SQUARE, LOSS, UPDATE

log = logging.getLogger(__name__)

SAMPLE = 500
"""Training examples whose loss in inference mode is followed: the first of the first epoch."""
RAISED = 1.2
"""Times the learning rate of the step before, from which on it counts as raised."""


class SpikeDiagnosis(keras.callbacks.Callback):
    """Give it to `model.fit`. Epochs are counted from 1, on from the last `fit` with the same callback."""

    def __init__(
        self,
        validation_data: Any,
        *,
        keys: Sequence[str] | None = None,
        groups: Sequence[Hashable] | None = None,
        smallest_fraction: float = SMALLEST_FRACTION,
        memory: int = 2**31,
    ) -> None:
        """`validation_data`: arrays (x, y), a batched tf.data.Dataset or a keras.utils.PyDataset, in the same order each time.
        `keys`, `groups` [n]: name and source of each example, where examples of one source are alike; `smallest_fraction`: of the
        expected loss, below which a rise does not matter; `memory`: bytes that batches of the running epoch may take.

        Raises UserError, here or when training begins.
        """
        super().__init__()
        if keras.backend.backend() != "tensorflow":
            raise UserError(f"Keras runs on {keras.backend.backend()}: the diagnosis needs KERAS_BACKEND=tensorflow")
        self._examples = Examples(validation_data)
        self._names: dict[str, Sequence[Any]] = {name: list(v) for name, v in (("keys", keys), ("groups", groups)) if v is not None}
        self._smallest_fraction = smallest_fraction
        self._batches = _Batches(memory)
        self.bad_batches: dict[int, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
        """Of epochs whose verdict is `bad_batch`: examples and labels of each batch that stood out, by its number."""
        self._diagnostician: Diagnostician | None = None
        self._model: keras.Model | None = None
        self._sample: list[tuple[Any, Any]] = []
        self._known = 0
        """Steps of the last epoch."""
        self._rate = 0.0
        """The learning rate of its last one."""
        self._said: list[str] = []

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """Of each spike so far."""
        return self._diagnostician.diagnoses if self._diagnostician else []

    @property
    def summary(self) -> str:
        """What happened to the validation loss, in plain words."""
        if self._diagnostician is None:
            return "No epoch was finished."
        return describe.summary(self.diagnoses, self._diagnostician.overfitting, self._diagnostician.detector.epoch)

    def as_dict(self) -> dict[str, Any]:
        """The same for a program: `summary`, `spikes` and `overfitting`, as report.json has them (docs/report.md)."""
        trend = self._diagnostician.overfitting if self._diagnostician else None
        spikes = [{**d.as_dict(), "name": describe.name(d), "headline": describe.headline(d.spike)} for d in self.diagnoses]
        return {"summary": self.summary, "spikes": spikes, "overfitting": trend and trend.as_dict()}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        model = self.model
        if self._model not in (None, model):
            raise UserError("a SpikeDiagnosis watches one model: make another one for this model")
        if model.steps_per_execution != 1:
            raise UserError(
                f"compile(steps_per_execution={model.steps_per_execution}): the diagnosis looks at every step, it must be 1"
            )
        inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        if (accumulated := inner.gradient_accumulation_steps or 1) != 1:
            raise UserError(
                f"gradient_accumulation_steps={accumulated}: the diagnosis compares step with step, it must be 1 or None"
            )
        if model.distribute_strategy.num_replicas_in_sync > 1:
            raise UserError("the diagnosis callback watches one device: for several, train with `python -m jobs.train`")
        self._model = model
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        loss = loss_of(model)
        self._network = KerasNetwork(model, lambda: self._evaluate()[0], self._batches, loss)
        self._loss = loss
        losses, outputs, labels = self._evaluate()
        self._labels = labels
        self._classes = classes(labels, outputs)
        for name, values in self._names.items():
            if len(values) != len(losses):
                raise UserError(f"{name}: there are {len(values)} for {len(losses)} validation examples")
        if self._diagnostician:
            self._diagnostician.network = self._network
        self._record = _Recorder(model)
        inner = model.train_function
        model.train_function = _Tap(inner.inner if isinstance(inner, _Tap) else inner, self._step, eager=model.run_eagerly)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        self._say()
        self._batches.clear()
        self._record.clear()
        self._snapshots: frozenset[int] = frozenset()
        if self._diagnostician:
            self._diagnostician._path.clear()  # of an epoch that was interrupted
            self._snapshots = self._diagnostician.snapshots(self._known)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Callbacks behind this one find `val_loss` in their logs also where `fit` was given no validation data."""
        steps, rates = self._record.steps()
        self._known = len(steps)
        if self._diagnostician is None or not len(steps):
            return
        before, self._rate = self._rate, rates[-1]
        losses, outputs, labels = self._evaluate()
        if labels.shape != self._labels.shape or not np.array_equal(labels, self._labels):
            raise UserError(
                "validation data come in another order each time: leave out shuffle(), or set reshuffle_each_iteration=False"
            )
        if logs is not None:
            logs.setdefault("val_loss", float(losses.mean()))
        sample = np.concatenate([np.asarray(self._loss(y, self._network.infer(x))) for x, y in self._sample])

        try:
            news = self._diagnostician.close_epoch(
                losses,
                sample,
                steps,
                learning_rate=rates[-1],
                events=_raised(before, rates, self._diagnostician.detector.epoch + 1),
                predict=lambda numbers: predicted(numbers, self._classes, outputs),
            )
        except Exception as error:  # training does not die of its diagnosis
            log.exception("the diagnosis of epoch %d failed", self._diagnostician.detector.epoch)
            self._said.append(f"warning: the diagnosis of this epoch failed: {error!r}")
            return
        if news.diagnosis:
            self._said.append(describe.block(news.diagnosis))
            self._keep_bad(news.diagnosis)
        if news.resolved:
            self._said.append(describe.headline(news.resolved.spike))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        self._said.append(self.summary)
        self._say()
        self._batches.clear()
        if isinstance(self.model.train_function, _Tap):
            self.model.train_function = self.model.train_function.inner

    def _evaluate(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._examples.evaluate(self._network.infer, self._loss)

    def _step(self, data: Any, train: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """One training step on the batch `data`, and what it did."""
        x, y = labelled(data, "training data")
        if self._diagnostician is None:
            self._diagnostician = self._begin(len(x))
        if sum(len(labels) for _, labels in self._sample) < SAMPLE and not self._diagnostician.detector.epoch:
            self._sample.append((x, y))
        self._batches.add(x, y)
        logs = self._record(len(x), lambda: train(data))
        if (done := self._record.count) in self._snapshots:
            self._diagnostician.snapshot(done)
        return logs

    def _begin(self, size: int) -> Diagnostician:
        return Diagnostician(
            self._network,
            batch_size=size,
            labels=self._classes,
            momentum=self._network.momentum,
            smallest_fraction=self._smallest_fraction,
            **self._names,
        )

    def _keep_bad(self, diagnosis: Diagnosis) -> None:
        if diagnosis.verdict.name == "bad_batch":
            numbers = next(probe.facts["batches"] for probe in diagnosis.probes if probe.name == "bad_batches")
            self.bad_batches[diagnosis.spike.epoch] = {i: tuple(map(np.asarray, self._batches(i))) for i in numbers}  # type: ignore[misc]

    def _say(self) -> None:
        """Between two epochs, where no progress bar is."""
        if self._said:
            sys.stdout.write("\n".join([*self._said, ""]))
            sys.stdout.flush()
        self._said = []


class _Tap:
    """Stands in for Keras' training function and hands each batch to `step` on its way."""

    def __init__(self, inner: Callable[[Any], Any], step: Callable[..., Any], *, eager: bool) -> None:
        self.inner = inner
        self._step = step
        self._eager = eager
        self._compiled: Callable[[Any], Any] | None = None

    def __call__(self, iterator: Any) -> Any:
        if self._compiled is None:
            # Compiled for the shapes that the iterator declares, as Keras does, not for those that its first batch has: with a
            # known batch size other kernels run, and the last bits differ.
            whole = tf.function(self._one, input_signature=[iterator.element_spec], autograph=False)
            self._compiled = self._one if self._eager else whole
        return self._step(next(iterator), self._compiled)

    def _one(self, data: Any) -> Any:
        return self.inner(iter([data]))


class _Batches:
    """Examples and labels of the running epoch's batches, by number. Beyond `memory` bytes every second one is dropped, again and
    again, and the nearest one that is left stands for it."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self.clear()

    def clear(self) -> None:
        self._kept: dict[int, tuple[Any, Any]] = {}
        self._seen, self._stride, self._bytes = 0, 1, 0

    def add(self, x: Any, y: Any) -> None:
        number, self._seen = self._seen, self._seen + 1
        if number % self._stride:
            return
        self._kept[number] = (x, y)
        self._bytes += _size(x, y)
        while self._bytes > self._memory and len(self._kept) > 1:
            self._stride *= 2
            self._kept = {i: batch for i, batch in self._kept.items() if not i % self._stride}
            self._bytes = sum(_size(*batch) for batch in self._kept.values())

    def __call__(self, number: int) -> tuple[Any, Any]:
        return self._kept[min(self._kept, key=lambda kept: abs(kept - number))]


class _Recorder:
    """What each step of an epoch did, seen from outside: loss, length, gradient norm, learning rate."""

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        optimizer = model.optimizer
        self._watched = [variable.value for variable in model.trainable_variables]
        moments = [variable.value for variable in optimizer.variables if variable.path.endswith("_momentum")]
        decay = optimizer.beta_1 if isinstance(optimizer, keras.optimizers.Adam) else getattr(optimizer, "momentum", None)
        known = isinstance(optimizer, (keras.optimizers.Adam, keras.optimizers.SGD)) and len(moments) in (0, len(self._watched))
        self._moments, self._decay = (moments, decay) if known else ([], None)
        self._before = [tf.Variable(variable, trainable=False) for variable in (*self._watched, *self._moments)]
        self._measure = tf.function(self._look)
        self._synchronize()
        self.clear()

    def clear(self) -> None:
        self._losses: list[Any] = []
        self._sizes: list[int] = []
        self._norms: list[Any] = []

    @property
    def count(self) -> int:
        """Steps so far."""
        return len(self._sizes)

    def __call__(self, size: int, train: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        rate = tf.convert_to_tensor(self._model.optimizer.learning_rate, tf.float32)
        if not self._sizes:  # another callback may have written the weights between two epochs
            self._synchronize()
        logs = train()
        self._losses.append(logs.get("loss", 0.0))
        self._sizes.append(size)
        self._norms.append(self._measure(rate))
        return logs

    def steps(self) -> tuple[np.ndarray, list[float]]:
        """StepStats [s, 7] of the epoch (of the columns that the diagnosis reads), and the learning rate of each step."""
        seen = np.cumsum(self._sizes)
        totals = np.array([float(loss) for loss in self._losses]) * seen  # Keras tells the mean since the epoch began
        norms = np.array([np.asarray(values) for values in self._norms]).reshape(-1, 3)
        steps = np.zeros((len(seen), RECORDS))
        steps[:, LOSS] = np.diff(totals, prepend=0) / self._sizes if len(seen) else 0
        steps[:, GRADIENT], steps[:, UPDATE] = norms[:, 0], norms[:, 1]
        steps[:, LOCAL_SQUARE] = steps[:, GRADIENT] ** 2
        return steps, norms[:, 2].tolist()

    def _look(self, rate: tf.Tensor) -> tf.Tensor:
        """Gradient norm, length of the step, learning rate; where the optimizer does not tell the gradient, all are 1."""
        now, count = [*self._watched, *self._moments], len(self._watched)
        changes = [tf.convert_to_tensor(a) - b for a, b in zip(now, self._before, strict=True)]
        length = tf.linalg.global_norm(changes[:count])
        gradient = tf.ones(())
        if self._decay is not None:  # what the step added to the optimizer's moving mean of the gradients
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


def _raised(before: float, rates: Sequence[float], epoch: int) -> list[Event]:
    """The largest raise of the learning rate since the epoch `before`."""
    jumps = [after / earlier if earlier > 0 else 1.0 for earlier, after in itertools.pairwise([before, *rates])]
    at = int(np.argmax(jumps))
    return [Event("learning_rate", epoch, at, [before, *rates][at], rates[at])] if jumps[at] >= RAISED else []


def _size(*parts: Any) -> int:
    return sum(int(np.prod(part.shape)) * np.dtype(getattr(part.dtype, "as_numpy_dtype", part.dtype)).itemsize for part in parts)
