"""The optimizer that a configuration names, with its learning-rate schedule."""

import math
from typing import Any

import keras
import numpy as np

from trainer import UserError, config
from trainer.formatting import one_line


class OptimizerError(UserError):
    """The optimizer cannot be built."""


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of each step, a function of the number of earlier steps alone, so that a resumed run continues it.

    It rises linearly from 0 to `learning_rate` over the warm-up. Then it stays there, follows half a cosine to 0 at the end of the
    last epoch, or is multiplied by `step_factor` at the end of each of `step_epochs`.
    """

    def __init__(self, settings: config.Optimizer, *, epochs: int, steps: int) -> None:
        """`epochs` of the run; `steps` of an epoch."""
        self._settings = settings
        self._warmup = settings.warmup_epochs * steps
        self._total = epochs * steps
        self._boundaries = [epoch * steps for epoch in settings.step_epochs]

    def __call__(self, step: Any) -> Any:
        """The learning rate of the update after `step` updates, float32."""
        ops, settings = keras.ops, self._settings
        step = ops.cast(step, "float32")
        rate = ops.cast(settings.learning_rate, "float32")
        if settings.schedule == "cosine":
            done = ops.clip((step - self._warmup) / max(self._total - self._warmup, 1.0), 0.0, 1.0)
            rate = rate * 0.5 * (1.0 + ops.cos(math.pi * done))
        elif settings.schedule == "step":
            for boundary in self._boundaries:
                rate = rate * ops.where(step >= boundary, settings.step_factor, 1.0)
        if self._warmup > 0:
            rate = rate * ops.minimum((step + 1.0) / self._warmup, 1.0)
        return rate

    def get_config(self) -> dict[str, Any]:
        return {"settings": self._settings.model_dump()}


def build(settings: config.Optimizer, *, epochs: int, steps: int) -> keras.optimizers.Optimizer:
    """The optimizer of `settings`. Raises OptimizerError for an unknown name or argument."""
    known = {
        name.lower(): each
        for name, each in vars(keras.optimizers).items()
        if isinstance(each, type)
        and issubclass(each, keras.optimizers.Optimizer)
        and name not in ("Optimizer", "LossScaleOptimizer")
    }
    kind = known.get(settings.name.lower())
    if kind is None:
        names = ", ".join(sorted(each.__name__ for each in known.values()))
        raise OptimizerError(f"optimizer.name = {settings.name!r}: no such optimizer. Fix: use one of {names}.")
    options: dict[str, Any] = {
        "learning_rate": Schedule(settings, epochs=epochs, steps=steps),
        "weight_decay": settings.weight_decay,
        "global_clipnorm": settings.clip_norm,
    }
    if settings.ema is not None:
        options |= {"use_ema": True, "ema_momentum": settings.ema, "ema_overwrite_frequency": None}
    options = {key: value for key, value in options.items() if value is not None}
    if twice := sorted(settings.arguments.keys() & {*options, "name", "learning_rate", "use_ema", "ema_momentum", "clipnorm"}):
        raise OptimizerError(
            f"optimizer.arguments has {twice[0]}. Fix: use optimizer.learning_rate, weight_decay, clip_norm or ema for it."
        )
    if unfit := sorted(settings.arguments.keys() & {"ema_overwrite_frequency", "gradient_accumulation_steps", "loss_scale_factor"}):
        raise OptimizerError(f"optimizer.arguments has {unfit[0]}, which this job does not support. Fix: remove it.")
    try:
        for trial in (True, False):  # Keras notices some wrong arguments in the first step only
            built = kind(name=kind.__name__.lower(), **options, **settings.arguments)
            if trial:
                built.apply([np.zeros((2, 2), np.float32)], [keras.Variable(np.zeros((2, 2), np.float32))])
        return built
    except Exception as error:  # Keras raises TypeError or ValueError, depending on the argument
        raise OptimizerError(
            f"optimizer.arguments = {settings.arguments} do not fit {kind.__name__}: {one_line(error)}. Fix: correct them."
        ) from None
