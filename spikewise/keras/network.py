"""A Keras model as the Network that the probes work with.

Shapes: b images of a batch, k batches, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spikewise.keras.data import classes
from spikewise.probes import Weights

REDUCED = ("float16", "bfloat16")
"""Types in which a layer computes with fewer bits than float32."""
DROPOUT = (keras.layers.Dropout, keras.layers.GaussianDropout, keras.layers.AlphaDropout)
FAR = 1e9
"""A value far above any moment of a batch."""


@contextmanager
def in_float32(layers: Sequence[keras.Layer]) -> Iterator[None]:
    """A context in which these layers compute in float32. What is compiled inside of it, stays so."""
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy


def beta_2(optimizer: Any) -> float:
    """Decay of the second moments of Adam and its relatives; NaN for another optimizer, such as Lion."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return float(optimizer.beta_2) if isinstance(optimizer, (keras.optimizers.Adam, keras.optimizers.Nadam)) else np.nan


def layer_of(variable: Any) -> str:
    """The name of the layer that a Keras variable belongs to."""
    return str(variable.path.rpartition("/")[0].rpartition("/")[2])


class KerasNetwork:
    """Implements spikewise.probes.Network. Weights are those of `model.get_weights()`."""

    def __init__(
        self,
        model: keras.Model,
        evaluate: Callable[[], np.ndarray],
        batch: Callable[[int], tuple[Any, ...]],
        loss: Callable[[Any, Any], Any] | None,
        variables: Sequence[keras.Variable] = (),
        probabilities: Callable[[], np.ndarray | None] = lambda: None,
        *,
        part: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None,
        sample: Callable[[int], np.ndarray] = lambda _: np.zeros(0),
    ) -> None:
        """`evaluate()`: losses [n] of the n validation images. `batch(number)`: images and labels of that batch of the epoch.
        `loss(labels, outputs)`: loss of each example [b]; None if a subclass has `batch_losses` of its own. `variables`: further
        variables to restore, such as the optimizer's. `part(most)`: positions [v] and losses [v] of about `most` validation images;
        `sample(most)`: losses [t] of about `most` training images; both the same ones each time. `probabilities()`: of the classes
        [n, K] for the validation images, if there are classes."""
        self.model = model
        self.evaluate = evaluate
        self.probabilities = probabilities
        self._part, self._sample = part, sample
        self._batch = batch
        self._loss = loss
        self._variables = [*model.variables, *variables]
        layers = list(model._flatten_layers(include_self=False, recursive=True))
        self._norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
        self._dropouts = [layer for layer in layers if isinstance(layer, DROPOUT)]
        self._weights = model.weights
        # One compiled read of all weights: reading them one by one takes up to four times as long.
        self._read = tf.function(lambda: [tf.identity(v.value) for v in self._weights])
        self._read_norms = tf.function(
            lambda: tf.concat(
                [
                    tf.reshape(tf.cast(variable.value, tf.float32), [-1])
                    for layer in self._norms
                    for variable in (layer.moving_mean, layer.moving_variance)
                ],
                0,
            ),
            autograph=False,
        )
        self.drops = bool(self._dropouts)
        self.dropout = max((float(layer.rate) for layer in self._dropouts), default=float("nan"))
        """The highest dropout rate; NaN without dropout."""
        self._forward: dict[tuple[float, ...], Callable[..., Any]] = {}
        momenta = {float(layer.momentum) for layer in self._norms}
        self.momentum = momenta.pop() if len(momenta) == 1 else float("nan")
        """Momentum of BatchNormalization; NaN if the trainable layers differ."""
        self.infer = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
        layers = list(model._flatten_layers(include_self=True, recursive=True))
        self._reduced = [layer for layer in layers if layer.compute_dtype in REDUCED]
        self._infer_in_float32 = tf.function(lambda x: model(x, training=False), reduce_retracing=True)

    @property
    def beta_2(self) -> float:
        """Decay of the second moments of Adam and its relatives; NaN with another optimizer."""
        return beta_2(getattr(self.model, "optimizer", None))

    @property
    def loss_scale(self) -> float:
        """The factor of the loss in float16 training; NaN without one."""
        optimizer = getattr(self.model, "optimizer", None)
        return float(optimizer.dynamic_scale) if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else np.nan

    def evaluate_in_float32(self) -> np.ndarray | None:
        """Losses [n] of the validation images with all layers in float32; None if they compute in float32 anyway."""
        if not self._reduced:
            return None
        infer, self.infer = self.infer, self._infer_in_float32
        try:
            with in_float32(self._reduced):
                return self.evaluate()
        finally:
            self.infer = infer

    @cached_property
    def _moving(self) -> list[tuple[keras.Variable, float]]:
        """Moving statistics of the layers whose statistics training moves, and the fraction of them that a step keeps: the layer's
        momentum, or a power of it if the model calls the layer several times. A subclassed model may also call a layer with
        training=False, which freezes its statistics. Only a forward pass in training mode reveals either."""
        if not self._norms:
            return []
        with self.untouched():
            for layer in self._norms:
                layer.moving_variance.assign(tf.fill(layer.moving_variance.shape, FAR))
            self._move(0, dropout=True)
            left = [float(np.median(layer.moving_variance.numpy() / FAR)) for layer in self._norms]
        kept = [(layer, _kept(float(layer.momentum), rest)) for layer, rest in zip(self._norms, left, strict=True) if rest != 1]
        return [(v, rest) for layer, rest in kept for v in (layer.moving_mean, layer.moving_variance)]

    @cached_property
    def statistics(self) -> Sequence[int]:
        """Indices of the moving statistics among the weights."""
        places = {id(v): i for i, v in enumerate(self._weights)}
        return [places[id(v)] for v, _ in self._moving]

    @property
    def kept(self) -> Sequence[float]:
        """The fraction of each of the m single moving statistics that a step keeps."""
        return [momentum for variable, momentum in self._moving for _ in range(int(np.prod(variable.shape)))]

    @property
    def layers(self) -> Sequence[str]:
        """The name of the layer of each of `statistics`."""
        return [layer_of(variable) for variable, _ in self._moving]

    def norm_values(self) -> Any:
        """A copy of the statistics of all BatchNormalization layers that are not frozen, one after the other, as a tensor; None
        without such layers. `select` takes those of `statistics` from it."""
        return self._read_norms() if self._norms else None

    def select(self, values: np.ndarray) -> np.ndarray:
        """[..., all of `norm_values`] -> [..., m], those that training moves."""
        moving = {id(variable) for variable, _ in self._moving}
        variables = [variable for layer in self._norms for variable in (layer.moving_mean, layer.moving_variance)]
        chosen = [np.full(int(np.prod(variable.shape)), id(variable) in moving) for variable in variables]
        return values[..., np.concatenate(chosen)]

    def evaluate_part(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions [v] of about `most` validation images, the same ones each time, and their losses [v]."""
        if self._part is not None:
            return self._part(most)
        losses = self.evaluate()
        return np.arange(len(losses)), losses

    def sample_part(self, most: int) -> np.ndarray:
        """Losses [t] of about `most` training images, the same ones each time."""
        return self._sample(most)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Restores all variables, the random state of dropout included, on exit."""
        with restored(self._variables):
            yield

    def also_restore(self, variables: Sequence[Any]) -> None:
        """Adds variables that `untouched` restores, such as those of global random generators."""
        known = {id(variable.value if isinstance(variable, keras.Variable) else variable) for variable in self._variables}
        self._variables += [variable for variable in variables if id(variable) not in known]

    def weights(self) -> Weights:
        """A copy of the weights."""
        return [value.numpy() for value in self._read()]

    def assign(self, weights: Weights) -> None:
        """Sets the weights."""
        for variable, value in zip(self._weights, weights, strict=True):
            variable.assign(value)

    def moments(self, batches: Sequence[int], *, dropout: bool) -> list[np.ndarray]:
        """Moments of these batches under the current weights, one array [k, C] for each of `statistics`."""
        found: list[list[np.ndarray]] = [[] for _ in self._moving]
        for number in batches:
            for variable, _ in self._moving:  # from zero, one step leaves (1 - kept) of the batch's own moments
                variable.assign(tf.zeros(variable.shape))
            self._move(number, dropout=dropout)
            for values, (variable, kept) in zip(found, self._moving, strict=True):
                values.append(variable.value.numpy() / np.float32(1 - kept))
        return [np.array(values) for values in found]

    def _move(self, number: int, *, dropout: bool) -> None:
        """Updates the moving statistics with this batch, as training does."""
        rates = [layer.rate for layer in self._dropouts]
        key = tuple(rates) if dropout else ()
        try:
            for layer, rate in zip(self._dropouts, rates, strict=True):
                layer.rate = rate if dropout else 0.0
            if key not in self._forward:  # a layer's rate is a constant of the compiled function
                self._forward[key] = tf.function(lambda x: self.model(x, training=True), reduce_retracing=True)
            self._forward[key](tf.convert_to_tensor(self._batch(number)[0]))
        finally:
            for layer, rate in zip(self._dropouts, rates, strict=True):
                layer.rate = rate

    def batch_losses(self, batch: int) -> np.ndarray:
        """Losses [b] of a batch in inference mode."""
        x, y = self._batch(batch)
        assert self._loss is not None
        return np.asarray(self._loss(tf.convert_to_tensor(y), self.infer(tf.convert_to_tensor(x))))

    @property
    def outputs(self) -> Sequence[int]:
        """Shape of the outputs for one example."""
        shape: tuple[int, ...] = self.model.output_shape
        return shape[1:]

    def batch_classes(self, batches: Sequence[int]) -> list[np.ndarray] | None:
        """Class number of each image [b] of these batches, of each one that is held once; None if the labels are no classes."""
        held = {id(labels): labels for labels in (self._batch(number)[1] for number in batches)}
        found = [classes(np.asarray(labels), (len(labels), *self.outputs)) for labels in held.values()]
        known = [one for one in found if one is not None]
        return known if len(known) == len(found) else None


@contextmanager
def restored(variables: Sequence[Any]) -> Iterator[None]:
    """Restores variables of Keras or TensorFlow on exit."""
    before = [(variable, tf.identity(variable)) for variable in variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _kept(momentum: float, left: float) -> float:
    """The fraction of moving statistics that a step with any number of calls keeps, if about `left` of them are left."""
    if not 0 < momentum < 1 or not 0 < left < 1:
        return momentum
    calls: int = max(round(np.log(left) / np.log(momentum)), 1)
    return momentum**calls
