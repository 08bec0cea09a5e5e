"""What a model is compiled with: whether it can be watched, and what of it changed between two epochs."""

import types
from dataclasses import dataclass
from typing import Any

import keras

from spikewise.errors import UserError
from spikewise.keras.recorder import inner_optimizer
from spikewise.records import Event


@dataclass(frozen=True)
class Setup:
    """JSON types only: it is saved with the state."""

    loss: str
    loss_digest: str
    """Tells losses of the same name apart."""
    optimizer: str
    iterations: int
    """Steps that the optimizer has made."""
    trainable: list[int]
    """Positions of the variables that train among `model.weights`."""
    norms: int
    """Number of BatchNormalization layers that train."""
    batch_size: int

    def events(self, before: "Setup", epoch: int) -> list[Event]:
        """What changed since `before`, as events of `epoch`. What explains most comes first."""
        found = []
        if self.loss_digest != before.loss_digest:
            same = self.loss == before.loss
            detail = f"{self.loss}, with other settings" if same else f"{self.loss} instead of {before.loss}"
            found.append(Event("loss", epoch, detail=detail))
        if self.trainable != before.trainable:
            count, earlier = len(self.trainable), len(before.trainable)
            found.append(Event("frozen_layers", epoch, before=earlier, after=count, detail=self._trained(before)))
        if self.optimizer != before.optimizer:
            found.append(Event("optimizer", epoch, detail=f"{self.optimizer} instead of {before.optimizer}"))
        elif self.iterations < before.iterations:
            detail = f"it had made {before.iterations} steps and began again from {self.iterations}"
            found.append(Event("optimizer_reset", epoch, detail=detail))
        if self.batch_size != before.batch_size:
            found.append(Event("batch_size", epoch, before=before.batch_size, after=self.batch_size))
        return found

    def _trained(self, before: "Setup") -> str:
        more, fewer = set(self.trainable) - set(before.trainable), set(before.trainable) - set(self.trainable)
        texts = [f"{len(some)} {word} train" for some, word in ((more, "more variables"), (fewer, "fewer variables")) if some]
        norms = ", BatchNormalization among them" if self.norms != before.norms else ""
        return " and ".join(texts) + norms


def check(model: keras.Model) -> None:
    """Raises UserError if the model is not trained by one optimizer, one step at a time, on one device."""
    if not isinstance(getattr(model, "optimizer", None), keras.optimizers.Optimizer):
        raise UserError("The model has not exactly one optimizer. Fix: compile it with one, such as optimizer='adam'.")
    if model.steps_per_execution != 1:
        raise UserError(
            f"SpikeDiagnosis looks at every step, but the model was compiled with steps_per_execution={model.steps_per_execution}. "
            "Fix: compile it with steps_per_execution=1."
        )
    if (accumulated := inner_optimizer(model).gradient_accumulation_steps or 1) != 1:
        raise UserError(
            f"SpikeDiagnosis compares single steps, but the optimizer has gradient_accumulation_steps={accumulated}. "
            "Fix: set it to None."
        )
    strategy, replicas = type(model.distribute_strategy).__name__, model.distribute_strategy.num_replicas_in_sync
    if replicas > 1 or "Mirrored" in strategy:  # mirrored variables are others, even on one device
        raise UserError(
            f"SpikeDiagnosis watches one device, but the model trains on {replicas} under {strategy}. "
            "Fix: train on one device, without a strategy."
        )


def setup_of(model: keras.Model, batch_size: int) -> Setup:
    """How `model` is compiled now."""
    places = {id(variable): i for i, variable in enumerate(model.weights)}
    layers = model._flatten_layers(include_self=False, recursive=True)
    optimizer = inner_optimizer(model)
    loss, settings = _described(model.loss)
    return Setup(
        loss=loss,
        loss_digest=f"{loss} {settings} {getattr(model._compile_loss, '_user_loss_weights', None)}",
        optimizer=type(optimizer).__name__,
        iterations=int(optimizer.iterations),
        trainable=sorted(places[id(v)] for v in model.trainable_variables if id(v) in places),
        norms=sum(isinstance(layer, keras.layers.BatchNormalization) and layer.trainable for layer in layers),
        batch_size=batch_size,
    )


def _described(loss: Any) -> tuple[str, str]:
    """The name of a loss as a user passes it to `compile`, and what tells it apart from others of this name."""
    if isinstance(loss, (list, tuple, dict)):
        parts = [_described(part) for part in (loss.values() if isinstance(loss, dict) else loss)]
        return " and ".join(name for name, _ in parts), str(parts)
    if isinstance(loss, type):
        return loss.__name__, ""
    if isinstance(loss, keras.losses.Loss):
        settings = {name: value for name, value in vars(loss).items() if name not in ("name", "_auto_config")}
        return type(loss).__name__, str({name: _simple(value) for name, value in settings.items()})
    if callable(loss):
        return getattr(loss, "__name__", type(loss).__name__), _simple(loss)
    return str(loss), ""


def _simple(value: Any) -> str:
    """The same text for equal values, also in another process."""
    if isinstance(value, (list, tuple)):
        return str([_simple(part) for part in value])
    if isinstance(value, dict):
        return str({name: _simple(part) for name, part in value.items()})
    if isinstance(value, types.FunctionType):
        return value.__qualname__ + _code(value.__code__) + _simple([cell.cell_contents for cell in value.__closure__ or ()])
    if isinstance(value, (int, float, str, bytes, type(None))):
        return repr(value)
    return type(value).__name__


def _code(code: types.CodeType) -> str:
    constants = [_code(part) if isinstance(part, types.CodeType) else repr(part) for part in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{constants}"
