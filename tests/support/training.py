"""Learner and Feed as a worker builds them from a configuration, on one worker unless a test says otherwise."""

from typing import Any

import numpy as np

from trainer import config
from trainer.data.loader import Feed
from trainer.engine.group import Group
from trainer.engine.step import Learner


def settings(**sections: Any) -> config.Settings:
    """A configuration of two classes, with these sections changed."""
    return config.parse({"data": {"source": "x", "classes": {"a": "a/", "b": "b/"}}, **sections})


def learner(chosen: config.Settings, shape: tuple[int, int, int], group: Group | None = None) -> Learner:
    """`shape`: H W C."""
    return Learner(
        group or Group(),
        chosen.model,
        shape,
        2,
        seed=chosen.run.seed,
        batch_size=chosen.training.batch_size,
        learning_rate=chosen.training.learning_rate,
        augmented=chosen.pipeline.flip or chosen.pipeline.shift > 0,
    )


def feed(chosen: config.Settings, rows: Any, training: np.ndarray) -> Feed:
    """`training`: row numbers of the training images."""
    pipeline = chosen.pipeline
    return Feed(
        rows,
        training,
        batch_size=chosen.training.batch_size,
        seed=chosen.run.seed,
        memory_bytes=pipeline.memory_bytes,
        flip=pipeline.flip,
        shift=pipeline.shift,
        rank=0,
        size=1,
    )
