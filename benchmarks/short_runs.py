"""Measures the detector on recorded curves of real runs, healthy ones and ones with a fault. Prints JSON.

    python -m benchmarks.short_runs [--set report]
    python -m benchmarks.short_runs --set tune --example tests/spikewise/short_runs.npz    # the curves of the unit tests

A run trains a small network with BatchNormalization and dropout, written in NumPy, on images of 8x8 pixels. Short runs have 8 to
15 epochs, long ones 100. Half of the short runs have a fault in one of the epochs 6 to 10: batches with one label, one batch
whose pixels are not scaled, shuffled labels, or a tenfold learning rate. A fault counts if the loss at least doubles in that
epoch; it is detected if that epoch is reported as a spike. A run draws everything, its fault included, from its seed. The tuning
set and the reporting set share no seed, and the reporting set has a data set more. Recorded losses are kept in --cache; recording
takes a few minutes.

Shapes: N training images, n validation images, s steps, E epochs.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from benchmarks.support.resumable import circumstances
from spikewise.detect import Detector
from trainer.report.scores import wilson

SEEDS = {"tune": (0, 300, 40), "report": (10_000, 240, 16)}
"""For each set: the first seed, the number of short runs and the number of long ones."""
FAULTS = ("one label", "unscaled batch", "shuffled labels", "raised learning rate")
EXAMPLES = 60
"""Number of runs in the file of --example."""
WORKERS = 2
"""Processes."""
LONG = 100
"""Epochs of a long run."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run. All fields are JSON types."""

    seed: int
    epochs: int
    data: str
    network: str
    momentum: float
    dropout: float
    learning_rate: float
    batch_size: int
    training: int
    """N."""
    validation: int
    """n."""
    fault: str | None = None
    epoch: int = 0
    """Epoch with the fault, from 1."""
    first: int = 0
    steps: int = 0
    """First of its steps and their number."""


