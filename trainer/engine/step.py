"""One synchronous training step over all workers, and inference on one of them.

A step has two parts. In the replica context: the forward pass, the backward pass, and one all-reduce of the gradients and a few
numbers. Outside of it: the optimizer, which every worker applies to the same sums. The weights therefore stay identical to the last
bit, and Keras' optimizer does not reduce the gradients a second time, as it would in the replica context. Every worker has one
replica, so the variables are ordinary ones.

Shapes: b images of this worker's part of a global batch, B images of the global batch (b times the number of workers),
H W C one image, K classes, N resident images, s steps.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from spikewise.keras.network import REDUCED, in_float32
from trainer import UserError, config
from trainer.data.augmentation import augment
from trainer.data.loader import EVALUATION_BATCH, Batch
from trainer.engine.group import Group
from trainer.model import load, optimizer
from trainer.model.distribute import distribute
from trainer.model.layers import Place


class StateError(UserError):
    """A state belongs to another model."""


class StepStats(NamedTuple):
    """Scalar tensors that describe one step; the same on all workers."""

    loss: Any
    """Mean cross-entropy of the global batch in nats, in training mode, before the update; without regularization, label smoothing
    and class weights."""
    regularization: Any
    """What the network adds to the loss, such as L2 terms, in nats."""
    correct: Any
    """Number of images of the global batch whose class was predicted."""
    gradient_norm: Any
    """L2 norm of the global gradient."""
    update_norm: Any
    """L2 norm of the change of the trainable weights."""
    learning_rate: Any
    """Of this step."""


class Signals(NamedTuple):
    """How many workers raised each signal at a step, as scalar tensors; the same on all workers, so that all act on it together."""

    stop: Any
    """Save a checkpoint and end."""
    save: Any
    """Save a checkpoint."""


EVALUATED = "evaluated/"
"""Prefix of the statistics with which the last epoch was evaluated in a state."""
COMPILED_EVALUATION = 1024, 2**25
"""Most images and bytes of pixels in a batch of compiled evaluation. The layers' outputs may take a hundred times as many bytes."""
PREFIXES = ("model/", "optimizer/", EVALUATED)
"""Prefixes of all names in a state."""
STEP_RECORD = np.dtype([(name, np.float64) for name in StepStats._fields])
"""The record of one step: the values of its StepStats."""


def records(steps: Sequence[StepStats]) -> np.ndarray:
    """Waits for the tensors of `steps` and returns them as STEP_RECORD [s]."""
    return np.array([tuple(float(value) for value in stats) for stats in steps], STEP_RECORD)


def finite(steps: np.ndarray) -> np.ndarray:
    """STEP_RECORD [s] -> bool [s]: whether both the loss and the update of a step are finite."""
    return np.isfinite(steps["loss"]) & np.isfinite(steps["update_norm"])


