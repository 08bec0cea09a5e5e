"""The loss of each example as Keras computes it: with sample weights, masks, regularization and `add_loss`, in every precision.

Keras reduces a batch to one number, and each loss may do so in its own way. None of that is repeated here: `compute_loss` is
asked, and its number is divided among the examples.

Shapes: n examples, b examples of a batch, K outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from spikewise.errors import UserError
from spikewise.keras.data import Examples, Order, classes, probabilities
from spikewise.keras.network import KerasNetwork, in_float32, restored
from spikewise.outputs import are_cross_entropies, cross_entropies


class Evaluation(NamedTuple):
    """What an evaluation of n examples found."""

    losses: np.ndarray
    """[n]; their mean is the loss that `model.evaluate` returns."""
    classes: np.ndarray | None
    """Class number of each example [n]; None if the labels are not classes."""
    order: tuple[bytes, bytes]
    """Digests of the labels and of the examples in the order in which they were read."""
    logs: dict[str, float]
    """The compiled metrics by name, without the loss; empty unless they were asked for."""
    cross_entropy: bool
    """Whether the losses are the cross-entropies of outputs and labels, without weights and penalties."""


class Losses:
    """Evaluates a compiled model, and leaves it as it was: random state and metrics included."""

    def __init__(self, model: keras.Model) -> None:
        """Raises UserError if `model` is not compiled, or compiled with several losses."""
        _check(model)
        self._model = model
        self._global: list[Any] | None = None
        """Variables that an evaluation uses besides the model's: those of global random generators. None before the first one."""
        self._count = 0
        """Number of examples in the last evaluation."""
        self.outputs: Sequence[int] = ()
        """Shape of the model's outputs for one example, known after the first evaluation."""
        self._custom = type(model).test_step is not keras.Model.test_step
        """Whether the model has a test step of its own. It decides what the loss is, but does not reveal that of each example."""
        self._compiled = {metrics: _function(model, partial(self._forward, metrics)) for metrics in (False, True)}

    def __call__(self, x: Any, y: Any, weights: Any = None) -> np.ndarray:
        """Losses [b] of a batch, in inference mode."""
        with self._undisturbed(x, y, weights):
            return np.asarray(self._compiled[False](x, y, weights)[0])

    def as_validated(self, x: Any, y: Any, weights: Any, examples: Examples) -> np.ndarray:
        """Losses [b] of a training batch that compare with those of the validation `examples`: without weights where these have
        none; with their mean weight if only they have some."""
        if not examples.weighted:
            return self(x, y)
        return self(x, y, weights) if weights is not None else examples.weight * self(x, y)

    def evaluate(self, examples: Examples, *, metrics: bool = False) -> Evaluation:
        """`metrics`: also the compiled metrics, which begin anew. Raises UserError if the model cannot evaluate the examples."""
        metrics = metrics or self._custom
        batches = examples.batches()
        first = next(batches, None)
        if first is None:
            raise UserError(f"{examples.what} contains no batch. Fix: pass at least one labelled example.")
        losses, known, entropies, given, logs, order = [], [], [], [], {}, Order()
        try:
            x, y, w = first
            with self._undisturbed(x, y, w):
                if metrics:
                    self._model.reset_metrics()
                for x, y, w in chain([first], batches):
                    found, outputs, logs = self._compiled[metrics](x, y, w)
                    self.outputs = outputs.shape[1:]
                    order.update(x, y)
                    losses.append(np.asarray(found, float))
                    given.append(np.ones(1) if w is None else np.asarray(w, float).ravel())
                    known.append(classes(np.asarray(y), outputs.shape))
                    if known[-1] is not None:
                        entropies.append(cross_entropies(probabilities(np.asarray(outputs)), known[-1]))
                    if losses[-1].shape != (len(y),):
                        raise ValueError(f"there are {len(losses[-1])} losses for {len(y)} examples")
                if metrics:
                    logs = {name: float(value) for name, value in self._model._get_metrics_result_or_logs(logs).items()}
        except UserError:
            raise
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            raise examples.unfit(x, y, str(error)) from error
        each = np.concatenate(losses)
        self._count, examples.weight = len(each), float(np.concatenate(given).mean())
        if (reported := logs.pop("loss", None)) is not None and self._custom:
            each += reported - each.mean()
        parts = [part for part in known if part is not None]
        labels = np.concatenate(parts) if len(parts) == len(known) else None
        compares = labels is not None and are_cross_entropies(each, np.concatenate(entropies))
        return Evaluation(each, labels, order.digests, logs, compares)

    def predictions(self, examples: Examples, numbers: list[int] | None) -> dict[int, np.ndarray]:
        """Class probabilities [K] of single examples, by number; None: of all. Empty if the outputs are not those of classes."""
        found: dict[int, np.ndarray] = {}
        first = 0
        for x, y, w in examples.batches():
            here = range(first, first + len(y))
            wanted = list(here) if numbers is None else [i for i in numbers if i in here]
            if wanted:
                with self._undisturbed(x, y, w):
                    outputs = np.asarray(self._compiled[False](x, y, w)[1])
                if outputs.ndim != 2:
                    return {}
                found |= dict(zip(wanted, probabilities(outputs)[[i - first for i in wanted]], strict=True))
            first += len(y)
        return found

    def probabilities(self, examples: Examples) -> np.ndarray | None:
        """Class probabilities [n, K] of all examples; None if the outputs are not those of classes."""
        found = self.predictions(examples, None)
        return np.stack(list(found.values())) if found else None

    def part(
        self, examples: Examples, most: int, change: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions [v] and losses [v] of about `most` examples: those of every k-th batch. `change`: changes the inputs
        [b, ...] of each batch first."""
        positions, losses = [], []
        for first, x, y, w in self._some(examples, most):
            positions.append(first + np.arange(len(y)))
            losses.append(self(tf.convert_to_tensor(change(np.asarray(x))) if change else x, y, w))
        return np.concatenate(positions), np.concatenate(losses)

    def inputs(self, examples: Examples, most: int) -> np.ndarray:
        """Inputs [v, ...] of the examples of `part`."""
        return np.concatenate([np.asarray(x) for _, x, _, _ in self._some(examples, most)])[:most]

    def _some(self, examples: Examples, most: int) -> Iterator[tuple[int, tf.Tensor, tf.Tensor, tf.Tensor | None]]:
        """Every k-th batch, with the position of its first example."""
        stride, first = -(-self._count // most) if self._count else 1, 0
        for number, (x, y, w) in enumerate(examples.batches()):
            if number % stride == 0:
                yield first, x, y, w
            first += len(y)

    @contextmanager
    def _undisturbed(self, x: Any, y: Any, weights: Any) -> Iterator[None]:
        """Restores what an evaluation changes, but not the weights that train: it cannot change them."""
        model = self._model
        if self._global is None:  # builds the model, if nothing else has yet
            traced = getattr(self._compiled[False], "get_concrete_function", None)
            used = traced(x, y, weights).variables if traced else ()
            own = {id(variable.value) for variable in model.variables}
            self._global = [variable for variable in used if id(variable) not in own]
        trained = {id(variable) for variable in model.trainable_variables}
        others = [variable for variable in model.variables if id(variable) not in trained]
        with restored([*others, *model.metrics_variables, *self._global]):
            yield

    def _forward(self, metrics: bool, x: Any, y: Any, weights: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Losses [b], outputs [b, ...] and, if asked for, the metrics so far."""
        model = self._model
        outputs = model(x, training=False)
        flat = tf.nest.flatten(outputs)
        if len(flat) != 1:
            raise UserError(f"The model has {len(flat)} outputs; only one is supported. Fix: train a model with one output.")
        each, total = self._each(x, y, weights, outputs, flat[0])
        logs = {}
        if metrics and self._custom:
            logs = model.test_step((x, y) if weights is None else (x, y, weights))
        elif metrics:
            logs = model.compute_metrics(x, y, outputs, sample_weight=weights)
        rest = total - tf.reduce_mean(each)  # regularization, add_loss, rounding
        return each + tf.where(tf.math.is_finite(rest), rest, 0), flat[0], logs

    def _each(self, x: Any, y: Any, weights: Any, outputs: Any, output: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The part of each example [b] in the loss of the batch, and this loss.

        Keras' losses are linear in the sample weights, so an example's part is its weight times the derivative by its weight. A
        loss that reduces the batch itself is computed for each example alone instead.
        """
        size, rank = tf.shape(output)[0], self._rank(y, output)
        if rank:
            given = (
                tf.ones([size] + [1] * (rank - 1), keras.backend.floatx())
                if weights is None
                else tf.cast(weights, keras.backend.floatx())
            )
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(given)
                total = self._total(x, y, outputs, given)
            slope = tape.gradient(total, given)
            if slope is not None:
                parts = tf.reshape(given * slope, [size, -1])
                return tf.cast(size, slope.dtype) * tf.reduce_sum(parts, -1), tf.cast(total, slope.dtype)
        total = self._total(x, y, outputs, weights)
        batch = (x, y, outputs) if weights is None else (x, y, outputs, weights)

        def alone(one: Any) -> tf.Tensor:
            return self._total(*tf.nest.map_structure(lambda value: value[None], one))

        each = tf.vectorized_map(alone, batch)
        mean = tf.reduce_mean(each)
        return each * tf.where((total > 0) & (mean > 0), total / mean, 1), total

    def _total(self, x: Any, y: Any, outputs: Any, weights: Any = None) -> tf.Tensor:
        return tf.reduce_mean(self._model._compute_loss(x, y, outputs, weights, training=False))

    def _rank(self, y: tf.Tensor, output: tf.Tensor) -> int:
        """Rank of the values that the loss has before Keras reduces them; 0 if it reduces the batch itself."""
        try:
            given = tf.nest.flatten(self._model.loss)[0]
            found = keras.losses.get(given)
            each, dtype = (found.call, found.dtype) if isinstance(found, keras.losses.Loss) else (found, keras.backend.floatx())
            labels, values = tf.cast(y, dtype), tf.cast(output, dtype)
            if labels.shape.rank == values.shape.rank - 1 and values.shape[-1] == 1:
                labels = labels[..., None]
            rank: int = tf.convert_to_tensor(each(labels, values)).shape.rank
        except Exception:  # "crossentropy", which only Keras can resolve, or a loss without `call`
            rank = output.shape.rank - 1
        return rank


class CompiledNetwork(KerasNetwork):
    """A compiled model as the Network that the probes work with. Its losses are those that Keras computes."""

    def __init__(
        self,
        model: keras.Model,
        losses: Losses,
        examples: Examples,
        batch: Callable[[int], tuple[Any, ...]],
        sample: Callable[[int], np.ndarray] = lambda _: np.zeros(0),
        held: Callable[[int], int] = lambda number: number,
        sampled: Callable[[int], np.ndarray] = lambda _: np.zeros(0),
    ) -> None:
        """`examples`: for validation. `batch(number)`: images, labels and, if there are any, weights of that batch of the epoch.
        `sample(most)`: losses [t] of about `most` training examples, the same ones each time, and `sampled(most)`: their inputs
        [t, ...]. `held(number)`: the number of the batch that stands in for that one."""
        super().__init__(
            model,
            lambda: losses.evaluate(examples).losses,
            batch,
            None,
            probabilities=lambda: losses.probabilities(examples),
            part=lambda most: losses.part(examples, most),
            sample=sample,
        )
        self._losses, self._examples, self.held, self._sampled = losses, examples, held, sampled
        self._losses_in_float32: Losses | None = None

    def evaluate_in_float32(self) -> np.ndarray | None:
        """Losses [n] of the validation images with all layers in float32; None if they compute in float32 anyway."""
        if not self._reduced:
            return None
        self._losses_in_float32 = self._losses_in_float32 or Losses(self.model)  # compiled while the layers compute in float32
        with in_float32(self._reduced):
            return self._losses_in_float32.evaluate(self._examples).losses

    def inputs(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs [v, ...] of the examples of `evaluate_part`, and [t, ...] of those of `sample_part`."""
        return self._losses.inputs(self._examples, most), self._sampled(most)

    def evaluate_changed(self, most: int, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """As the losses [v] of `evaluate_part`, with the inputs [b, ...] of each batch changed first."""
        return self._losses.part(self._examples, most, change)[1]

    def agreed(self, value: float) -> float:
        """There is one worker."""
        return value

    @property
    def outputs(self) -> Sequence[int]:
        """Shape of the outputs for one example."""
        return self._losses.outputs

    def batch_losses(self, batch: int) -> np.ndarray:
        """Losses [b] of a batch in inference mode, weighted as in training."""
        return self._losses(*self._batch(batch))

    def unweighted_losses(self, batch: int) -> np.ndarray:
        """Losses [b] of a batch in inference mode, which compare with those of validation examples."""
        x, y, weights = self._batch(batch)
        return self._losses.as_validated(x, y, weights, self._examples)


def _function(model: keras.Model, function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled, unless the model is to run eagerly."""
    compiled: Callable[..., Any] = tf.function(function, reduce_retracing=True, autograph=False)
    return function if model.run_eagerly else compiled


def _check(model: Any) -> None:
    """Raises UserError unless `model` is compiled with one loss."""
    if not isinstance(model, keras.Model):
        raise UserError(f"model is of type {type(model).__name__}. Fix: pass a keras.Model.")
    given = getattr(model, "loss", None)
    alone = isinstance(given, (dict, list, tuple)) and len(tf.nest.flatten(given)) != 1
    overridden = type(model).compute_loss is not keras.Model.compute_loss
    if not getattr(model, "compiled", False) or alone or (given is None and not overridden):
        raise UserError(
            f"The model was not compiled with exactly one loss, but with {given!r}. "
            "Fix: compile it with one loss, such as loss='sparse_categorical_crossentropy'."
        )
