"""The model in training, on all workers together, as a `Network` for the probes of the diagnosis.

Shapes: n validation images, B images of a global batch, k batches, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import keras
import numpy as np

from trainer.data.loader import Batch, Feed
from trainer.engine.step import Learner

Weights = list[np.ndarray]
"""All weights of the model, moving statistics included."""


class DistributedNetwork:
    """Implements spikewise.probes.Network. All workers must call the same methods in the same order."""

    def __init__(self, learner: Learner, feed: Feed, evaluate: Callable[[], np.ndarray]) -> None:
        """`evaluate()`: losses [n] of the validation images, on all workers together."""
        self._learner = learner
        self._feed = feed
        self.evaluate = evaluate
        self._variables = learner.model.weights
        self.statistics: Sequence[int] = [i for i, variable in enumerate(self._variables) if variable.name.startswith("moving_")]
        self._momentum = {
            variable.path: layer.momentum
            for layer in learner.model.layers
            if isinstance(layer, keras.layers.BatchNormalization)
            for variable in (layer.moving_mean, layer.moving_variance)
        }
        self.drops = any(isinstance(layer, keras.layers.Dropout) and layer.rate > 0 for layer in learner.model.layers)
        self._epoch = 0

    def begin(self, epoch: int) -> None:
        """Call it when an epoch begins: batch numbers then refer to this epoch."""
        self._epoch = epoch

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """A context that restores weights, moving statistics and optimizer when it ends. Random state needs no restoring, because
        it is a function of the optimizer's step count."""
        state = self._learner.state()
        try:
            yield
        finally:
            self._learner.restore(state)

    def weights(self) -> Weights:
        """A copy of all weights."""
        return [variable.numpy().copy() for variable in self._variables]

    def assign(self, weights: Weights) -> None:
        """Writes all weights, in the order of `weights()`."""
        for variable, value in zip(self._variables, weights, strict=True):
            variable.assign(value)

    def moments(self, batches: Sequence[int], *, dropout: bool) -> list[np.ndarray]:
        """The moments of these batches under the current weights that each of `statistics` would be updated with: [k, C] each."""
        moving = [self._variables[i] for i in self.statistics]
        iterations = self._learner.optimizer.iterations
        first = (self._epoch - 1) * self._feed.steps
        found: list[list[np.ndarray]] = [[] for _ in moving]
        for number in batches:
            for variable in moving:  # from zero, one step leaves (1 - momentum) times the batch's moments
                variable.assign(np.zeros(variable.shape))
            iterations.assign(first + number)  # selects the dropout masks that were used in training
            self._learner.move_statistics(self._batch(number), dropout=dropout)
            for values, variable in zip(found, moving, strict=True):
                values.append(variable.numpy() / np.float32(1 - self._momentum[variable.path]))
        return [np.array(values) for values in found]

    def batch_losses(self, batch: int) -> np.ndarray:
        """Losses [B] of one of the epoch's batches, augmented as in training, in inference mode."""
        return self._learner.batch_losses(self._batch(batch))

    def _batch(self, number: int) -> Batch:
        return next(self._feed.batches(self._epoch, number))
