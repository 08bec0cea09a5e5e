"""The model in training, on all workers together, as a `Network` for the probes of the diagnosis.

Shapes: n validation images, B images of a global batch, k batches, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from spikewise.keras.network import beta_2, layer_of
from trainer.data.loader import Batch, Feed
from trainer.engine.evaluate import evaluate
from trainer.engine.step import Learner

PRECISE_IMAGES = 10_000
"""Largest number of training images that precise statistics are estimated on. Wu & Johnson (2021) find 1,000 to 10,000 enough."""
Weights = list[np.ndarray]
"""All weights of the model, moving statistics included."""


class DistributedNetwork:
    """Implements spikewise.probes.Network. All workers must call the same methods in the same order.

    With precise statistics or averaged weights, the network that is evaluated is not the one that is trained: `weights` are then
    those that are evaluated, and `evaluate` estimates their statistics first, so the moving statistics do not count.
    """

    def __init__(self, learner: Learner, feed: Feed, validation: np.ndarray, sample: np.ndarray, *, precise: bool = False) -> None:
        """`validation` [n], `sample` [m]: row numbers of the validation images and of the fixed sample of training images.
        `precise`: whether statistics are estimated anew before each evaluation; always so with averaged weights."""
        self._learner = learner
        self._feed = feed
        self._validation = validation
        self._sample = sample
        self._precise = precise or bool(learner.averages)
        self._variables = learner.model.weights
        self._epoch = 0

    @property
    def drops(self) -> bool:
        return any(layer.rate > 0 for layer in self._learner.network.dropouts)

    @property
    def statistics(self) -> Sequence[int]:
        """Indices of the moving statistics among the weights."""
        if self._precise:
            return []
        places = {id(variable): i for i, variable in enumerate(self._variables)}
        return [places[id(variable)] for variable, _ in self._learner.moving]

    @property
    def kept(self) -> Sequence[float]:
        """The fraction of each of the m single moving statistics that a step keeps."""
        if self._precise:
            return []
        return [momentum for variable, momentum in self._learner.moving for _ in range(int(np.prod(variable.shape)))]

    @property
    def layers(self) -> Sequence[str]:
        """The name of the layer of each of `statistics`."""
        return [] if self._precise else [layer_of(variable) for variable, _ in self._learner.moving]

    def evaluate(self) -> np.ndarray:
        """Losses [n] of the validation images, as the run evaluates them."""
        self._estimate_statistics()
        return evaluate(self._learner, self._feed, self._validation)[0]

    def evaluate_part(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions [v] of at most `most` validation images, the same ones each time, and their losses [v]; statistics that are
        estimated anew are estimated on few batches."""
        positions = _spread(len(self._validation), most)
        self._estimate_statistics(most)
        return positions, evaluate(self._learner, self._feed, self._validation[positions])[0]

    def sample_part(self, most: int) -> np.ndarray:
        """Losses [t] of at most `most` images of the fixed training sample, the same ones each time, with the model as it is."""
        return evaluate(self._learner, self._feed, self._sample[_spread(len(self._sample), most)])[0]

    def inputs(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 [v, H, W, C] and [t, H, W, C] of the images of `evaluate_part` and `sample_part`."""
        take, parts = self._feed.rows.images.take, (self._validation, self._sample)
        validation, training = (take(rows[_spread(len(rows), most)]) for rows in parts)
        return validation, training

    def evaluate_changed(self, most: int, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """As the losses [v] of `evaluate_part`, with the pixels [b, H, W, C] of each batch changed first."""
        positions = _spread(len(self._validation), most)
        self._estimate_statistics(most)
        return evaluate(self._learner, self._feed, self._validation[positions], change)[0]

    def agreed(self, value: float) -> float:
        """The first worker's value on all of them."""
        group = self._learner.group
        return float(group.sum(np.array([value if group.rank == 0 else 0.0], np.float32))[0])

    def probabilities(self) -> np.ndarray:
        """Probabilities of the classes [n, K] for the validation images, as the run evaluates them."""
        self._estimate_statistics()
        return evaluate(self._learner, self._feed, self._validation)[1]

    def evaluate_in_float32(self) -> np.ndarray | None:
        """Losses [n] of the validation images with all layers in float32; None if they compute in float32 anyway."""
        if not self._learner.reduced:
            return None
        with self._learner.in_float32():
            return self.evaluate()

    @property
    def beta_2(self) -> float:
        """Decay of the second moments of Adam and its relatives; NaN with another optimizer."""
        return beta_2(self._learner.optimizer)

    @property
    def loss_scale(self) -> float:
        """NaN: the job does not train in float16."""
        return np.nan

    @contextmanager
    def as_evaluated(self) -> Iterator[None]:
        """A context in which the model has the weights and statistics that are evaluated and exported. The learner remembers the
        statistics; everything else is restored when the context ends."""
        if not self._precise:
            yield
            return
        state = self._learner.state()
        try:
            self.assign(self.weights())
            self._estimate_statistics()
            found = [variable.numpy().copy() for variable, _ in self._learner.moving]
            yield
        finally:
            self._learner.restore(state)
        self._learner.statistics = found

    def _estimate_statistics(self, images: int = PRECISE_IMAGES) -> None:
        """Replaces the moving statistics by those of at most `images` of the epoch's training images under the current weights,
        without dropout: the mean and the variance of all of them together (Wu & Johnson 2021, PreciseBN)."""
        moving = [variable for variable, _ in self._learner.moving]
        if not self._precise or not moving:
            return
        count = min(self._feed.steps, max(images // self._learner.batch_size, 1))
        batches = [int(i) for i in np.linspace(0, self._feed.steps - 1, count)]
        moments = self.moments(batches, dropout=False)
        for (mean, variance), (means, variances) in zip(_pairs(moving), _pairs(moments), strict=True):
            means, variances = means.astype(np.float64), variances.astype(np.float64)
            mean.assign(means.mean(0))
            variance.assign(variances.mean(0) + means.var(0))

    def begin(self, epoch: int) -> None:
        """Call it when an epoch begins: batch numbers then refer to this epoch."""
        self._epoch = epoch

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """A context that restores weights, moving statistics, optimizer and random state when it ends."""
        state = self._learner.state()
        try:
            yield
        finally:
            self._learner.restore(state)

    def weights(self) -> Weights:
        """A copy of all weights; of those that are averaged, the averages. All workers must call it together."""
        averaged = zip(self._learner.model.trainable_variables, self._learner.averages, strict=False)
        source = {id(variable): average for variable, average in averaged}
        found = [source.get(id(variable), variable).numpy().copy() for variable in self._variables]
        for position in self.statistics:  # within an epoch, workers may have their own, but must come to the same diagnosis
            found[position] = self._learner.average(found[position])
        return found

    def assign(self, weights: Weights) -> None:
        """Writes all weights, in the order of `weights()`."""
        for variable, value in zip(self._variables, weights, strict=True):
            variable.assign(value)

    def moments(self, batches: Sequence[int], *, dropout: bool) -> list[np.ndarray]:
        """The moments of these batches under the current weights that each of the moving statistics would be updated with: [k, C]
        each."""
        moving = self._learner.moving
        iterations = self._learner.optimizer.iterations
        before, first = int(iterations), (self._epoch - 1) * self._feed.steps
        found: list[list[np.ndarray]] = [[] for _ in moving]
        for number in batches:
            for variable, _ in moving:  # from zero, one step leaves (1 - momentum) times the batch's moments
                variable.assign(np.zeros(variable.shape))
            iterations.assign(first + number)  # selects the dropout masks that were used in training
            self._learner.move_statistics(self._batch(number), dropout=dropout)
            for values, (variable, momentum) in zip(found, moving, strict=True):
                moved = variable.numpy()
                values.append(moved / moved.dtype.type(1 - momentum))
        iterations.assign(before)
        return [np.array(values) for values in found]

    def batch_losses(self, batch: int) -> np.ndarray:
        """Losses [B] of one of the epoch's batches, augmented as in training, in inference mode."""
        return self._learner.batch_losses(self._batch(batch))

    def batch_classes(self, batches: Sequence[int]) -> list[np.ndarray]:
        """Class number of each image [B] of these batches of the epoch."""
        return list(self._feed.labels(self._epoch)[list(batches)])

    def _batch(self, number: int) -> Batch:
        return next(self._feed.batches(self._epoch, number))


def _spread(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers 0 to `count` - 1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)) if count else np.zeros(0, int)


def _pairs(values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Mean and variance of each layer."""
    return zip(values[::2], values[1::2], strict=True)
