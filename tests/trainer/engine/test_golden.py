"""Losses of three epochs against a plain Keras loop, and against those recorded in golden/losses.json.

In float64, where a difference is a difference: a refactoring must reproduce the file. Where a change of the numbers is meant,
`python -m tests.trainer.engine.test_golden` writes it anew.
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from trainer import config
from trainer.data.loader import Feed
from trainer.engine.group import Group
from trainer.engine.step import Learner
from trainer.model.question import build

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
IMAGES, SHAPE, EPOCHS = 200, (16, 16, 3), 3


class _Rows:
    def __init__(self) -> None:
        generator = np.random.Generator(np.random.PCG64(0))
        self.labels = (np.arange(IMAGES) % 2).astype(np.int32)
        pixels = generator.integers(0, 180, (IMAGES, *SHAPE))
        pixels[self.labels == 1, 4:10, 4:10] += 60
        self.pixels = pixels.astype(np.uint8)
        self.images = self

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]


def _settings(**model) -> config.Settings:
    data = {"source": "x", "classes": {"a": "a/", "b": "b/"}}
    training = {"learning_rate": 1e-3, "batch_size": 32}
    return config.parse({"data": data, "training": training, "model": {"precision": "float64", **model}})


def _ours(**model) -> dict[str, list[float]]:
    """Mean training loss, and validation loss, of each epoch."""
    settings, rows = _settings(**model), _Rows()
    try:
        learner = Learner(Group(), settings, SHAPE, 2)
        options = {"batch_size": 32, "seed": 0, "memory_bytes": 10**9, "flip": False, "shift": 0}
        feed = Feed(rows, np.arange(160), **options, rank=0, size=1)
        learner.resident = feed.load()
        training, validation = [], []
        for epoch in range(1, EPOCHS + 1):
            training.append(float(np.mean([float(learner.train(batch).loss) for batch in feed.batches(epoch)])))
            losses = [learner.evaluate(images, labels)[0] for _, images, labels in feed.evaluation(np.arange(160, IMAGES))]
            validation.append(float(np.mean(np.concatenate(losses), dtype=np.float64)))
    finally:
        keras.config.set_dtype_policy("float32")
    return {"training": training, "validation": validation}


def _plain_keras() -> dict[str, list[float]]:
    """The same as a Keras user writes it, over the same batches."""
    settings, rows = _settings(), _Rows()
    keras.config.set_dtype_policy("float64")
    try:
        plain = settings.model.model_copy(update={"batch_normalization": "keras", "dropout": (0.0, 0.0, 0.0)})
        network = build(SHAPE, 2, plain, seed=0)
        network.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        options = {"batch_size": 32, "seed": 0, "memory_bytes": 10**9, "flip": False, "shift": 0}
        feed = Feed(rows, np.arange(160), **options, rank=0, size=1)
        training, validation = [], []
        for epoch in range(1, EPOCHS + 1):
            losses = []
            for batch in feed.batches(epoch):
                losses.append(float(network.train_on_batch(rows.pixels[batch.images.numpy()].astype(float), batch.labels)))
                network.reset_metrics()
            training.append(float(np.mean(losses)))
            validation.append(float(network.test_on_batch(rows.pixels[160:].astype(float), rows.labels[160:])))
            network.reset_metrics()
    finally:
        keras.config.set_dtype_policy("float32")
    return {"training": training, "validation": validation}


def test_the_loop_is_kerass():
    """Somebody who moves from a plain Keras loop to this job would get another model."""
    ours, theirs = _ours(dropout=[0.0, 0.0, 0.0]), _plain_keras()
    for which in ("training", "validation"):
        assert ours[which] == pytest.approx(theirs[which], rel=1e-6)  # Keras adds its losses up in float32


def test_the_losses_are_the_recorded_ones():
    """A refactoring would have changed what is computed without anybody noticing."""
    recorded, ours = json.loads(GOLDEN.read_text()), _ours()
    for which in ("training", "validation"):
        assert ours[which] == pytest.approx(recorded[which], rel=1e-7)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(_ours(), indent=1) + "\n")
