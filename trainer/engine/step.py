"""One synchronous update over all workers, and sums over them. The only door to tf.distribute.

A step is two parts. In the replica's context: forward, backward, and one sum of the gradients and of a few numbers over all
workers. Outside of it: the optimizer, which every worker applies to the same sums; so the weights stay equal bit for bit, and
Keras' optimizer, which would sum a second time in the replica's context, does not. Variables are plain ones: every worker has
one replica.

Shapes: b images of this worker, B of the global batch (b times the workers), H W C one image, K classes.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from trainer import UserError, config
from trainer.data.augmentation import augment
from trainer.data.loader import Batch
from trainer.engine.group import Group
from trainer.model import question
from trainer.model.layers import Place


class StepStats(NamedTuple):
    """What one step tells, equal on all workers; scalars."""

    loss: Any
    """Mean cross-entropy of the global batch in nats, in training mode, before the update."""
    correct: Any
    """Images of the global batch whose class was predicted."""
    gradient_norm: Any
    """L2 norm of the global gradient."""
    local_gradient_square: Any
    """Mean over the workers of the squared L2 norm of each worker's own mean gradient: with the global norm, the two batch
    sizes from which the gradient noise scale follows."""
    update_norm: Any
    """L2 norm of the change of the trainable weights."""
    stop: Any
    """Number of workers that asked to stop."""
    save: Any
    """Number of workers that asked for a checkpoint."""


class Learner:
    """Network, optimizer and the compiled functions that move and evaluate them; the same on every worker."""

    def __init__(self, group: Group, settings: config.Settings, shape: tuple[int, int, int], classes: int) -> None:
        self.group = group
        self.settings = settings
        self.shape = shape
        if settings.model.precision != "float32":
            keras.config.set_dtype_policy(settings.model.precision)
        self.optimizer = keras.optimizers.Adam(settings.training.learning_rate, name="adam")
        place = Place(settings.run.seed, group.rank, self.optimizer.iterations)
        self._synchronized = settings.model.batch_normalization == "synchronized"
        reduce = group.all_reduce if self._synchronized else None
        self.model = question.build(shape, classes, settings.model, seed=settings.run.seed, place=place, reduce=reduce)
        self.optimizer.build(self.model.trainable_variables)
        self.resident: tf.Tensor | None = None
        """uint8 [N, H, W, C]: set it to feed row numbers instead of pixels."""
        self._train = tf.function(self._train_step)
        self._evaluate = tf.function(self._evaluate_batch, reduce_retracing=True)
        self._move = tf.function(self._move_statistics)
        self._judge = tf.function(self._judge_batch)

    def train(self, batch: Batch, *, stop: bool = False, save: bool = False) -> StepStats:
        """One update with this worker's part of a global batch; all workers call it together. Tensors, not yet waited for."""
        return self._train(batch, tf.constant([stop, save], tf.float32))

    def evaluate(self, images: np.ndarray | tf.Tensor, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inference mode, this worker alone: pixels uint8 [n, H, W, C] or resident rows int64 [n], labels int [n] ->
        cross-entropy in nats [n] and probabilities [n, K], float32."""
        losses, probabilities = self._evaluate(tf.convert_to_tensor(images), tf.convert_to_tensor(labels, tf.int32))
        return losses.numpy(), probabilities.numpy()

    def move_statistics(self, batch: Batch, *, dropout: bool) -> None:
        """BatchNormalization's moving statistics take this batch in, as in training, with dropout on or off; nothing else
        changes. All workers call it together."""
        self._move(batch, dropout)
        self.average_statistics()

    def batch_losses(self, batch: Batch) -> np.ndarray:
        """Inference mode: cross-entropy in nats [B] of a global batch, of which each worker hands in its part; equal on all."""
        part = self.settings.training.batch_size // self.group.size
        losses = np.zeros(self.settings.training.batch_size, np.float32)
        losses[self.group.rank * part : (self.group.rank + 1) * part] = self._judge(batch).numpy()
        return self.group.sum(losses)

    def average_statistics(self) -> None:
        """Makes BatchNormalization's moving statistics equal on all workers where each keeps its own."""
        if self.group.size > 1 and not self._synchronized:
            for variable in self.model.non_trainable_variables:
                if "float" in variable.dtype:  # not the dropouts' seeds
                    variable.assign(self.group.sum(variable.numpy()) / self.group.size)

    def checksum(self) -> float:
        """Of all weights and moving statistics: equal on all workers as long as they hold the same."""
        return float(sum(np.abs(variable.numpy(), dtype=np.float64).sum() for variable in self.model.weights))

    def state(self) -> dict[str, np.ndarray]:
        """A copy of everything that training changes: weights, statistics, optimizer; names are paths in the model."""
        return {name: variable.numpy().copy() for name, variable in self._variables().items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Takes a `state` over, but for the learning rate, which is the configured one. Raises UserError when it is of another
        network."""
        variables = self._variables()
        wrong = [name for name in variables.keys() | state.keys() if _shape(variables.get(name)) != _shape(state.get(name))]
        if wrong:
            name = min(wrong)
            raise UserError(
                f"the checkpoint is of another network: {name} has shape {_shape(state.get(name))} there and "
                f"{_shape(variables.get(name))} here; use the run's own configuration or another run.name"
            )
        for name, variable in variables.items():
            variable.assign(state[name])
        self.optimizer.learning_rate = self.settings.training.learning_rate

    def _variables(self) -> dict[str, keras.Variable]:
        model_variables = {f"model/{variable.path}": variable for variable in self.model.weights}
        return model_variables | {f"optimizer/{variable.path}": variable for variable in self.optimizer.variables}

    def _pixels(self, images: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.resident, images) if images.dtype == tf.int64 else images

    def _input(self, pixels: tf.Tensor) -> tf.Tensor:
        """uint8 [b, H, W, C] -> what the network takes."""
        x = tf.cast(pixels, tf.float32)
        return tf.transpose(x, (0, 3, 1, 2)) if self.settings.model.data_format == "channels_first" else x

    def _train_step(self, batch: Batch, asks: tf.Tensor) -> StepStats:
        weights = [variable.value for variable in self.model.trainable_variables]
        *gradients, numbers = self.group.run(self._forward_backward, batch, asks)
        before = [tf.identity(weight) for weight in weights]
        with tf.control_dependencies(before):
            self.optimizer.apply(gradients)
        loss, correct, local_square, stop, save = tf.unstack(numbers)
        return StepStats(
            loss=loss,
            correct=correct,
            gradient_norm=tf.linalg.global_norm(gradients),
            local_gradient_square=local_square * self.group.size,  # each worker's gradient is of its share of the global mean
            update_norm=tf.linalg.global_norm([tf.convert_to_tensor(now) - was for now, was in zip(weights, before, strict=True)]),
            stop=stop,
            save=save,
        )

    def _forward_backward(self, batch: Batch, asks: tf.Tensor) -> list[tf.Tensor]:
        x = self._augmented(batch)
        with tf.GradientTape() as tape:
            logits = self.model(x, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch.labels, logits)
            loss = tf.reduce_sum(losses) / self.settings.training.batch_size
        gradients = tape.gradient(loss, [variable.value for variable in self.model.trainable_variables])
        correct = tf.reduce_sum(tf.cast(tf.argmax(logits, -1, tf.int32) == batch.labels, tf.float32))
        square = tf.linalg.global_norm(gradients) ** 2
        numbers = tf.stack([tf.cast(number, loss.dtype) for number in (loss, correct, square, *tf.unstack(asks))])
        return self.group.all_reduce([*gradients, numbers])

    def _augmented(self, batch: Batch) -> tf.Tensor:
        """What the network is trained on."""
        pixels = self._pixels(batch.images)
        if self.settings.pipeline.flip or self.settings.pipeline.shift:
            pixels = augment(pixels, batch.changes)
        return self._input(pixels)

    def _move_statistics(self, batch: Batch, dropout: bool) -> None:
        def forward(batch: Batch) -> None:
            x = self._augmented(batch)
            for layer in self.model.layers:
                if isinstance(layer, keras.layers.BatchNormalization):
                    x = layer(x, training=True)
                elif isinstance(layer, keras.layers.Dropout):
                    x = layer(x, training=dropout)
                else:
                    x = layer(x)

        self.group.run(forward, batch)

    def _judge_batch(self, batch: Batch) -> tf.Tensor:
        logits = self.model(self._augmented(batch), training=False)
        return tf.cast(tf.nn.sparse_softmax_cross_entropy_with_logits(batch.labels, logits), tf.float32)

    def _evaluate_batch(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = self.model(self._input(self._pixels(images)), training=False)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.cast(losses, tf.float32), tf.cast(tf.nn.softmax(logits), tf.float32)


def _shape(array: Any) -> tuple[int, ...] | None:
    return None if array is None else tuple(array.shape)
