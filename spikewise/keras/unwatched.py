"""Epochs that the callback did not watch: before it was made, or between two of its fits. Imports no TensorFlow.

Shapes: n validation examples.
"""

from typing import Any

import numpy as np

from spikewise.records import STEP
from spikewise.steps import as_array


def same(losses: np.ndarray, others: np.ndarray) -> bool:
    """Whether two evaluations [n] used the same weights and the same loss."""
    scale = float(np.mean(np.abs(others)))
    return losses.shape == others.shape and np.allclose(losses, others, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)


def skip(facts: dict[str, Any], arrays: dict[str, np.ndarray], epochs: int, losses: np.ndarray | None) -> bool:
    """Counts epochs that were not watched in the state of a Diagnostician. If it knows of no epoch at all, the losses [n] and the
    weights with which this `fit` begins stand for the last of them, so that a rise in the first epoch is seen and explained.
    Returns whether that is so."""
    detector = facts["detector"]
    detector["means"] = [*detector["means"], *[np.nan] * epochs]
    facts["samples"] = [*facts["samples"], *[np.nan] * epochs]
    facts["followed"], arrays["counterfactuals"] = 0, np.zeros((0, 0))
    if losses is None or detector["ordinary"] or not np.isfinite(losses).all():
        return False
    number = len(detector["means"])
    detector["means"][-1] = float(losses.mean())
    detector["ordinary"], detector["recent"], arrays["recent"] = [number], [number], losses[None].astype(np.float32)
    facts["before"] = [np.nan]
    arrays |= {"0/losses": losses.astype(np.float32), "0/steps": as_array(np.zeros(0, STEP))}
    return True