class Learner:
    """The model, its optimizer, and the compiled functions that train and evaluate it; identical on every worker."""

    def __init__(
        self,
        group: Group,
        settings: config.Settings,
        shape: tuple[int, int, int],
        classes: int,
        *,
        steps: int,
        class_weights: np.ndarray | None = None,
    ) -> None:
        """`shape`: H W C. `steps` of an epoch. `class_weights` [K]: factors of the images' losses in training.

        Raises NetworkError, OptimizerError, and StoreError for initial weights that cannot be read.
        """
        self.group = group
        self.classes = classes
        """K."""
        self.batch_size = settings.training.batch_size
        """B."""
        self._smoothing = settings.training.label_smoothing
        self._class_weights = class_weights
        self._channels_first = settings.model.data_format == "channels_first"
        self._synchronized = settings.model.batch_normalization == "synchronized"
        self._augmentation = settings.augmentation
        self.optimizer = optimizer.build(settings.optimizer, epochs=settings.training.epochs, steps=steps)
        self.model = load.build(settings.model, shape, classes, seed=settings.run.seed)
        load.start_from(self.model, settings.model, settings.s3)
        load.freeze(self.model, settings.model.trainable)
        self._place = Place(settings.run.seed, group.rank, self.optimizer.iterations)
        self.network = distribute(
            self.model,
            place=self._place,
            reduce=group.all_reduce if self._synchronized else None,
            fused=settings.model.batch_normalization != "keras",
        )
        self.optimizer.build(self.model.trainable_variables)
        self.statistics: list[np.ndarray] | None = None
        """BatchNormalization's statistics with which the last epoch was evaluated, in the order of `moving`; None if these are the
        moving ones."""
        self.resident: tf.Tensor | None = None
        """uint8 [N, H, W, C]. Once it is set, batches hold row numbers instead of pixels."""
        self.evaluation_batch = EVALUATION_BATCH
        """Images of one batch of `infer`."""
        self._shape = shape
        self._pads = False
        self._traced = False
        self._train = tf.function(self.step, autograph=False)
        self._evaluate = tf.function(self._evaluate_batch, autograph=False, reduce_retracing=True)
        self._evaluate_in_float32 = tf.function(self._evaluate_batch, autograph=False, reduce_retracing=True)
        self._forward = tf.function(self._forward_batch, autograph=False)
        self._infer = tf.function(self._infer_batch, autograph=False)
        self._moving_values = tf.function(
            lambda: tf.concat([tf.reshape(tf.cast(variable.value, tf.float32), [-1]) for variable, _ in self.moving], 0),
            autograph=False,
        )

    @property
    def reduced(self) -> list[keras.Layer]:
        """The layers that compute with fewer bits than float32."""
        layers = self.model._flatten_layers(include_self=True, recursive=True)
        return [layer for layer in layers if layer.compute_dtype in REDUCED]

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """A context in which `evaluate` computes in float32; what training compiled stays as it is."""
        kept = self._evaluate
        self._evaluate = self._evaluate_in_float32
        try:
            with in_float32(self.reduced):
                yield
        finally:
            self._evaluate = kept

    @property
    def moving(self) -> list[tuple[keras.Variable, float]]:
        """BatchNormalization's moving statistics and the fraction of them that a step keeps, of the layers whose statistics move in
        training: a frozen layer, or one that a user's layer calls with training=False, does not move them."""
        if not self._traced:
            self._trace()
        return [
            (variable, layer.momentum**layer.moves)  # a network may call a layer more than once
            for layer in self.network.norms
            if layer.moves
            for variable in (layer.moving_mean, layer.moving_variance)
        ]

    def moving_values(self) -> tf.Tensor | None:
        """A copy of the moving statistics of `moving`, one after the other, float32 [m], without waiting for it; None if there
        are none."""
        return self._moving_values() if self.moving else None

    @property
    def moving_size(self) -> int:
        """Numbers in `moving_values`; 0 if there are none."""
        return sum(int(np.prod(variable.shape)) for variable, _ in self.moving)

    @contextmanager
    def under_xla(self, compiled: bool) -> Iterator[None]:
        """A context in which functions are traced that XLA compiles, if `compiled`."""
        for layer in self.network.norms:
            layer.under_xla = compiled
        try:
            yield
        finally:
            for layer in self.network.norms:
                layer.under_xla = False

    def assign_moving(self, values: np.ndarray | None) -> None:
        """Sets the moving statistics of `moving`, one after the other [m]; None leaves them."""
        if values is None:
            return
        parts = np.split(values, np.cumsum([int(np.prod(variable.shape)) for variable, _ in self.moving])[:-1])
        for (variable, _), part in zip(self.moving, parts, strict=True):
            variable.assign(part.reshape(variable.shape))

    def _trace(self) -> None:
        """Traces the model in training mode, without an update, so that the layers know whether they move."""
        image = tf.TensorSpec((1, *(size or 1 for size in self.model.inputs[0].shape[1:])), tf.float32)
        tf.function(self._call_in_training, autograph=False).get_concrete_function(image)

    def _call_in_training(self, x: tf.Tensor) -> tf.Tensor:
        """The model's outputs in training mode."""
        for layer in self.network.norms:
            layer.moves = 0
        outputs = self.model(x, training=True)
        self._traced = True
        return outputs

    @property
    def averages(self) -> list[keras.Variable]:
        """The moving averages of the trainable variables, in their order; empty without optimizer.ema."""
        return list(self.optimizer._model_variables_moving_average) if self.optimizer.use_ema else []

    def assume_evaluated(self) -> None:
        """Gives the model the weights and statistics with which the last epoch was evaluated."""
        for variable, average in zip(self.model.trainable_variables, self.averages, strict=False):
            variable.assign(average)
        for (variable, _), value in zip(self.moving, self.statistics or [], strict=False):
            variable.assign(value)

    def train(self, batch: Batch, *, stop: bool = False, save: bool = False) -> tuple[StepStats, Signals]:
        """One update with this worker's part of a global batch; `stop` and `save` raise this worker's signals.

        All workers must call it together. Returns tensors without waiting for them.
        """
        return self._train(batch, tf.constant([stop, save], tf.float32))

    def evaluate(self, images: np.ndarray | tf.Tensor, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inference mode, on this worker alone: pixels uint8 [n, H, W, C] or resident rows int64 [n], and labels int [n] ->
        cross-entropy in nats [n] and probabilities [n, K], float32."""
        losses, probabilities = self.infer(images, labels)
        return losses.numpy(), probabilities.numpy()

    def infer(self, images: np.ndarray | tf.Tensor, labels: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
        """`evaluate` without waiting for the results. Compiled, n is at most `evaluation_batch`."""
        count = len(labels)
        if self._pads:  # one shape, hence one compilation
            images, labels = (_padded(values, self.evaluation_batch) for values in (images, labels))
        losses, probabilities = self._evaluate(tf.convert_to_tensor(images), tf.convert_to_tensor(labels, tf.int32))
        return (losses[:count], probabilities[:count]) if self._pads else (losses, probabilities)

    def compile_evaluation(self) -> None:
        """Lets XLA compile `infer`, for large batches. Raises TensorFlow's errors if it cannot."""
        size = min(COMPILED_EVALUATION[0], max(COMPILED_EVALUATION[1] // int(np.prod(self._shape)), 1))
        in_own, in_float32 = (tf.function(self._evaluate_batch, autograph=False, jit_compile=True) for _ in range(2))
        images = np.zeros(size, np.int64) if self.resident is not None else np.zeros((size, *self._shape), np.uint8)
        in_own(tf.constant(images), tf.zeros(size, tf.int32))
        self._evaluate, self._evaluate_in_float32, self.evaluation_batch, self._pads = in_own, in_float32, size, True

    def move_statistics(self, batch: Batch, *, dropout: bool) -> None:
        """Updates BatchNormalization's moving statistics with this batch as training would, with dropout on or off, and changes
        nothing else. All workers must call it together."""
        self._forward(batch, dropout)
        self.average_statistics()

    def batch_losses(self, batch: Batch) -> np.ndarray:
        """Inference mode: cross-entropy in nats, float32 [B], of a global batch; each worker passes its part.

        All workers must call it together; all get the same result.
        """
        part = self.batch_size // self.group.size
        losses = np.zeros(self.batch_size, np.float32)
        losses[self.group.rank * part : (self.group.rank + 1) * part] = self._infer(batch).numpy()
        return self.group.sum(losses)

    def average_statistics(self) -> None:
        """Averages BatchNormalization's moving statistics over the workers where each worker keeps its own. All workers must call
        it together."""
        if self._separate:
            for variable in self.model.non_trainable_variables:
                if "float" in variable.dtype:  # not the seeds of dropout
                    variable.assign(self.average(variable.numpy()))

    def average(self, statistics: np.ndarray) -> np.ndarray:
        """The mean over the workers of moving statistics, where each worker keeps its own; else these statistics. All workers must
        call it together."""
        return self.group.sum(statistics) / self.group.size if self._separate else statistics

    @property
    def _separate(self) -> bool:
        """Whether each worker keeps its own moving statistics."""
        return self.group.size > 1 and (not self._synchronized or bool(self.network.own_statistics))

    def checksum(self) -> float:
        """Sum of the absolute values of all weights and moving statistics: differs between workers whose weights differ."""
        return float(sum(np.abs(variable.numpy(), dtype=np.float64).sum() for variable in self.model.weights))

    def state(self) -> dict[str, np.ndarray]:
        """A copy of everything that training changes: the model's variables, random state included, and the optimizer's. Model
        variables are named by number and path, because two layers may have the same path."""
        state = {name: variable.numpy().copy() for name, variable in self._variables().items()}
        return state | {f"{EVALUATED}{i:04d}": values.copy() for i, values in enumerate(self.statistics or [])}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Restores a `state`. The learning rate is not part of it: it is a function of the step.

        Averages that the state lacks begin with the weights. Raises StateError when the state belongs to another model.
        """
        state = dict(state)
        statistics = [state.pop(name) for name in sorted(state) if name.startswith(EVALUATED)]
        variables = self._variables()
        names = {id(variable): name for name, variable in variables.items()}
        for variable, average in zip(self.model.trainable_variables, self.averages, strict=False):
            if names[id(variable)] in state:
                state.setdefault(names[id(average)], state[names[id(variable)]])
        wrong = [name for name in variables.keys() | state.keys() if _shape(variables.get(name)) != _shape(state.get(name))]
        if wrong:
            name = min(wrong)
            raise StateError(
                f"The checkpoint belongs to another model: {name} has shape {_shape(state.get(name))} in the checkpoint and "
                f"{_shape(variables.get(name))} in this run. Fix: use the configuration that the run began with, or choose another "
                "run.name."
            )
        for name, variable in variables.items():
            variable.assign(state[name])
        self.statistics = statistics or None

    def _variables(self) -> dict[str, keras.Variable]:
        model_variables = {f"model/{i:04d}/{variable.path}": variable for i, variable in enumerate(self.model.variables)}
        return model_variables | {f"optimizer/{variable.path}": variable for variable in self.optimizer.variables}

    def _pixels(self, images: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.resident, images) if images.dtype == tf.int64 else images

    def _input(self, pixels: tf.Tensor) -> tf.Tensor:
        """uint8 [b, H, W, C] -> the model's input, float32 in the model's data format."""
        x = tf.cast(pixels, tf.float32)
        return tf.transpose(x, (0, 3, 1, 2)) if self._channels_first else x

    def step(self, batch: Batch, signals: tf.Tensor) -> tuple[StepStats, Signals]:
        """What one update consists of, for the functions that call it inside a tf.function. `signals`: stop and save, as 0 or 1,
        float32 [2]."""
        weights = [variable.value for variable in self.model.trainable_variables]
        *gradients, numbers = self.group.run(self._forward_backward, batch, signals)
        before = [tf.identity(weight) for weight in weights]
        learning_rate = tf.identity(tf.convert_to_tensor(self.optimizer.learning_rate))
        with tf.control_dependencies([*before, learning_rate]):
            self.optimizer.apply(gradients)
        loss, regularization, correct, stop, save = tf.unstack(numbers)
        stats = StepStats(
            loss=loss,
            regularization=regularization,
            correct=correct,
            gradient_norm=tf.linalg.global_norm(gradients),
            update_norm=tf.linalg.global_norm([tf.convert_to_tensor(now) - was for now, was in zip(weights, before, strict=True)]),
            learning_rate=learning_rate,
        )
        return stats, Signals(stop, save)

    def _forward_backward(self, batch: Batch, signals: tf.Tensor) -> list[tf.Tensor]:
        """The sums over all workers of the gradients, and of [loss, regularization, correct, stop, save]."""
        x = self._training_input(batch)
        with tf.GradientTape() as tape:
            logits = self.network.logits(self._call_in_training(x))
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch.labels, logits)
            loss = tf.reduce_sum(losses) / self.batch_size
            objective = loss
            if self._smoothing or self._class_weights is not None:
                objective = tf.reduce_sum(self._weighted(losses, logits, batch.labels)) / self.batch_size
            regularization = tf.zeros_like(loss)
            if added := self.model.losses:  # each worker has the mean over its part of the batch
                regularization = tf.add_n([tf.cast(one, loss.dtype) for one in added]) / self.group.size
                objective += regularization
        gradients = tape.gradient(
            objective,
            [variable.value for variable in self.model.trainable_variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]  # those of embeddings are sparse
        correct = tf.reduce_sum(tf.cast(tf.argmax(logits, -1, tf.int32) == batch.labels, tf.float32))
        numbers = tf.stack([tf.cast(number, loss.dtype) for number in (loss, regularization, correct, *tf.unstack(signals))])
        return self.group.all_reduce([*gradients, numbers])

    def _weighted(self, losses: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """The losses [b] with label smoothing (Szegedy et al. 2016) and class weights."""
        if self._smoothing:
            uniform = -tf.reduce_mean(tf.nn.log_softmax(logits), -1)
            losses = (1 - self._smoothing) * losses + self._smoothing * uniform
        if self._class_weights is not None:
            losses *= tf.gather(tf.constant(self._class_weights, losses.dtype), labels)
        return losses

    def _training_input(self, batch: Batch) -> tf.Tensor:
        """The model's input in training: the images of the batch, augmented."""
        pixels = self._pixels(batch.images)
        return self._input(augment(pixels, batch.changes, self._augmentation))

    def _forward_batch(self, batch: Batch, dropout: bool) -> None:
        """A forward pass in training mode, for its effect on the moving statistics."""
        self._place.dropping = dropout
        try:
            self.group.run(lambda batch: self._call_in_training(self._training_input(batch)), batch)
        finally:
            self._place.dropping = True

    def _infer_batch(self, batch: Batch) -> tf.Tensor:
        """Losses [b] of the batch as training feeds it, in inference mode."""
        logits = self.network.logits(self.model(self._training_input(batch), training=False))
        return tf.cast(tf.nn.sparse_softmax_cross_entropy_with_logits(batch.labels, logits), tf.float32)

    def _evaluate_batch(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = self.network.logits(self.model(self._input(self._pixels(images)), training=False))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.cast(losses, tf.float32), tf.cast(tf.nn.softmax(logits), tf.float32)


def _padded(values: Any, size: int) -> np.ndarray:
    """Repeats the values along the first axis until there are `size`."""
    return np.resize(values, (size, *np.shape(values)[1:])) if len(values) < size else values


def _shape(array: Any) -> tuple[int, ...] | None:
    return None if array is None else tuple(array.shape)
