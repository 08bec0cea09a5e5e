"""Trains epochs again with one thing changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.natural_spikes.remedies import ADAM
from benchmarks.natural_spikes.runs import NaturalRun
from benchmarks.spike_causes.runs import Injection, Run


@dataclass
class Change(Injection):
    """Trains with other settings: `section.key` -> value, as text."""

    strength: float = 1.0
    settings: Mapping[str, str] = field(default_factory=dict)
    without: tuple[int, ...] = ()
    """Batches of the first epoch to leave out."""
    other_order: bool = False

    def __post_init__(self) -> None:
        self._average: list[np.ndarray] | None = None
        self._first: int | None = None

    def begin(self, run: Run) -> None:
        if self._first is None:
            self._first = run.epoch
            self._change(run)
        if self.without and run.epoch == self._first:
            run.batches = [batch for number, batch in enumerate(run.batches) if number not in self.without]
        if shift := int(self.settings.get("augmentation.shift", 0)):
            r = np.random.default_rng([run.config.seed, 5, run.epoch])
            run.batches = [(_shifted(pixels, shift, r), labels) for pixels, labels in run.batches]
        if "optimizer.ema" in self.settings and self._average is None:
            self._average = run.network.weights()

    def before_step(self, run: Run, step: int) -> None:
        if warmup := float(self.settings.get("optimizer.warmup_epochs", 0)):
            done = ((run.epoch - 1) * len(run.batches) + step + 1) / (warmup * len(run.batches))
            run.learning_rate = self._rate(run) * min(1.0, done)

    def after_step(self, run: Run, step: int) -> None:  # noqa: ARG002
        if self._average is not None:
            kept = np.float32(self.settings["optimizer.ema"])
            now = run.network.weights()
            self._average = [kept * average + (1 - kept) * value for average, value in zip(self._average, now, strict=True)]

    def evaluate(self, run: Run) -> np.ndarray | None:
        if self._average is None or not isinstance(run, NaturalRun):
            return None
        with run.network.untouched():
            run.network.assign(run.precise(self._average))
            return run.losses(*run.validation)

    def _change(self, run: Run) -> None:
        """Sets what holds from now on. `NaturalRun.load` undoes it."""
        settings, adam = self.settings, run.optimizer
        if "model.dropout" in settings:
            for layer in run.dropouts:
                layer.rate = float(settings["model.dropout"])
        run.learning_rate = self._rate(run)
        if "training.batch_size" in settings or self.other_order:
            size = int(settings.get("training.batch_size", run.config.batch_size))
            run.config = replace(run.config, batch_size=size, seed=run.config.seed + 1_000_000 * self.other_order)
            run.batches = run.shuffled()
        run.smoothing = float(settings.get("training.label_smoothing", 0))
        for key, name in ADAM.items():
            if key in settings:
                setattr(adam, name, float(settings[key]))

    def _rate(self, run: Run) -> float:
        return float(self.settings.get("optimizer.learning_rate", run.config.learning_rate))


def _shifted(pixels: np.ndarray, most: int, r: np.random.Generator) -> np.ndarray:
    """Images [b, H, W, C], each moved by up to `most` pixels in each direction; the edge is repeated."""
    padded = np.pad(pixels, ((0, 0), (most, most), (most, most), (0, 0)), "edge")
    height, width = pixels.shape[1:3]
    places = r.integers(0, 2 * most + 1, (len(pixels), 2))
    return np.stack([image[y : y + height, x : x + width] for image, (y, x) in zip(padded, places, strict=True)])
