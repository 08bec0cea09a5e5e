"""Checks the examples that a Keras user passes to the diagnosis, and brings them into one form.

Shapes: n examples, b examples of a batch, K outputs.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spikewise.errors import UserError

BATCH = 32
"""Batch size in which arrays are evaluated, unless another is given: that of `model.evaluate`."""
DATA = "arrays (x, y), a batched tf.data.Dataset or a keras.utils.PyDataset"


class Examples:
    """Labelled examples that can be read repeatedly, in the same order each time."""

    def __init__(self, data: Any, what: str, batch_size: int = BATCH) -> None:
        """`data`: arrays (x, y) or (x, y, sample_weight), a batched tf.data.Dataset or a keras.utils.PyDataset. `what`: its name in
        errors. `batch_size`: that of arrays.

        Raises UserError for anything else.
        """
        self.what = what
        self.weighted = False
        """Whether the examples have weights; known once they were read."""
        self.weight = 1.0
        """Their mean weight; known once they were evaluated."""
        self._data, self._size = data, batch_size
        if isinstance(data, (tuple, list)):
            self._data = _arrays(data, what)
        elif isinstance(data, tf.data.Dataset):
            if data.cardinality() == tf.data.INFINITE_CARDINALITY:
                raise UserError(f"{what} is a dataset that never ends. Fix: leave out repeat(), or add take(...).")
        elif isinstance(data, keras.utils.PyDataset):
            if data.num_batches is None:
                raise UserError(f"{what} is a PyDataset that never ends. Fix: return its number of batches from __len__.")
        else:
            once = ", which can be read only once" if isinstance(data, Iterator) else ""
            raise UserError(f"{what} is of type {type(data).__name__}{once}. Fix: pass {DATA}.")

    def batches(self) -> Iterator[tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]]:
        """Examples, labels and sample weights (None without them) of each batch. Raises UserError for a batch without labels."""
        for batch in self._read():
            x, y, weights = labelled(batch, self.what)
            self.weighted = weights is not None
            yield x, y, weights

    def check_order(self, before: tuple[bytes, bytes]) -> None:
        """Reads all examples once more. Raises UserError if their digests are not those from `before`."""
        if isinstance(self._data, tuple):
            return
        order = Order()
        for x, y, _ in self.batches():
            order.update(x, y)
        labels, examples = order.digests
        if labels == before[0] and examples != before[1]:
            raise UserError(
                f"{self.what} has other examples each time it is read, as random augmentation makes them, or another order. "
                "Fix: add .cache() to the dataset, or leave out augmentation and shuffle() where it is made."
            )
        if labels != before[0]:
            raise UserError(
                f"{self.what} is in a different order each time it is read. Fix: add .cache() to the dataset, or leave out "
                "shuffle() where it is made. Do not combine shuffle=False with validation_split: that leaves only the last classes."
            )

    def unfit(self, x: Any, y: Any, why: str) -> UserError:
        """The error that the model cannot evaluate a batch."""
        shapes = f"x of shape {np.shape(x)} and y of shape {np.shape(y)}"
        return UserError(
            f"The model cannot evaluate a batch of {self.what} with {shapes}: {_first_line(why)}. "
            "Fix: pass batches in the form that the model is trained on."
        )

    def _read(self) -> Iterator[Any]:
        data = self._data
        if isinstance(data, tuple):
            for i in range(0, len(data[0]), self._size):
                yield tuple(_as_keras_reads(part[i : i + self._size]) for part in data)
        elif isinstance(data, tf.data.Dataset):
            yield from data
        else:  # as Keras reads it
            data.on_epoch_begin()
            for i in range(data.num_batches):
                yield data[i]
            data.on_epoch_end()


class Order:
    """Recognizes examples that come in another order, or are others: digests of all labels, and of the first example of each
    batch."""

    def __init__(self) -> None:
        self._labels, self._examples = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)

    def update(self, x: Any, y: Any) -> None:
        """Adds the next batch."""
        self._labels.update(np.asarray(y).tobytes())
        self._examples.update(np.asarray(x[:1]).tobytes())

    @property
    def digests(self) -> tuple[bytes, bytes]:
        """Of the labels and of the examples."""
        return self._labels.digest(), self._examples.digest()


def _first_line(text: str) -> str:
    return next((line.strip().rstrip(".") for line in text.splitlines() if line.strip()), "no reason given")


def _as_keras_reads(values: np.ndarray) -> np.ndarray:
    """Keras converts all floating-point arrays to one precision."""
    return values.astype(keras.backend.floatx()) if values.dtype.kind == "f" else values


def _arrays(data: Sequence[Any], what: str) -> tuple[np.ndarray, ...]:
    """The arrays (x, y) or (x, y, sample_weight), checked; raises UserError."""
    if len(data) not in (2, 3):
        raise UserError(f"{what} has {len(data)} parts. Fix: pass (x, y) or (x, y, sample_weight).")
    try:
        arrays = tuple(np.asarray(values) for values in data if values is not None)
        numeric = len(arrays) > 1 and all(values.dtype != object for values in arrays)
    except ValueError:  # lists of different lengths
        numeric = False
    if not numeric:
        raise UserError(
            f"{what} does not consist of arrays of numbers; only models with one input and one output are supported. "
            "Fix: pass x and y as one numeric array each."
        )
    if not all(values.ndim for values in arrays) or len({len(values) for values in arrays}) != 1 or not len(arrays[0]):
        parts = zip(("x", "y", "sample_weight"), arrays, strict=False)
        shapes = " and ".join(f"{name} of shape {values.shape}" for name, values in parts)
        raise UserError(f"{what} has {shapes}. Fix: pass equally many examples, labels and weights, at least 1.")
    return arrays


def labelled(batch: Any, what: str) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """Examples, labels and sample weights (or None) of a batch as a dataset yields it. Raises UserError without labels, or with
    several inputs or outputs."""
    parts = batch if isinstance(batch, (tuple, list)) else (batch,)
    x, y, weights = (*parts, None, None)[:3]
    kinds = (dict, list, tuple, tf.RaggedTensor, tf.SparseTensor)
    if len(parts) > 3 or y is None or any(isinstance(part, kinds) for part in (x, y, weights)):
        raise UserError(
            f"The batches of {what} are not pairs (x, y) of one dense array each; only models with one input and one output are "
            "supported. Fix: yield (x, y) or (x, y, sample_weight)."
        )
    return tf.convert_to_tensor(x), tf.convert_to_tensor(y), None if weights is None else tf.convert_to_tensor(weights)


def classes(labels: np.ndarray, outputs: Sequence[int]) -> np.ndarray | None:
    """Class number of each example [b]; None if `labels` [b, ...] are not classes. `outputs`: shape of the model's outputs."""
    if len(outputs) != 2 or not np.issubdtype(labels.dtype, np.number):
        return None
    if labels.shape == tuple(outputs) and outputs[1] > 1:
        return labels.argmax(1) if np.allclose(labels.sum(1), 1) else None
    if labels.size != outputs[0]:
        return None
    flat = labels.reshape(-1)
    fits = np.all(flat == np.round(flat)) and flat.min() >= 0 and flat.max() < max(outputs[1], 2)
    return flat.astype(int) if fits else None


def predicted(known: np.ndarray | None, found: dict[int, np.ndarray]) -> dict[int, tuple[str, str, float]]:
    """Label, predicted class and its probability of single examples; empty without classes. `known`: from `classes`; `found`: class
    probabilities [K], by example."""
    return {i: (str(known[i]), str(p.argmax()), float(p.max())) for i, p in found.items()} if known is not None else {}


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """Class probabilities [b, K] from a network's outputs [b, K or 1], which are probabilities or logits."""
    outputs = outputs.astype(float)
    if outputs.shape[1] == 1:
        p = outputs if outputs.min() >= 0 and outputs.max() <= 1 else 1 / (1 + np.exp(-outputs))
        return np.concatenate([1 - p, p], 1)
    if outputs.min() >= 0 and np.allclose(outputs.sum(1), 1, atol=1e-2):
        return outputs
    powers = np.exp(outputs - outputs.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))
