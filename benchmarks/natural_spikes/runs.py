"""A run without injected faults, and what its network does under other conditions.

Training never reads BatchNormalization's moving statistics. What another momentum or precise statistics would have given is
therefore measured with the run's own weights, on the statistics that such a run would have had since its first epoch
(spikewise.moments).

Shapes: n validation images, r spare images, m training images, s steps, K classes, k epochs.
"""

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import keras
import numpy as np

from benchmarks.natural_spikes.data import DATA, Images
from benchmarks.spike_causes.runs import DROPOUT, Config, Injection, Run
from spikewise import measure
from spikewise.curve import Parts, Sizes
from spikewise.diagnose import Diagnostician
from spikewise.keras.network import KerasNetwork
from spikewise.moments import Counterfactuals, alternatives
from spikewise.probes import Weights, with_statistics
from spikewise.steps import last_losses

LEARNING_RATE = 1e-3
MOMENTUM = 0.99
TRAINING, VALIDATION, SPARE = 800, 300, 1200
"""Numbers of images. The spare ones are neither trained on nor seen by the diagnosis: another, larger draw of validation images."""
PRECISE = "model.statistics=precise"


@lru_cache(2)
def images(name: str, count: int, seed: int) -> Images:
    """A data set. Cached."""
    return DATA[name](count, seed)


@dataclass(frozen=True)
class Measured:
    """What a network gives at the end of an epoch."""

    losses: dict[str, np.ndarray]
    """Losses [n] of the validation images by the setting that changes only the statistics they are evaluated with."""
    training: np.ndarray
    """[m], of all training images in inference mode, as it is."""
    spare: np.ndarray
    """[r], as it is."""


class NaturalRun(Run):
    """The question's network with its settings, on small images. Its state can be saved before each epoch, and trained again."""

    def __init__(self, data: str, seed: int, *, training: int = TRAINING, validation: int = VALIDATION, spare: int = SPARE) -> None:
        self._spare = spare
        super().__init__(
            Config(
                data,
                "question",
                seed,
                learning_rate=LEARNING_RATE,
                settled=1.0,
                momentum=MOMENTUM,
                training=training,
                validation=validation,
            )
        )
        self._begun = self.config
        self._adam = {name: getattr(self.optimizer, name) for name in ("global_clipnorm", "weight_decay", "beta_2", "epsilon")}
        self.network = KerasNetwork(  # type: ignore[assignment]  # without an injection's evaluation in float32
            self.model,
            self.evaluate,
            self._batch,
            keras.losses.SparseCategoricalCrossentropy(True, reduction=None),
            self.optimizer.variables,
            self._probabilities,
            part=lambda most: (at := _spread(len(self.validation[1]), most), self.losses(*(v[at] for v in self.validation))),
            sample=lambda most: self.losses(*(v[_spread(len(self.training[1]), most)] for v in self.training)),
        )
        self.diagnostician = Diagnostician(
            self.network,
            batch_size=self.config.batch_size,
            groups=list(self.groups),
            labels=self.validation[1],
            momentum=MOMENTUM,
            dropout=max(DROPOUT),
        )
        self.followed = Counterfactuals()
        self.path: list[tuple[int, Weights]] = []
        """Snapshots of the newest epoch."""

    def _images(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        config = self.config
        count = config.training + config.validation + self._spare
        pixels, labels, groups = images(config.data, count, config.seed)
        r = np.random.default_rng([config.seed, 1])
        names = np.where(groups == "", np.arange(len(labels)).astype(str), groups)
        place = dict(zip(np.unique(names), r.permutation(len(np.unique(names))), strict=True))
        order = np.argsort([place[name] for name in names], kind="stable")  # whole groups, in random order
        validation, spare, training = np.split(order, [config.validation, config.validation + self._spare])
        held = {name for name in groups[np.concatenate([validation, spare])] if name}
        training = training[~np.isin(groups[training], list(held))][: config.training]
        self.groups = groups[validation]
        """Of the validation images [n]."""
        self.spare = pixels[spare], labels[spare]
        return (pixels[training], labels[training]), (pixels[validation], labels[validation])

    def advance(self, injection: Injection | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """As `Run.advance`; follows the statistics that the run would have with other momenta."""
        steps, trace = super().advance(injection)
        self.followed.update(trace, np.asarray(self.network.kept, float))
        self.path = [*self.diagnostician._path, (len(steps), self.network.weights())]
        return steps, trace

    def again(self, injection: Injection | None = None) -> tuple[np.ndarray, float]:
        """Trains the next epoch without a diagnosis. Returns the losses [n] of the validation images and the median loss of the
        last batches, in training mode."""
        steps, _ = self.advance(injection)
        self.diagnostician.discard_epoch()
        return self.evaluate(), float(np.median(last_losses(steps)))

    def measure(self) -> Measured:
        """What the network, as it is now, gives under each condition. Leaves it as it is."""
        losses = {}
        with self.network.untouched():
            for setting, weights in self._conditions().items():
                self.network.assign(weights)
                losses[setting] = self.losses(*self.validation)
        return Measured(losses, self.losses(*self.training), self.losses(*self.spare))

    def _conditions(self) -> dict[str, Weights]:
        """The weights now, with the statistics that each setting would have given."""
        now, found = self.network.weights(), {}
        if self.batches:
            found[PRECISE] = self.precise(now)
        if self.followed.now is not None:
            for values, momentum in zip(self.followed.now, alternatives(np.array([MOMENTUM])), strict=True):
                found[f"model.momentum={momentum[0]:g}"] = with_statistics(self.network, now, values)
        return found

    def precise(self, weights: Weights) -> Weights:
        """These weights with the mean moments of all batches of the epoch, without dropout. The network keeps other statistics."""
        self.network.assign(weights)
        weights = list(weights)
        for position, values in zip(
            self.network.statistics, self.network.moments(range(len(self.batches)), dropout=False), strict=True
        ):
            weights[position] = values.mean(0)
        return weights

    def parts(self, batches: float) -> Parts:
        """What the loss of the newest epoch is made of, from all images and all batches, whose mean loss is `batches`."""
        everything = Sizes(len(self.training[1]), max(len(self.training[1]), len(self.validation[1])))
        with self.network.untouched():
            losses, size = self.history[-1], self.config.batch_size
            return measure.parts(self.network, self.epoch, losses, self.path, batches, size, everything)[0]

    def save(self) -> dict[str, Any]:
        return {**super().save(), "followed": copy.deepcopy(self.followed), "batches": self.batches}

    def load(self, saved: dict[str, Any]) -> None:
        """Restores the state that `save` returned, and all settings with which the run began."""
        super().load(saved)
        self.followed, self.batches = copy.deepcopy(saved["followed"]), saved["batches"]
        self.config, self.smoothing = self._begun, 0.0
        for name, value in self._adam.items():
            setattr(self.optimizer, name, value)

    @property
    def guess(self) -> float:
        """The loss of always predicting the class frequencies of the validation images."""
        fractions = np.bincount(self.validation[1]) / len(self.validation[1])
        return float(-np.sum(fractions[fractions > 0] * np.log(fractions[fractions > 0])))


def _spread(count: int, most: int) -> np.ndarray:
    """At most `most` numbers below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
