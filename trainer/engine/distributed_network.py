"""The network in training as the diagnosis' probes see it (diagnosis.probes.Network), on all workers together.

Shapes: n validation images, B images of a global batch, k batches, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import keras
import numpy as np

from trainer.data.loader import Batch, Feed
from trainer.engine.step import Learner

Weights = list[np.ndarray]


class TrainedNetwork:
    """The loop tells which epoch it is in (`begin`); `weights` are those of the model, moving statistics among them."""

    def __init__(self, learner: Learner, feed: Feed, evaluate: Callable[[], np.ndarray]) -> None:
        """`evaluate()`: losses [n] of the validation images, by all workers."""
        self._learner = learner
        self._feed = feed
        self.evaluate = evaluate
        self._variables = learner.model.weights
        self.statistics: Sequence[int] = [i for i, variable in enumerate(self._variables) if variable.name.startswith("moving_")]
        self.drops = any(isinstance(layer, keras.layers.Dropout) and layer.rate > 0 for layer in learner.model.layers)
        self._epoch = 0

    def begin(self, epoch: int) -> None:
        """The batches that the probes ask for are those of this epoch."""
        self._epoch = epoch

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Inside, anything may be done; afterwards weights, statistics and optimizer are what they were. Randomness is a
        function of the optimizer's step count."""
        state = self._learner.state()
        try:
            yield
        finally:
            self._learner.restore(state)

    def weights(self) -> Weights:
        """A copy."""
        return [variable.numpy().copy() for variable in self._variables]

    def assign(self, weights: Weights) -> None:
        for variable, value in zip(self._variables, weights, strict=True):
            variable.assign(value)

    def moments(self, batches: Sequence[int], *, dropout: bool) -> list[np.ndarray]:
        """What these batches would add to each of `statistics`, with the weights as they are: [k, C] each."""
        moving = [self._variables[i] for i in self.statistics]
        left = np.float32(1 - self._learner.settings.model.momentum)
        iterations = self._learner.optimizer.iterations
        first = (self._epoch - 1) * self._feed.steps
        found: list[list[np.ndarray]] = [[] for _ in moving]
        for number in batches:
            for variable in moving:  # from zero, one step leaves (1 - momentum) of the batch's own moments
                variable.assign(np.zeros(variable.shape))
            iterations.assign(first + number)  # the masks with which this batch was trained on
            self._learner.move_statistics(self._batch(number), dropout=dropout)
            for values, variable in zip(found, moving, strict=True):
                values.append(variable.numpy() / left)
        return [np.array(values) for values in found]

    def batch_losses(self, batch: int) -> np.ndarray:
        """Losses [B] of one of the epoch's batches, as it was trained on, in inference mode."""
        return self._learner.batch_losses(self._batch(batch))

    def _batch(self, number: int) -> Batch:
        return next(self._feed.batches(self._epoch, number))
