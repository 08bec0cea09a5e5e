"""The alternatives that benchmarks.speed compares the job with. Each runs in its own process and prints JSON.

    python -m benchmarks.contenders NAME FOLDER [--epochs E]

All of them train the network of trainer/model/question.py on the images in FOLDER (made by `python -m jobs.demo.images`), without
Ray and without S3. Each takes about a minute on two cores.

    memory       the job's training step, fed with batches that are already in memory
    step         the same step, alternating with the same step on Keras' BatchNormalization
    fit          keras.Model.fit as the Keras documentation shows it; reads and decodes the folder in every epoch
    fit-cached   the same with .cache().prefetch(): decodes once, then reads from memory

Shapes: n training images, B images per batch, s steps per epoch, E epochs, H W C one image.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the job sets it

import keras
import numpy as np
import tensorflow as tf

from benchmarks.support import training
from trainer import config
from trainer.data import augmentation
from trainer.data.loader import Batch
from trainer.data.order import epoch_generator, epoch_order
from trainer.engine.step import Learner
from trainer.model import load

QUESTION = "jobs/configs/question.toml"
NICENESS = 15
"""The niceness of Ray's workers. With equal niceness, other load slows the job and the contenders equally."""
PAIRS, BLOCK, WARM_UP = 40, 5, 5
"""For `step`: turns per layer, steps per turn, and untimed steps before the first turn."""


def images(folder: Path, settings: config.Settings) -> tf.data.Dataset:
    """The training images, read the Keras way: batches of float32 [B, H, W, C] in 0..255 and int32 [B]."""
    fraction = settings.data.validation_fraction
    return keras.utils.image_dataset_from_directory(
        folder,
        class_names=["authentic", "fake"],
        image_size=settings.data.image_size,
        batch_size=settings.training.batch_size,
        validation_split=fraction,
        subset="training",
        seed=0,
        verbose=False,
    )


def keras_network(settings: config.Settings) -> keras.Model:
    """The question's network in plain Keras, compiled."""
    network = load.build(settings.model, (*settings.data.image_size, 3), 2, seed=settings.run.seed)
    adam = keras.optimizers.Adam(settings.optimizer.learning_rate)
    network.compile(adam, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return network


class Stopwatch(keras.callbacks.Callback):
    """Records images per second for each epoch [E]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.speeds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:  # noqa: ARG002
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:  # noqa: ARG002
        self.speeds.append(self.count / (time.perf_counter() - self.began))


def fit(folder: Path, settings: config.Settings, epochs: int, *, cached: bool) -> dict:
    """Images per second of keras.Model.fit, one value per epoch."""
    data = images(folder, settings)
    stopwatch = Stopwatch(len(data.file_paths))
    if cached:
        data = data.cache().prefetch(tf.data.AUTOTUNE)
    keras_network(settings).fit(data, epochs=epochs, verbose=0, callbacks=[stopwatch])
    return {"images_per_second": stopwatch.speeds}


def batches(folder: Path, settings: config.Settings) -> list[Batch]:
    """All full batches of one epoch [s], in memory."""
    parts = list(images(folder, settings).as_numpy_iterator())
    pixels = np.concatenate([part[0] for part in parts]).round().astype(np.uint8)
    labels = np.concatenate([part[1] for part in parts]).astype(np.int32)
    generator = epoch_generator(settings.run.seed, epoch=1)
    order = epoch_order(generator, len(labels), settings.training.batch_size)
    changes = augmentation.draw(generator, order.shape, settings.augmentation)
    return [Batch(*map(tf.constant, (pixels[rows], labels[rows], change))) for rows, change in zip(order, changes, strict=True)]


def a_learner(settings: config.Settings) -> Learner:
    return training.learner(settings, (*settings.data.image_size, 3))


def memory(folder: Path, settings: config.Settings, epochs: int) -> dict:
    """Images per second of the job's training step, one value per epoch."""
    ready = batches(folder, settings)
    learner = a_learner(settings)
    speeds = []
    for _ in range(epochs):
        began = time.perf_counter()
        losses = [learner.train(batch)[0].loss for batch in ready]
        assert np.isfinite([float(loss) for loss in losses]).all()
        speeds.append(len(ready) * settings.training.batch_size / (time.perf_counter() - began))
    return {"images_per_second": speeds}


def step(folder: Path, settings: config.Settings) -> dict:
    """Milliseconds per step by kind of BatchNormalization: PAIRS means of BLOCK steps each."""
    ready = batches(folder, settings)
    learners = {}
    for kind in (settings.model.batch_normalization, "keras"):
        model = settings.model.model_copy(update={"batch_normalization": kind})
        learners[kind] = a_learner(settings.model_copy(update={"model": model}))
        for batch in ready[:WARM_UP]:
            learners[kind].train(batch)
    turns: dict[str, list[float]] = {kind: [] for kind in learners}
    for pair in range(PAIRS):
        for kind in sorted(learners, reverse=bool(pair % 2)):
            began = time.perf_counter()
            for number in range(BLOCK):
                stats, _ = learners[kind].train(ready[(pair * BLOCK + number) % len(ready)])
            float(stats.loss)
            turns[kind].append((time.perf_counter() - began) / BLOCK * 1000)
    return {"milliseconds": turns}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contenders", description="Time one alternative to the job.")
    parser.add_argument("name", choices=("memory", "step", "fit", "fit-cached"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    settings = config.load(QUESTION)
    os.nice(NICENESS)
    tf.config.threading.set_intra_op_parallelism_threads(os.cpu_count() or 1)  # as the job sets it for a single worker
    match arguments.name:
        case "memory":
            result = memory(arguments.folder, settings, arguments.epochs)
        case "step":
            result = step(arguments.folder, settings)
        case name:
            result = fit(arguments.folder, settings, arguments.epochs, cached=name == "fit-cached")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result | {"peak_bytes": peak}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
