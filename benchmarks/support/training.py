"""Builds a Learner and a Feed from a configuration, as a worker of the job does."""

from typing import Any

import numpy as np

from trainer import config
from trainer.data.loader import Feed
from trainer.engine.group import Group
from trainer.engine.step import Learner


def learner(settings: config.Settings, shape: tuple[int, int, int], group: Group | None = None) -> Learner:
    """`shape`: H W C."""
    return Learner(
        group or Group(),
        settings.model,
        shape,
        2,
        seed=settings.run.seed,
        batch_size=settings.training.batch_size,
        learning_rate=settings.optimizer.learning_rate,
        augmentation=settings.augmentation,
    )


def feed(settings: config.Settings, rows: Any, training: np.ndarray) -> Feed:
    """`training`: row numbers of the training images."""
    pipeline = settings.pipeline
    return Feed(
        rows,
        training,
        batch_size=settings.training.batch_size,
        seed=settings.run.seed,
        memory_bytes=pipeline.memory_bytes,
        augmentation=settings.augmentation,
        rank=0,
        size=1,
    )
