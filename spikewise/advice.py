"""What remedies suggest, and whether a run does it already: for the causes of spikes and for standing causes. Pure."""

from typing import Any

import numpy as np

from spikewise.records import Hyperparameters

WARMUP = 3
"""Epochs of warm-up."""
PATIENCE = 10
"""Epochs without a better one after which to stop."""
SHIFT = 4
"""Pixels by which to shift training images."""
STOP = f"training.keep=best training.early_stopping={PATIENCE}"
MOVE = f"augmentation.shift={SHIFT}"


def decay(now: Hyperparameters) -> str | None:
    """The decay of a moving average of the weights over about one epoch; None if the epoch's steps are unknown."""
    return f"{1 - float(f'{np.clip(1 / now.steps, 1e-4, 0.1):.0e}'):g}" if now.steps else None


def half_rate(now: Hyperparameters) -> str | None:
    """Half of the learning rate; None if it is unknown."""
    return f"{now.learning_rate / 2:.2g}" if np.isfinite(now.learning_rate) else None


def averages(now: Hyperparameters) -> bool:
    """Whether the run averages its weights already."""
    return now.settings.get("optimizer.ema") is not None


def stops(now: Hyperparameters) -> bool:
    """Whether the run keeps its best epoch and stops early already."""
    return is_set(now, "training.keep=best") and bool(now.settings.get("training.early_stopping", 0) > 0)


def shifts(now: Hyperparameters) -> bool:
    """Whether the run shifts its training images as far already."""
    return bool(now.settings.get("augmentation.shift", 0) >= SHIFT)


def is_set(now: Hyperparameters, setting: str) -> bool:
    """Whether the run has this setting, `section.key=value`, already."""
    key, _, value = setting.partition("=")
    known = now.settings.get(key)
    return known is not None and (str(known).lower() == value.lower() or _number(known) == _number(value))


def _number(value: Any) -> float:
    """The value as a number; NaN, which equals nothing, if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return np.nan
