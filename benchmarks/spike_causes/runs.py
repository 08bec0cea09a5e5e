"""Small training runs in one process, in plain TensorFlow, and the hooks through which an injection disturbs them.

The diagnosis sees the same as in a real run: per-example losses, step records, the network and the events that the run reports.
An injection changes fields of `Run` in the hooks of `Injection`. `Run.save` and `Run.load` let many injections start from one
healthy past.

Shapes: n validation images, m sampled training images, b images per batch, s steps, H W C one image, K classes.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from benchmarks.spike_causes.data import DATA
from spikewise.detect import Detector
from spikewise.diagnose import Diagnostician, News
from spikewise.keras.network import KerasNetwork
from spikewise.records import STEP, Event
from trainer.model.layers import BatchNormalization

DROPOUT = (0.25, 0.25, 0.5)
FROZEN = (keras.layers.Conv2D, keras.layers.BatchNormalization)
SETTLES = 8
"""Epochs after which the learning rate is lowered."""


@dataclass(frozen=True)
class Config:
    """All settings of a run except its injection."""

    data: str
    architecture: str
    seed: int
    learning_rate: float = 1e-3
    """Learning rate of the first epochs."""
    settled: float = 0.1
    """Factor by which the learning rate is multiplied after SETTLES epochs."""
    schedule: str = "steps"
    """"steps", "cosine" to 0 in 100 epochs, or "warm-up" over 10 epochs. The latter two ignore `settled`."""
    frozen: bool = False
    """Whether the convolutions and their BatchNormalization are frozen, as those of a pretrained backbone."""
    batch_size: int = 32
    momentum: float = 0.95
    training: int = 800
    validation: int = 400
    sample: int = 250


@dataclass
class Injection:
    """One kind of fault at one strength. It disturbs one epoch of a run that was healthy until then, or several (`patience`)."""

    strength: float

    name = ""
    cause = ""
    """The cause that the diagnosis should name: one of spikewise.causes.NAMES."""
    tune: ClassVar[tuple[float, float, float]] = (1, 1, 1)
    """Strengths in the tuning set: weak, medium, strong."""
    report: ClassVar[tuple[float, float, float]] = (1, 1, 1)
    """Strengths in the reporting set."""
    patience = 1
    """Number of epochs to disturb, unless an alarm comes first."""
    decoy = False
    """If true, half of the runs also report a harmless restart for the same epoch. The diagnosis must not blame it."""
    needs: ClassVar[tuple[tuple[str, Any], ...]] = ()
    """Fields of Config and their values that the run needs from its first epoch on."""

    def begin(self, run: "Run") -> None:
        """Called before the first step of a disturbed epoch."""

    def before_step(self, run: "Run", step: int) -> None:
        """Called before each step, counted from 0."""

    def after_step(self, run: "Run", step: int) -> None:
        """Called after each step, counted from 0."""

    def end(self, run: "Run") -> None:
        """Called after the last step, before the evaluation."""

    def evaluate(self, run: "Run") -> np.ndarray | None:  # noqa: ARG002
        """Replaces the evaluation: losses [n] of the validation images. None evaluates as usual. The diagnosis uses it too."""
        return None

    def evaluate_in_float32(self, run: "Run") -> np.ndarray | None:  # noqa: ARG002
        """Losses [n] in float32, if the injection evaluates in lower precision; None otherwise."""
        return None


def question(shape: tuple[int, ...], classes: int, momentum: float) -> keras.Model:
    """The question's network: convolution, ReLU, BatchNormalization; dropout after each pooling and after the dense layer."""
    first, second, last = DROPOUT

    def block(filters: int, kernel: int) -> list[keras.Layer]:
        return [keras.layers.Conv2D(filters, kernel, padding="same", activation="relu"), BatchNormalization(momentum=momentum)]

    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Rescaling(1 / 255),
            *block(16, 3),
            *block(16, 1),
            keras.layers.MaxPooling2D(2),
            keras.layers.Dropout(first, seed=1),
            *block(32, 1),
            *block(32, 1),
            keras.layers.MaxPooling2D(2),
            keras.layers.Dropout(second, seed=2),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            BatchNormalization(momentum=momentum),
            keras.layers.Dropout(last, seed=3),
            keras.layers.Dense(classes),
        ]
    )


