"""Exact evaluation."""

import numpy as np

from tests.support import training
from tests.trainer.engine.test_golden import SHAPE, _Rows
from trainer.config import Augmentation
from trainer.data.loader import EVALUATION_BATCH, Feed
from trainer.engine.evaluate import evaluate


class _Alone:
    """The group of a single worker of several: its sums are its own part."""

    def sum(self, values):
        return values


def test_each_image_is_evaluated_once_by_any_number_of_workers():
    """Validation losses would depend on the number of workers, or an image would count twice or not at all."""
    settings, rows = training.settings(pipeline={"memory_bytes": 1}), np.arange(200)[::-1].copy()
    assert len(rows) > EVALUATION_BATCH
    learner = training.learner(settings, SHAPE)
    losses, probabilities = evaluate(learner, training.feed(settings, _Rows(), np.arange(160)), rows)
    expected, _ = learner.evaluate(_Rows().pixels[rows], _Rows().labels[rows])
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(losses, -np.log(probabilities[np.arange(200), _Rows().labels[rows]]), rtol=1e-4)
    learner.group, parts = _Alone(), []
    for rank in range(3):
        feed = Feed(_Rows(), np.arange(160), batch_size=30, seed=0, memory_bytes=1, augmentation=Augmentation(), rank=rank, size=3)
        parts.append(evaluate(learner, feed, rows)[0])
    assert (np.count_nonzero(parts, axis=0) == 1).all()
    np.testing.assert_allclose(np.sum(parts, 0), losses, rtol=1e-5)