def plan(seed: int, *, long: bool, sets: tuple[str, ...]) -> Plan:
    """The run of a seed. Odd seeds of short runs have a fault."""
    r = np.random.default_rng(seed)
    batch_size, training = int(r.choice([16, 32, 32, 32])), int(r.choice([512, 1200, 1200]))
    values: dict[str, Any] = {
        "seed": seed,
        "epochs": LONG if long else int(r.integers(8, 16)),
        "data": str(r.choice(sets)),
        "network": str(r.choice(["dense", "deep", "convolutional"])),
        "momentum": float(r.choice([0.9, 0.99])),
        "dropout": float(r.choice([0.2, 0.5])),
        "learning_rate": float(np.exp(r.uniform(np.log(1e-4), np.log(1e-2)))),
        "batch_size": batch_size,
        "training": training,
        "validation": int(r.choice([200, 597])),
    }
    if long or seed % 2 == 0:
        return Plan(**values)
    every = training // batch_size
    fault = str(r.choice(FAULTS))
    steps = {"one label": 12, "unscaled batch": 1}.get(fault, int(r.integers(10, every + 1)))
    return Plan(
        **values,
        fault=fault,
        epoch=int(r.integers(6, min(10, values["epochs"]) + 1)),
        first=int(r.integers(max(every // 2 - steps, 0), every - steps + 1)),
        steps=steps,
    )


def plans(chosen: str) -> list[Plan]:
    """All runs of a set, the short ones first."""
    first, short, long = SEEDS[chosen]
    sets = ("digits", "parity", "wrong labels") + (("shapes",) if chosen == "report" else ())
    return [plan(first + number, long=number >= short, sets=sets) for number in range(short + long)]


@cache
def images(name: str) -> tuple[np.ndarray, np.ndarray]:
    """1,797 images [1797, 8, 8] between 0 and 1, and their labels [1797]."""
    if name == "shapes":
        from benchmarks.spike_causes.data import shapes

        pixels, labels = shapes(1797, 0)
        return pixels.reshape(-1, 8, 4, 8, 4, 3).mean((2, 4, 5)).astype(np.float32) / 255, labels
    from sklearn.datasets import load_digits

    known = load_digits()
    labels = known.target.astype(np.int32)
    if name == "parity":
        labels = labels % 2
    if name == "wrong labels":
        r = np.random.default_rng(0)
        labels = np.where(r.random(len(labels)) < 0.1, r.integers(0, 10, len(labels)), labels).astype(np.int32)
    return (known.images / 16).astype(np.float32), labels


class Linear:
    """A dense layer on the last axis: of a whole image, or of each patch of it, which makes a convolution."""

    def __init__(self, inputs: int, outputs: int, r: np.random.Generator) -> None:
        limit = np.sqrt(6 / (inputs + outputs))
        self.weights = [r.uniform(-limit, limit, (inputs, outputs)).astype(np.float32), np.zeros(outputs, np.float32)]

    def forward(self, x: np.ndarray, *, training: bool) -> np.ndarray:  # noqa: ARG002
        self._x = x
        return x @ self.weights[0] + self.weights[1]

    def backward(self, g: np.ndarray) -> np.ndarray:
        flat = g.reshape(-1, g.shape[-1])
        self.gradients = [self._x.reshape(-1, self._x.shape[-1]).T @ flat, flat.sum(0)]
        return g @ self.weights[0].T


class Normalized:
    """ReLU, BatchNormalization as in Keras, dropout."""

    def __init__(self, units: int, momentum: float, dropout: float, r: np.random.Generator) -> None:
        self.weights = [np.ones(units, np.float32), np.zeros(units, np.float32)]
        self._mean, self._variance = np.zeros(units, np.float32), np.ones(units, np.float32)
        self._momentum, self._dropout, self._r = momentum, dropout, r

    def forward(self, x: np.ndarray, *, training: bool) -> np.ndarray:
        x = np.maximum(x, 0)
        if not training:
            return self.weights[0] * (x - self._mean) / np.sqrt(self._variance + 1e-3) + self.weights[1]
        flat = x.reshape(-1, x.shape[-1])
        mean, variance = flat.mean(0), flat.var(0)
        self._mean += (1 - self._momentum) * (mean - self._mean)
        self._variance += (1 - self._momentum) * (variance - self._variance)
        self._positive, self._deviation = x > 0, np.sqrt(variance + 1e-3)
        self._normal = (x - mean) / self._deviation
        self._kept = (self._r.random(x.shape, np.float32) >= self._dropout) / np.float32(1 - self._dropout)
        return (self.weights[0] * self._normal + self.weights[1]) * self._kept

    def backward(self, g: np.ndarray) -> np.ndarray:
        g = g * self._kept
        flat, normal = g.reshape(-1, g.shape[-1]), self._normal.reshape(-1, g.shape[-1])
        self.gradients = [(flat * normal).sum(0), flat.sum(0)]
        centred = g - flat.mean(0) - self._normal * (flat * normal).mean(0)
        return self.weights[0] / self._deviation * centred * self._positive


class Network:
    """A small classifier, trained with Adam."""

    def __init__(self, one: Plan, classes: int, r: np.random.Generator) -> None:
        def norm(units: int, dropout: float) -> Normalized:
            return Normalized(units, one.momentum, dropout, r)

        if one.network != "convolutional":
            body: list[Any] = []
            for depth in range(5 if one.network == "deep" else 2):
                body += [Linear(64, 64, r), norm(64, one.dropout if depth else 0)]
        else:  # 3x3 patches, every second one
            body = [Linear(9, 16, r), norm(16, 0), None, Linear(9 * 16, 64, r), norm(64, one.dropout)]
        self._patches = one.network == "convolutional"
        self._layers = [*body, Linear(64, classes, r)]
        self._trained = [layer for layer in self._layers if layer]
        self._moments = [[np.zeros((2, *w.shape), np.float32) for w in layer.weights] for layer in self._trained]
        self._count = 0

    def logits(self, x: np.ndarray, *, training: bool) -> np.ndarray:
        """[b, K], of images [b, 8, 8]."""
        x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2] if self._patches else x
        x = x.reshape(len(x), -1, 9) if self._patches else x.reshape(len(x), -1)
        for layer in self._layers:
            x = layer.forward(x, training=training) if layer else x.reshape(len(x), -1)
        return x

    def losses(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """[n], in inference mode."""
        z = self.logits(x, training=False).astype(float)
        top = z.max(1)
        return np.log(np.exp(z - top[:, None]).sum(1)) + top - z[np.arange(len(z)), labels]

    def step(self, x: np.ndarray, labels: np.ndarray, rate: float) -> None:
        z = self.logits(x, training=True)
        g = np.exp(z - z.max(1, keepdims=True))
        g /= g.sum(1, keepdims=True)
        g[np.arange(len(g)), labels] -= 1
        g /= np.float32(len(g))
        for layer in reversed(self._layers):
            g = layer.backward(g) if layer else g.reshape(len(g), 9, 16)
        self._count += 1
        rate *= np.sqrt(1 - 0.999**self._count) / (1 - 0.9**self._count)
        for layer, moments in zip(self._trained, self._moments, strict=True):
            for weights, gradient, both in zip(layer.weights, layer.gradients, moments, strict=True):
                both[0] += 0.1 * (gradient - both[0])
                both[1] += 0.001 * (gradient**2 - both[1])
                weights -= np.float32(rate) * both[0] / (np.sqrt(both[1]) + 1e-7)


def train(one: Plan) -> np.ndarray:
    """Losses [E, n] of the validation images after each epoch, float16."""
    r = np.random.default_rng([one.seed, 1])
    pixels, labels = images(one.data)
    order = r.permutation(len(labels))
    pixels, labels = pixels[order], labels[order]
    held = slice(1200, 1200 + one.validation)
    network = Network(one, int(labels.max()) + 1, r)
    size, steps, found = one.batch_size, one.training // one.batch_size, []
    for epoch in range(1, one.epochs + 1):
        rows = r.permutation(one.training)[: steps * size]
        x, y, rates = pixels[rows], labels[rows], np.full(steps, one.learning_rate)
        if epoch == one.epoch:
            part = slice(one.first * size, (one.first + one.steps) * size)
            if one.fault == "one label":
                y[part] = 0
            elif one.fault == "unscaled batch":
                x[part] *= 255
            elif one.fault == "shuffled labels":
                y[part] = r.permutation(y[part])
            else:
                rates[one.first : one.first + one.steps] *= 10
        for step in range(steps):
            batch = slice(step * size, (step + 1) * size)
            network.step(x[batch], y[batch], rates[step])
        found.append(network.losses(pixels[held], labels[held]))
    return np.minimum(np.array(found), 60_000).astype(np.float16)


def record(one: Plan, folder: Path) -> np.ndarray:
    """Losses [E, n] of a run: from `folder`, or trained and stored there."""
    file = folder / f"{one.seed}-{crc32(json.dumps(asdict(one)).encode()):08x}.npy"
    if file.exists():
        return np.load(file)
    losses = train(one)
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with part.open("wb") as stream:
        np.save(stream, losses)
    part.rename(file)
    return losses


def score(runs: Sequence[Plan], losses: Sequence[np.ndarray]) -> dict[str, Any]:
    """Alarms in healthy runs, and detected faults, from the losses [E, n] of each run."""
    counts = {name: [0, 0] for name in ("healthy short runs with an alarm", "healthy long runs with an alarm", "faults detected")}
    by_fault: dict[str, list[int]] = {}
    for one, curve in zip(runs, losses, strict=True):
        detector = Detector()
        for epoch in curve:
            detector.update(epoch.astype(float))
        means, epochs = detector.means, [spike.epoch for spike in detector.spikes]
        if one.fault is None:
            name = f"healthy {'long' if one.epochs == LONG else 'short'} runs with an alarm"
            counts[name] = [counts[name][0] + bool(epochs), counts[name][1] + 1]
        elif means[one.epoch - 1] >= 2 * means[one.epoch - 2]:
            for found in (counts["faults detected"], by_fault.setdefault(one.fault, [0, 0])):
                found[0] += one.epoch in epochs
                found[1] += 1
    intervals = {name: [round(bound, 4) for bound in wilson(*both)] if both[1] else [0.0, 1.0] for name, both in counts.items()}
    values = {name: {"count": count, "of": of, "interval_95": intervals[name]} for name, (count, of) in counts.items()}
    return {**values, "detected_by_fault": {name: {"count": count, "of": of} for name, (count, of) in sorted(by_fault.items())}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SEEDS, default="report", dest="chosen")
    parser.add_argument("--cache", type=Path, default=Path(".cache/short_runs"))
    parser.add_argument("--example", type=Path, help="write the mean losses of the set's first short runs to this file")
    arguments = parser.parse_args()
    runs = plans(arguments.chosen)[: EXAMPLES if arguments.example else None]
    with ProcessPoolExecutor(WORKERS) as pool:
        losses = list(pool.map(partial(record, folder=arguments.cache), runs))
    if arguments.example:
        curves = np.full((len(runs), max(len(curve) for curve in losses)), np.nan, np.float32)
        for row, curve in zip(curves, losses, strict=True):
            row[: len(curve)] = curve.astype(float).mean(1)
        np.savez_compressed(arguments.example, curves=curves, faults=np.array([one.epoch for one in runs]))
    print(json.dumps({**circumstances("benchmarks.short_runs"), **score(runs, losses)}, indent=1))


if __name__ == "__main__":
    main()