def residual(shape: tuple[int, ...], classes: int, momentum: float) -> keras.Model:
    """A residual network: BatchNormalization before ReLU, strides, global pooling, dropout inside the blocks."""
    first, second, last = DROPOUT

    def normalize(x: Any) -> Any:
        return keras.layers.Activation("relu")(BatchNormalization(momentum=momentum)(x))

    inputs = keras.Input(shape)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same")(x)
    for number, (filters, stride, rate) in enumerate(((16, 1, first), (32, 2, second), (32, 1, second))):
        y = normalize(x)
        shortcut = keras.layers.Conv2D(filters, 1, strides=stride)(y) if stride > 1 else x
        y = keras.layers.Conv2D(filters, 3, strides=stride, padding="same")(y)
        y = keras.layers.Dropout(rate, seed=number)(y)
        y = keras.layers.Conv2D(filters, 3, padding="same")(normalize(y))
        x = keras.layers.Add()([shortcut, y])
    x = keras.layers.GlobalAveragePooling2D()(normalize(x))
    x = keras.layers.Dropout(last / 2, seed=9)(x)
    return keras.Model(inputs, keras.layers.Dense(classes)(x))


ARCHITECTURES: dict[str, Callable[[tuple[int, ...], int, float], keras.Model]] = {"question": question, "residual": residual}


