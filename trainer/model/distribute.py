"""Makes a plain Keras network ready for training on several workers, in place.

Wherever they are in the network, BatchNormalization, Dropout and MaxPooling2D layers become those of layers.py. A layer is
exchanged by its class: weights, names, and the places from which it is called stay, in subclassed models too. A final softmax or
sigmoid is removed, so that the loss can be computed from logits without losing precision. The exported model is built anew
(export.py) and has none of this.

Shapes: b images, K classes.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from trainer.model.layers import BatchNormalization, GlobalDropout, MaxPooling2D, Place, Reduce
from trainer.model.load import layers
from trainer.model.module import NetworkError

Ending = Literal["logits", "softmax", "sigmoid", "probabilities"]
"""What the network returned for each image. "sigmoid": one probability, of the second class. "probabilities": of all classes or
of the second one, from which no final softmax or sigmoid could be removed."""


@dataclass
class Network:
    """A network in training, and what its users must know about its layers."""

    model: keras.Model
    """Pixels 0..255 -> what `logits` takes."""
    ending: Ending
    norms: list[BatchNormalization] = field(default_factory=list)
    dropouts: list[GlobalDropout] = field(default_factory=list)
    own_statistics: list[str] = field(default_factory=list)
    """Paths of layers derived from BatchNormalization with a computation of their own: every worker has its own statistics."""
    random: list[str] = field(default_factory=list)
    """Paths of other layers that draw random numbers."""

    @property
    def momentum(self) -> float:
        """Momentum of BatchNormalization; NaN if layers differ or there is none."""
        momenta = {float(layer.momentum) for layer in self.norms if layer.trainable}
        return momenta.pop() if len(momenta) == 1 else float("nan")

    @property
    def dropout(self) -> float:
        """The highest rate of dropout; NaN without any."""
        return max((float(layer.rate) for layer in self.dropouts), default=float("nan"))

    def logits(self, outputs: tf.Tensor) -> tf.Tensor:
        """The model's outputs -> logits [b, K], in the precision of the losses."""
        x = tf.cast(outputs, tf.float64 if outputs.dtype == tf.float64 else tf.float32)
        one = x.shape[-1] == 1
        if self.ending == "probabilities":
            return tf.math.log(tf.maximum(tf.concat([1 - x, x], -1) if one else x, keras.config.epsilon()))
        return tf.concat([tf.zeros_like(x), x], -1) if one else x

    def warnings(self) -> list[str]:
        """What several workers do not do as one does, one line each."""
        found = []
        if self.random:
            found.append(
                f"{_some(self.random)} draw random numbers that depend on the number of workers, and so does the curve. Only "
                "on one worker does a resumed run continue exactly."
            )
        if self.own_statistics:
            found.append(
                f"{_some(self.own_statistics)} have their own BatchNormalization: each worker uses the statistics of its part of a "
                "batch."
            )
        return found


def distribute(
    model: keras.Model,
    *,
    place: Place,
    reduce: Reduce | None = None,
    fused: bool = True,
) -> Network:
    """Exchanges the layers of `model` in place.

    `place`: where this worker's examples stand, for the dropout masks. `reduce` sums over the workers and synchronizes
    BatchNormalization. `fused`: False keeps Keras' own kernels, without synchronization. Raises NetworkError for outputs that it
    does not understand.
    """
    network = Network(model, "logits")
    for path, layer in layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            if _overrides_call(layer, keras.layers.BatchNormalization):
                network.own_statistics.append(path)
                continue
            _mix_in(layer, BatchNormalization)
            layer.reduce, layer.fused = reduce, fused
            network.norms.append(layer)
        elif isinstance(layer, keras.layers.Dropout) and (
            not _overrides_call(layer, keras.layers.Dropout) or type(layer).__name__.startswith("SpatialDropout")
        ):
            _mix_in(layer, GlobalDropout)
            number = len(network.dropouts) + 1
            layer.place = place
            layer.key = int(np.random.SeedSequence([place.seed, number]).generate_state(1, np.uint64)[0])
            network.dropouts.append(layer)
        elif isinstance(layer, keras.layers.MaxPooling2D) and not _overrides_call(layer, keras.layers.MaxPooling2D):
            _mix_in(layer, MaxPooling2D)
        elif getattr(layer, "_seed_generators", None):
            network.random.append(path)
    network.ending = _remove_activation(model)
    return network


