"""Losses of three epochs against a plain Keras loop, and against those recorded in golden/losses.json.

In float64, so that rounding hides nothing: a refactoring must reproduce the file. After an intended change of the numbers,
`python -m tests.trainer.engine.test_golden` rewrites it.
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.support import training as support
from trainer import config
from trainer.engine.evaluate import evaluate
from trainer.model.load import build

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
IMAGES, SHAPE, EPOCHS = 200, (16, 16, 3), 3


class _Rows:
    def __init__(self) -> None:
        generator = np.random.Generator(np.random.PCG64(0))
        self.labels = (np.arange(IMAGES) % 2).astype(np.int32)
        pixels = generator.integers(0, 180, (IMAGES, *SHAPE))
        pixels[self.labels == 1, 4:10, 4:10] += 60
        self.pixels = pixels.astype(np.uint8)
        self.images, self.shape = self, self.pixels.shape

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]


def _settings(**model) -> config.Settings:
    return support.settings(optimizer={"learning_rate": 1e-3}, training={"batch_size": 32}, model={"precision": "float64", **model})


def _ours(**model) -> dict[str, list[float]]:
    """Mean training loss and validation loss of each epoch."""
    settings, rows = _settings(**model), _Rows()
    try:
        learner = support.learner(settings, SHAPE)
        feed = support.feed(settings, rows, np.arange(160))
        learner.resident = feed.load()
        training, validation = [], []
        for epoch in range(1, EPOCHS + 1):
            training.append(float(np.mean([float(learner.train(batch)[0].loss) for batch in feed.batches(epoch)])))
            losses, _ = evaluate(learner, feed, np.arange(160, IMAGES))
            validation.append(float(np.mean(losses, dtype=np.float64)))
    finally:
        keras.config.set_dtype_policy("float32")
    return {"training": training, "validation": validation}


def _plain_keras() -> dict[str, list[float]]:
    """The same training as a Keras user writes it, on the same batches."""
    settings, rows = _settings(), _Rows()
    keras.config.set_dtype_policy("float64")
    try:
        model = build(settings.model.model_copy(update={"dropout": 0.0}), SHAPE, 2, seed=0)
        model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy())
        feed = support.feed(settings, rows, np.arange(160))
        training, validation = [], []
        for epoch in range(1, EPOCHS + 1):
            losses = []
            for batch in feed.batches(epoch):
                losses.append(float(model.train_on_batch(rows.pixels[batch.images.numpy()].astype(float), batch.labels)))
                model.reset_metrics()
            training.append(float(np.mean(losses)))
            validation.append(float(model.test_on_batch(rows.pixels[160:].astype(float), rows.labels[160:])))
            model.reset_metrics()
    finally:
        keras.config.set_dtype_policy("float32")
    return {"training": training, "validation": validation}


def test_the_loop_is_kerass():
    """A user who moves from a plain Keras loop to this job would get another model."""
    ours, theirs = _ours(dropout=0.0), _plain_keras()
    for which in ("training", "validation"):
        assert ours[which] == pytest.approx(theirs[which], rel=1e-6)  # Keras averages its losses in float32


def test_the_losses_are_the_recorded_ones():
    """A refactoring could change what is computed, unnoticed."""
    recorded, ours = json.loads(GOLDEN.read_text()), _ours()
    for which in ("training", "validation"):
        assert ours[which] == pytest.approx(recorded[which], rel=1e-7)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(_ours(), indent=1) + "\n")
