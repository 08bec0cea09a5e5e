"""Checks what a Keras user passes to the diagnosis (examples and a compiled model) and brings it into one form.

Shapes: n examples, b examples of a batch, K outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spikewise.errors import UserError

BATCH = 128
"""Batch size in which arrays are read."""
DATA = "arrays (x, y), a batched tf.data.Dataset or a keras.utils.PyDataset"

Loss = Callable[[Any, Any], Any]
"""(labels, outputs) of a batch -> loss of each example [b]."""


class Examples:
    """Labelled examples that can be read repeatedly, in the same order each time."""

    def __init__(self, data: Any, what: str) -> None:
        """`data`: arrays (x, y), a batched tf.data.Dataset or a keras.utils.PyDataset. `what`: its name in errors.

        Raises UserError for anything else.
        """
        self.what = what
        self._data = data
        if isinstance(data, (tuple, list)):
            self._data = _arrays(data, what)
        elif isinstance(data, tf.data.Dataset):
            if data.cardinality() == tf.data.INFINITE_CARDINALITY:
                raise UserError(f"{what} is a dataset that never ends. Fix: leave out repeat(), or add take(...).")
        elif not isinstance(data, keras.utils.PyDataset):
            once = ", which can be read only once" if isinstance(data, Iterator) else ""
            raise UserError(f"{what} is of type {type(data).__name__}{once}. Fix: pass {DATA}.")

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Examples and labels of each batch. Raises UserError for a batch without labels."""
        if isinstance(self._data, tuple):
            x, y = self._data
            yield from ((x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH))
            return
        source = self._data if isinstance(self._data, tf.data.Dataset) else (self._data[i] for i in range(len(self._data)))
        for batch in source:
            yield labelled(batch, self.what)

    def evaluate(self, infer: Callable[[Any], Any], loss: Loss) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Losses [n], outputs [n, ...] and labels [n, ...]. Raises UserError if the model cannot evaluate the examples."""
        results = []
        for x, y in self.batches():
            try:
                outputs = infer(tf.convert_to_tensor(x))
                losses = np.asarray(loss(tf.convert_to_tensor(y), outputs), float)
            except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
                shapes = f"x of shape {np.shape(x)} and y of shape {np.shape(y)}"
                raise UserError(
                    f"The model cannot evaluate a batch of {self.what} with {shapes}: {str(error).splitlines()[0]}. "
                    "Fix: pass batches in the form that the model is trained on."
                ) from error
            if losses.shape != (len(y),):
                raise UserError(
                    f"The model's loss on {self.what} has shape {losses.shape} for {len(y)} examples. "
                    "Fix: use a loss that is computed for each example."
                )
            results.append((losses, np.asarray(outputs), np.asarray(y)))
        if not results:
            raise UserError(f"{self.what} contains no batch. Fix: pass at least one labelled example.")
        losses, outputs, labels = (np.concatenate(values) for values in zip(*results, strict=True))
        return losses, outputs, labels


def _arrays(data: Sequence[Any], what: str) -> tuple[np.ndarray, np.ndarray]:
    """The arrays (x, y), checked; raises UserError."""
    if len(data) not in (2, 3):
        raise UserError(f"{what} has {len(data)} parts. Fix: pass (x, y).")
    try:
        x, y = (np.asarray(values) for values in data[:2])
        numeric = x.dtype != object and y.dtype != object
    except ValueError:  # lists of different lengths
        numeric = False
    if not numeric:
        raise UserError(
            f"{what} does not consist of two arrays of numbers; only models with one input and one output are supported. "
            "Fix: pass x and y as one numeric array each."
        )
    if not x.ndim or len(x) != len(np.atleast_1d(y)) or not len(x):
        raise UserError(
            f"{what} has x of shape {x.shape} and y of shape {y.shape}. Fix: pass equally many examples and labels, at least 1."
        )
    return x, y


def labelled(batch: Any, what: str) -> tuple[Any, Any]:
    """Examples and labels of a batch as a dataset yields it. Raises UserError without labels, or with several inputs or outputs."""
    x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
    if y is None or isinstance(x, (dict, list, tuple)) or isinstance(y, (dict, list, tuple)):
        raise UserError(
            f"The batches of {what} are not pairs (x, y) of one array each; only models with one input and one output are "
            "supported. Fix: yield (x, y)."
        )
    return x, y


def loss_of(model: keras.Model) -> Loss:
    """The per-example loss that `model` was compiled with, averaged over further axes. Raises UserError without exactly one."""
    if not isinstance(model, keras.Model):
        raise UserError(f"model is of type {type(model).__name__}. Fix: pass a keras.Model.")
    given = getattr(model, "loss", None)
    if given is None or isinstance(given, (dict, list, tuple)):
        raise UserError(
            f"The model was not compiled with exactly one loss, but with {given!r}. "
            "Fix: compile it with one loss, such as loss='sparse_categorical_crossentropy'."
        )
    found = keras.losses.get(given)
    each = found.call if isinstance(found, keras.losses.Loss) else found

    def loss(labels: Any, outputs: Any) -> Any:
        if labels.ndim == outputs.ndim - 1 and outputs.shape[-1] == 1:
            labels = labels[..., None]
        values = tf.convert_to_tensor(each(labels, outputs))
        return tf.reduce_mean(tf.reshape(values, [tf.shape(values)[0], -1]), -1)

    return loss


def classes(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray | None:
    """Class number of each example [n]; None if `labels` are not classes. `labels` [n, ...], `outputs` [n, K or 1]."""
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
    """Label, predicted class and its probability of single examples; empty if they have no classes. `known`: from `classes`."""
    if known is None or not len(numbers):
        return {}
    p = probabilities(outputs[list(numbers)])
    return {i: (str(known[i]), str(row.argmax()), float(row.max())) for i, row in zip(numbers, p, strict=True)}


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """Class probabilities [n, K] from a network's outputs [n, K or 1], which are probabilities or logits."""
    if outputs.shape[1] == 1:
        p = outputs if outputs.min() >= 0 and outputs.max() <= 1 else 1 / (1 + np.exp(-outputs.astype(float)))
        return np.concatenate([1 - p, p], 1)
    if outputs.min() >= 0 and np.allclose(outputs.sum(1), 1, atol=1e-2):
        return outputs
    powers = np.exp(outputs.astype(float) - outputs.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))
