"""Exact evaluation: every image once, in inference mode, divided among all workers.

Shapes: n images, K classes.
"""

from collections.abc import Callable

import numpy as np

from trainer.data.loader import Feed
from trainer.engine.step import Learner


def evaluate(
    learner: Learner, feed: Feed, rows: np.ndarray, change: Callable[[np.ndarray], np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluates packed images: row numbers [n] -> cross-entropy in nats [n] and probabilities [n, K], float32.
    `change`: changes the pixels uint8 [b, H, W, C] of each batch first.

    All workers must call it together, with the same rows; all get the same result.
    """
    losses = np.zeros(len(rows), np.float32)
    probabilities = np.zeros((len(rows), learner.classes), np.float32)
    batches = feed.evaluation(rows, learner.evaluation_batch)
    if change:
        batches = ((positions, change(feed.rows.images.take(rows[positions])), labels) for positions, _, labels in batches)
    for positions, found in [(positions, learner.infer(images, labels)) for positions, images, labels in batches]:
        losses[positions], probabilities[positions] = (values.numpy() for values in found)
    return learner.group.sum(losses), learner.group.sum(probabilities)
