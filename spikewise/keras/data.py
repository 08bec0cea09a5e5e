"""What a Keras user hands to the diagnosis - examples and a compiled model - checked and brought into one form.

Shapes: n examples, b of a batch, K outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spikewise.errors import UserError

BATCH = 128
"""Examples that arrays are read by."""

Loss = Callable[[Any, Any], Any]
"""(labels, outputs) of a batch -> loss of each example [b]."""


class Examples:
    """Labelled examples that can be read again and again, in the same order each time."""

    def __init__(self, data: Any, what: str = "validation data") -> None:
        """`data`: arrays (x, y), a batched tf.data.Dataset or a keras.utils.PyDataset; `what` it is called in errors.

        Raises UserError for anything else.
        """
        self.what = what
        self._data = data
        if isinstance(data, (tuple, list)):
            if len(data) not in (2, 3):
                raise UserError(f"{what}: (x, y) is expected, got {len(data)} parts")
            self._data = tuple(np.asarray(part) for part in data[:2])
            x, y = self._data
            if x.dtype == object or y.dtype == object:
                raise UserError(
                    f"{what}: x and y must be arrays of numbers; the diagnosis knows models of one input and one output"
                )
            if not x.ndim or len(x) != len(np.atleast_1d(y)) or not len(x):
                raise UserError(
                    f"{what}: x of shape {x.shape} and y of shape {y.shape} must hold the same number of examples, not 0"
                )
        elif isinstance(data, tf.data.Dataset):
            if data.cardinality() == tf.data.INFINITE_CARDINALITY:
                raise UserError(f"{what}: this dataset never ends: leave out repeat(), or add take(...)")
        elif not isinstance(data, keras.utils.PyDataset):
            raise UserError(
                f"{what}: arrays (x, y), a batched tf.data.Dataset or a keras.utils.PyDataset are expected, got "
                + (f"{type(data).__name__}: it can be read only once" if isinstance(data, Iterator) else type(data).__name__)
            )

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Examples and labels of each batch; raises UserError where a batch lacks labels."""
        if isinstance(self._data, tuple):
            x, y = self._data
            yield from ((x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH))
            return
        known = self._data if isinstance(self._data, tf.data.Dataset) else (self._data[i] for i in range(len(self._data)))
        for batch in known:
            yield labelled(batch, self.what)

    def evaluate(self, infer: Callable[[Any], Any], loss: Loss) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Losses [n], outputs [n, ...] and labels [n, ...]; raises UserError where they do not fit each other."""
        parts = []
        for x, y in self.batches():
            try:
                outputs = infer(tf.convert_to_tensor(x))
                losses = np.asarray(loss(tf.convert_to_tensor(y), outputs), float)
            except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
                shapes = f"x of shape {np.shape(x)} and y of shape {np.shape(y)}"
                raise UserError(
                    f"{self.what}: the model cannot evaluate a batch with {shapes}: {str(error).splitlines()[0]}"
                ) from error
            if losses.shape != (len(y),):
                raise UserError(f"{self.what}: one loss for each of {len(y)} examples is expected, got shape {losses.shape}")
            parts.append((losses, np.asarray(outputs), np.asarray(y)))
        if not parts:
            raise UserError(f"{self.what}: it holds no batch")
        losses, outputs, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
        return losses, outputs, labels


def labelled(batch: Any, what: str) -> tuple[Any, Any]:
    """Examples and labels of what a dataset yields; raises UserError without labels."""
    x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
    if y is None or isinstance(x, (dict, list, tuple)) or isinstance(y, (dict, list, tuple)):
        raise UserError(
            f"{what}: batches of (x, y) are expected, one array each: the diagnosis knows models of one input and one output"
        )
    return x, y


def loss_of(model: keras.Model) -> Loss:
    """The loss that `model` was compiled with, of each example; means over further axes. Raises UserError without one."""
    if not isinstance(model, keras.Model):
        raise UserError(f"model: a keras.Model is expected, got {type(model).__name__}")
    given = getattr(model, "loss", None)
    if given is None or isinstance(given, (dict, list, tuple)):
        raise UserError(f"model: compile it with one loss, such as loss='sparse_categorical_crossentropy' (now: {given!r})")
    found = keras.losses.get(given)
    each = found.call if isinstance(found, keras.losses.Loss) else found

    def loss(labels: Any, outputs: Any) -> Any:
        if labels.ndim == outputs.ndim - 1 and outputs.shape[-1] == 1:
            labels = labels[..., None]
        values = tf.convert_to_tensor(each(labels, outputs))
        return tf.reduce_mean(tf.reshape(values, [tf.shape(values)[0], -1]), -1)

    return loss


def classes(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray | None:
    """Class number of each example [n]; None if `labels` are no classes."""
    if outputs.ndim != 2:
        return None
    if labels.shape == outputs.shape and outputs.shape[1] > 1:
        return labels.argmax(1) if np.allclose(labels.sum(1), 1) else None
    if labels.size != len(outputs):
        return None
    flat = labels.reshape(-1)
    fits = np.all(flat == np.round(flat)) and flat.min() >= 0 and flat.max() < max(outputs.shape[1], 2)
    return flat.astype(int) if fits else None


def predicted(numbers: Sequence[int], known: np.ndarray | None, outputs: np.ndarray) -> dict[int, tuple[str, str, float]]:
    """Label, prediction and its probability of single examples, given what `classes` found; empty if they are no classes."""
    if known is None or not len(numbers):
        return {}
    p = _fractions(outputs[list(numbers)])
    return {i: (str(known[i]), str(row.argmax()), float(row.max())) for i, row in zip(numbers, p, strict=True)}


def _fractions(outputs: np.ndarray) -> np.ndarray:
    """Probabilities [n, K] of the classes from a network's outputs [n, K or 1], probabilities or logits."""
    if outputs.shape[1] == 1:
        p = outputs if outputs.min() >= 0 and outputs.max() <= 1 else 1 / (1 + np.exp(-outputs.astype(float)))
        return np.concatenate([1 - p, p], 1)
    if outputs.min() >= 0 and np.allclose(outputs.sum(1), 1, atol=1e-2):
        return outputs
    powers = np.exp(outputs.astype(float) - outputs.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