@lru_cache(4)
def images(name: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, C] and labels int32 [N] of a data set. Cached."""
    return DATA[name](count, seed)


class _Network(KerasNetwork):
    """A network that shows the images of a run, and whose evaluation in float32 is the injection's, if that evaluates in lower
    precision."""

    run: "Run"

    def evaluate_in_float32(self) -> np.ndarray | None:
        injection = self.run._injection
        return injection.evaluate_in_float32(self.run) if injection else None

    def inputs(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        run = self.run
        return run.validation[0][run.positions(most)], run.training[0][: min(most, run.config.sample)]

    def evaluate_changed(self, most: int, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        (pixels, labels), chosen = self.run.validation, self.run.positions(most)
        return self.run.losses(change(pixels[chosen]), labels[chosen])

    def agreed(self, value: float) -> float:
        return value


class Run:
    """A training run. An injection may read every public field and may change those marked "May be changed"."""

    def __init__(self, config: Config) -> None:
        self.config = config
        """May be changed."""
        self.training, self.validation = self._images()
        """Images and labels. Those of `validation` may be changed."""
        self.classes = int(max(labels.max() for _, labels in (self.training, self.validation))) + 1
        keras.utils.set_random_seed(config.seed)
        self.model = ARCHITECTURES[config.architecture](self.training[0].shape[1:], self.classes, config.momentum)
        if config.frozen:
            for layer in self.model._flatten_layers(include_self=False, recursive=True):
                layer.trainable = not (isinstance(layer, FROZEN) and len(layer.output.shape) == 4)
        self.optimizer = keras.optimizers.Adam(config.learning_rate)
        self.optimizer.build(self.model.trainable_variables)
        self.model.compile(self.optimizer)  # for the diagnosis, which looks at the optimizer
        layers = list(self.model._flatten_layers(include_self=False, recursive=True))
        self.norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
        self.dropouts = [layer for layer in layers if isinstance(layer, keras.layers.Dropout)]
        """The dropout layers. Their `rate` may be changed."""
        self.gradient_sign = 1.0
        """Factor of the gradient. May be changed."""
        self.smoothing = 0.0
        """Label smoothing. May be changed, as may be the optimizer's `global_clipnorm`, `weight_decay`, `beta_2` and `epsilon`."""
        self.batches: list[tuple[np.ndarray, np.ndarray]] = []
        """Images and labels of this epoch's batches. May be changed in `Injection.begin`."""
        self.events: list[Event] = []
        """The events that the run reports to the diagnosis for this epoch. May be appended to."""
        self.epoch = 0
        self.history: list[np.ndarray] = []
        """Losses [n] of the validation images after each epoch."""
        self.rng = np.random.default_rng([config.seed, 2])
        self.diagnosis_seconds = 0.0
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self._forward = tf.function(self._losses, reduce_retracing=True)
        self._injection: Injection | None = None
        self.network = _Network(
            self.model,
            self.evaluate,
            self._batch,
            keras.losses.SparseCategoricalCrossentropy(True, reduction=None),
            self.optimizer.variables,
            self._probabilities,
            part=self._part,
            sample=lambda most: self.losses(*(values[: min(most, config.sample)] for values in self.training)),
        )
        self.network.run = self
        self.diagnostician = Diagnostician(
            self.network, batch_size=config.batch_size, labels=self.validation[1], momentum=config.momentum
        )

    @property
    def learning_rate(self) -> float:
        """The optimizer's learning rate. May be changed."""
        return float(self.optimizer.learning_rate)

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.optimizer.learning_rate.assign(value)

    def losses(self, pixels: np.ndarray, labels: np.ndarray, *, training: bool = False) -> np.ndarray:
        """Losses [n] of images with the current weights."""
        parts = [slice(i, i + 100) for i in range(0, len(labels), 100)]
        return np.concatenate([self._forward(_pixels(pixels[p]), labels[p], training).numpy() for p in parts])

    def evaluate(self) -> np.ndarray:
        """Losses [n] of the validation images, in the way that the injection evaluates them."""
        own = self._injection.evaluate(self) if self._injection else None
        return self.losses(*self.validation) if own is None else own

    def train_epoch(self, injection: Injection | None = None, *, restarted: bool = False, final: bool = False) -> News:
        """Trains, evaluates and diagnoses one epoch, disturbed by `injection`. `restarted` also reports a harmless restart.
        `final`: the run ends with it."""
        self.events = [Event("restart", self.epoch + 1)] if restarted else []
        steps, trace = self.advance(injection)
        sample = self.losses(*(values[: self.config.sample] for values in self.training))
        losses, rate = self.evaluate(), self.learning_rate
        self.history.append(losses)
        began = time.perf_counter()
        news = self.diagnostician.close_epoch(
            losses, sample, steps, learning_rate=rate, events=self.events, predict=self.predict, trace=trace, final=final
        )
        self.diagnosis_seconds += time.perf_counter() - began
        return news

    def advance(self, injection: Injection | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Trains one epoch, disturbed by `injection`. Returns its steps [s], dtype STEP, and the moving statistics [s + 1, m]
        before the first and after each of them; None if there are none."""
        self.epoch += 1
        self._injection = injection
        self.batches = self.shuffled()
        if self.config.schedule == "cosine":
            self.learning_rate = self.config.learning_rate * (1 + np.cos(np.pi * (self.epoch - 1) / 100)) / 2
        elif self.config.schedule == "warm-up":
            self.learning_rate = self.config.learning_rate * min(self.epoch / 10, 1)
        elif self.epoch == SETTLES + 1:
            self.learning_rate *= self.config.settled
        if injection:
            injection.begin(self)
        snapshots = self.diagnostician.snapshots(len(self.batches))
        steps, trace = [], [self.network.norm_values()]
        for number, (pixels, labels) in enumerate(self.batches):
            if injection:
                injection.before_step(self, number)
            steps.append(tuple(self._train()(_pixels(pixels), labels).numpy()))
            if injection:
                injection.after_step(self, number)
            trace.append(self.network.norm_values())
            if number + 1 in snapshots:
                began = time.perf_counter()
                self.diagnostician.snapshot(number + 1)
                self.diagnosis_seconds += time.perf_counter() - began
        if injection:
            injection.end(self)
        moved = None if trace[0] is None else self.network.select(np.array([np.asarray(values) for values in trace]))
        return np.array(steps, STEP), moved

    def shuffled(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Images and labels of this epoch's batches, in the order that the seed gives."""
        count, size, r = len(self.training[1]), self.config.batch_size, np.random.default_rng([self.config.seed, 3, self.epoch])
        order = r.permutation(count)[: count // size * size].reshape(-1, size)
        return [(self.training[0][rows], self.training[1][rows]) for rows in order]

    def restrict(self, chosen: np.ndarray) -> None:
        """Keeps only these validation images, and rewrites the past as if there had never been others."""
        pixels, labels = self.validation
        self.validation = pixels[chosen], labels[chosen]
        self.history = [losses[chosen] for losses in self.history]
        diagnostician = self.diagnostician
        diagnostician.detector = Detector()
        for losses in self.history:
            diagnostician.detector.update(losses)
        diagnostician._labels = labels[chosen]
        for epoch in diagnostician._before:
            epoch.losses = epoch.losses[chosen]

    def predict(self, numbers: Any) -> dict[int, tuple[str, str, float]]:
        """Implements spikewise.diagnose.Predict."""
        pixels, labels = self.validation
        fractions = keras.ops.convert_to_numpy(keras.ops.softmax(self.model(_pixels(pixels[numbers]), training=False)))
        return {int(i): (str(labels[i]), str(p.argmax()), float(p.max())) for i, p in zip(numbers, fractions, strict=True)}

    def positions(self, most: int) -> np.ndarray:
        """At most `most` of the positions of the validation images, evenly spread."""
        count = len(self.validation[1])
        return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))

    def _part(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions [v] of at most `most` validation images, the same ones each time, and their losses [v]."""
        positions = self.positions(most)
        own = self._injection.evaluate(self) if self._injection else None
        return positions, self.losses(*(v[positions] for v in self.validation)) if own is None else own[positions]

    def _probabilities(self) -> np.ndarray:
        """Probabilities of the classes [n, K] for the validation images."""
        pixels, _ = self.validation
        parts = [self.model(_pixels(pixels[i : i + 100]), training=False) for i in range(0, len(pixels), 100)]
        return np.concatenate([keras.ops.convert_to_numpy(keras.ops.softmax(part)) for part in parts])

    def save(self) -> dict[str, Any]:
        """Returns a copy of everything that an epoch can change."""
        return {
            "variables": [np.array(v) for v in self._variables()],
            "diagnostician": copy.deepcopy(self.diagnostician, {id(self.network): self.network}),
            "epoch": self.epoch,
            "history": list(self.history),
            "validation": self.validation,
            "rates": [layer.rate for layer in self.dropouts],
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Restores the state that `save` returned."""
        for variable, value in zip(self._variables(), saved["variables"], strict=True):
            variable.assign(value)
        self.diagnostician = copy.deepcopy(saved["diagnostician"], {id(self.network): self.network})
        self.epoch, self.validation, self.history = saved["epoch"], saved["validation"], list(saved["history"])
        for layer, rate in zip(self.dropouts, saved["rates"], strict=True):
            layer.rate = rate
        self.gradient_sign, self._injection = 1.0, None
        self.rng = np.random.default_rng([self.config.seed, 2])

    def _images(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Training and validation images, each with their labels."""
        config = self.config
        pixels, labels = images(config.data, config.training + config.validation, config.seed)
        order = np.random.default_rng([config.seed, 1]).permutation(len(labels))
        training, validation = np.split(order, [config.training])
        return (pixels[training], labels[training]), (pixels[validation], labels[validation])

    def _variables(self) -> list[keras.Variable]:
        return [*self.model.variables, *self.optimizer.variables]

    def _batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = self.batches[number]
        return _pixels(pixels), labels

    def _train(self) -> Callable[..., Any]:
        """The compiled training step, one for each combination of dropout rates and factors, which are constants in it."""
        adam = self.optimizer
        constants = (adam.global_clipnorm, adam.weight_decay, adam.beta_2, adam.epsilon)
        key = (*(layer.rate for layer in self.dropouts), self.gradient_sign, self.smoothing, *constants)
        if key not in self._compiled:
            self._compiled[key] = tf.function(self._step)
        return self._compiled[key]

    def _step(self, pixels: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        weights = [v.value for v in self.model.trainable_variables]
        with tf.GradientTape() as tape:
            logits = self.model(pixels, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = objective = tf.reduce_mean(losses)
            if self.smoothing:
                uniform = -tf.reduce_mean(tf.nn.log_softmax(logits))
                objective = (1 - self.smoothing) * loss + self.smoothing * uniform
        gradients = [self.gradient_sign * g for g in tape.gradient(objective, weights)]
        before, rate = [tf.identity(w) for w in weights], tf.identity(self.optimizer.learning_rate.value)
        with tf.control_dependencies([*before, rate]):
            self.optimizer.apply(gradients)
        norm = tf.linalg.global_norm(gradients)
        update = tf.linalg.global_norm([tf.convert_to_tensor(now) - was for now, was in zip(weights, before, strict=True)])
        return tf.stack([loss, norm, update, rate])

    def _losses(self, pixels: tf.Tensor, labels: tf.Tensor, training: bool) -> tf.Tensor:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, self.model(pixels, training=training))


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)
