"""Notices that the weights that are evaluated are not those that train: SwapEMAWeights and callbacks like it replace them."""

from typing import Any

import tensorflow as tf

ROUNDING = 1e-5
"""Weights that differ by at most this fraction of their norm are the same: SwapEMAWeights swaps them back with rounding errors."""
DIFFERS = 0.01
"""Validation losses that differ by more than this fraction are not those of the same weights."""


class ReplacedWeights:
    """Says so once."""

    def __init__(self) -> None:
        self._said = False

    def warning(
        self, epoch: int, weights: tuple[list[Any], list[Any]], losses: tuple[float, float], *, averages: bool
    ) -> str | None:
        """A warning, or None. `weights`: those that train, after the last step and at the evaluation. `losses`: `val_loss` of `fit`
        and of the callback; equal if there is only one. `averages`: whether the optimizer keeps averages of the weights."""
        before, now = weights
        if self._said or not now:
            return None
        text, (theirs, ours) = None, losses
        if tf.linalg.global_norm([b - a for a, b in zip(before, now, strict=True)]) > ROUNDING * tf.linalg.global_norm(now):
            text = (
                f"after the last step of epoch {epoch}, another callback replaced the weights, as SwapEMAWeights does. "
                "SpikeDiagnosis evaluates the new ones, but explains spikes by the training steps. "
                "Fix: put SpikeDiagnosis before that callback."
            )
        elif averages and abs(theirs - ours) > DIFFERS * abs(ours):
            text = (
                f"val_loss is {theirs:.3f} in epoch {epoch}, and SpikeDiagnosis measured {ours:.3f}. If both have the same data, "
                "fit evaluates averaged weights, as SwapEMAWeights has it; SpikeDiagnosis explains the weights that train."
            )
        self._said = text is not None
        return text
