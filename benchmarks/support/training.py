"""Builds a Learner and a Feed from a configuration, as a worker of the job does."""

from typing import Any

import numpy as np

from trainer import config
from trainer.data.loader import Feed
from trainer.engine.group import Group
from trainer.engine.step import Learner


def learner(
    settings: config.Settings, shape: tuple[int, int, int], group: Group | None = None, *, steps: int = 5, **options: Any
) -> Learner:
    """`shape`: H W C. `steps`: of an epoch."""
    return Learner(group or Group(), settings, shape, 2, steps=steps, **options)


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