def _overrides_call(layer: keras.Layer, kind: type[keras.Layer]) -> bool:
    return type(layer).call is not kind.call


def _mix_in(layer: keras.Layer, kind: type[keras.Layer]) -> None:
    """Makes an existing layer behave as `kind` does."""
    own = type(layer)
    layer.__class__ = kind if issubclass(kind, own) else type(own.__name__, (kind, own), {})


def _remove_activation(model: keras.Model) -> Ending:
    """Removes a final softmax or sigmoid and says what the outputs were."""
    units, last = model.outputs[0].shape[-1], _last(model)
    activation = getattr(last, "activation", None)
    found: Ending
    if last is not None and (len(last._inbound_nodes) > 1 or last.activity_regularizer):
        found = "probabilities" if _are_probabilities(model) else "logits"  # the activation has another use, so it must stay
    elif isinstance(last, keras.layers.Softmax):
        last.__class__ = _Identity
        found = "softmax"
    elif last is not None and activation in (keras.activations.softmax, keras.activations.sigmoid):
        last.activation = keras.activations.linear
        found = "softmax" if activation is keras.activations.softmax else "sigmoid"
    else:
        found = "logits" if activation is keras.activations.linear or not _are_probabilities(model) else "probabilities"
    if (found == "sigmoid" and units > 1) or (found == "softmax" and units == 1):
        raise NetworkError(
            f"The network ends in a {found} over {units} output{'s' * (units != 1)}. Fix: use a softmax over one output for each "
            "class, a sigmoid over a single output for two classes, or no activation."
        )
    if last is not None and hasattr(last, "dtype_policy"):
        last.dtype_policy = keras.DTypePolicy(last.variable_dtype)  # in mixed precision, logits keep the precision of the weights
    return found


def _last(model: keras.Model) -> keras.Layer | None:
    """The layer that makes the output; None if the model does not reveal it."""
    last: Any = model
    while isinstance(last, keras.Model):
        inner = last.layers[-1:] if isinstance(last, keras.Sequential) else []
        if not inner and hasattr(last, "_nodes_by_depth"):  # a functional model
            inner = [last.outputs[0]._keras_history.operation]
        if not inner:
            return None
        last = inner[0]
    return last if isinstance(last, keras.Layer) else None


def _are_probabilities(model: keras.Model) -> bool:
    """Whether the outputs for a few random images are probabilities, whatever the weights of the last layer."""
    shape = [1 if size is None else size for size in model.inputs[0].shape[1:]]
    images = np.random.default_rng(0).integers(0, 256, (4, *shape)).astype("float32")

    def outputs() -> np.ndarray:
        return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(model(images, training=False), "float32")))

    found = outputs()
    if found.shape[-1] > 1:
        return bool((found >= 0).all() and np.allclose(found.sum(-1), 1, atol=1e-2))
    kernels = [variable for variable in model.trainable_variables if len(variable.shape) > 1][-1:]
    before = [kernel.numpy() for kernel in kernels]
    try:
        for factor in (-100, 100):  # a logit that was by chance between 0 and 1 leaves this range
            for kernel, values in zip(kernels, before, strict=True):
                kernel.assign(factor * values)
            found = np.concatenate([found, outputs()])
    finally:
        for kernel, values in zip(kernels, before, strict=True):
            kernel.assign(values)
    return bool(((found >= 0) & (found <= 1)).all())


class _Identity(keras.layers.Softmax):
    """A Softmax layer that has been switched off."""

    def call(self, inputs: Any, mask: Any = None) -> Any:  # noqa: ARG002
        return inputs


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more layers" if len(names) > 3 else "")
