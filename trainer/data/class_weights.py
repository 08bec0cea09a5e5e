"""The weight of each class in the training loss. Pure.

Shapes: n training images, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from trainer.data.dataset import DataError

ClassWeights = Literal["balanced"] | Mapping[str, float] | None
"""The setting training.class_weights."""


def class_weights(wanted: ClassWeights, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray | None:
    """The factor [K] of each class in the training loss, from `training.class_weights`; None for equal ones.

    `labels` [n]: of the training images. "balanced" gives n / (K n_k) to a class of n_k images, so that each class has the same
    influence.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        return np.asarray(len(labels) / (len(classes) * np.bincount(labels, minlength=len(classes))))
    return np.array([wanted[name] for name in classes])


def check_class_weights(wanted: ClassWeights, classes: Sequence[str]) -> None:
    """Raises DataError unless a table of class weights names each class once."""
    if isinstance(wanted, Mapping) and set(wanted) != set(classes):
        raise DataError(
            f"training.class_weights names {', '.join(sorted(wanted)) or 'no class'}, but the classes are {', '.join(classes)}. "
            "Fix: give each class a weight."
        )
