"""What a checkpoint of a run holds, and how a run resumes from one.

Separation of concerns: storage/checkpoint.py stores arrays and JSON and knows nothing of training. This module turns the
learner, the diagnosis and the position of the run into arrays and JSON, and back.

Shapes: s steps of the current epoch so far.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spikewise.diagnose import Diagnostician
from spikewise.records import Event
from trainer import UserError, config
from trainer.engine.step import STEP_RECORD, Learner
from trainer.epoch import EpochReport
from trainer.storage import results
from trainer.storage.checkpoint import Checkpoints

DIAGNOSIS = "diagnosis/"
"""Prefix of the arrays of the diagnosis in a checkpoint."""
TRACE = "epoch/trace"
"""Name of the moving statistics of the current epoch in a checkpoint."""
STEPS = "epoch/steps/"
"""Prefix of the records of the current epoch's steps in a checkpoint, one array [s] for each field."""


@dataclass
class Position:
    """How far a run has come."""

    epoch: int = 1
    """The current epoch."""
    steps: np.ndarray = field(default_factory=lambda: np.zeros(0, STEP_RECORD))
    """STEP_RECORD [s] of the current epoch."""
    trace: np.ndarray | None = None
    """Moving statistics float32 [s + 1, m] before the first and after each of these steps; None if they are not kept."""
    history: list[EpochReport] = field(default_factory=list)
    """One report for each finished epoch."""

    def after(self, steps: np.ndarray, trace: np.ndarray | None = None) -> "Position":
        """The position after these further steps, STEP_RECORD, of the current epoch. `trace`: that of these steps alone."""
        if len(self.steps):
            trace = None if self.trace is None or trace is None else np.concatenate([self.trace, trace[1:]])
        return Position(self.epoch, np.concatenate([self.steps, steps]), trace, self.history)

    def next_epoch(self, report: EpochReport) -> "Position":
        """The position at the beginning of the next epoch. `report`: of the current one."""
        return Position(self.epoch + 1, self.steps[:0], None, [*self.history, report])


@dataclass(frozen=True)
class Resumption:
    """A run as its checkpoint describes it."""

    step: int
    """The checkpoint's step."""
    position: Position
    settings: dict[str, Any]
    """Those of the run when it saved the checkpoint, as `config.stored` returns them."""


def to_checkpoint(
    learner: Learner,
    position: Position,
    diagnostician: Diagnostician,
    settings: Mapping[str, Any],
    validation_loss: float | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Copies everything that `resume` needs into plain arrays and JSON types. `validation_loss`: of the epoch that has just
    ended; None inside an epoch."""
    diagnosis, memory = diagnostician.state()
    state = learner.state() | plain_steps(position.steps, STEPS) | {DIAGNOSIS + name: array for name, array in memory.items()}
    if position.trace is not None:
        state[TRACE] = position.trace
    history = [report.as_dict() for report in position.history]
    meta: dict[str, Any] = {"epoch": position.epoch, "history": history, "diagnosis": diagnosis}
    if validation_loss is not None:
        meta["validation_loss"] = validation_loss
    return state, meta | {"settings": settings}


def resume(
    checkpoints: Checkpoints,
    learner: Learner,
    diagnostician: Diagnostician,
    *,
    chief: bool,
    broadcast: Callable[[int | None], int | None],
    step: int | None = None,
) -> Resumption | None:
    """Loads the newest intact checkpoint into `learner` and `diagnostician`, or the one of `step`; None if there is none.

    `broadcast`: returns rank 0's argument on all workers. Raises StoreError, CheckpointError if the checkpoint of `step` is missing
    or damaged, and UserError for a checkpoint of another model.
    """
    # Resume order:
    # 1. Rank 0 claims the checkpoints and finds the newest one, so that all workers load the same one. A given step is only read.
    found = None
    if step is None:
        found = checkpoints.claim() if chief else None
        step = broadcast(found.step if found else None)
    if step is None:
        return None
    _, state, meta = found or checkpoints.load(step)
    # 2. Weights, moving statistics and optimizer; the optimizer's step count determines the dropout masks.
    step_arrays, memory, trace = _pop(state, STEPS), _pop(state, DIAGNOSIS), state.pop(TRACE, None)
    learner.restore(state)
    # 3. History, epoch and the steps already made in it, which determine the order of the images.
    try:
        steps = step_records(step_arrays)
        position = Position(_epoch(meta), steps, trace, [results.report_from(values) for values in meta["history"]])
        # 4. The diagnosis, which copies the restored weights at the end of an epoch.
        diagnostician.restore(meta["diagnosis"], memory, at_epoch_end=not len(steps))
        return Resumption(step, position, config.stored(meta["settings"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"The checkpoint of step {step} does not describe a run ({type(error).__name__}: {error}). Fix: choose another "
            "run.name, or delete that checkpoint."
        ) from None


def _epoch(meta: Mapping[str, Any]) -> int:
    epoch, history = meta["epoch"], meta["history"]
    if not isinstance(epoch, int) or not isinstance(history, list) or epoch != len(history) + 1:
        raise ValueError(f"epoch {epoch!r:.40} after a history of {len(history)} epochs")
    return epoch


def changes(resumed: Resumption, settings: config.Settings, *, workers: int) -> list[Event]:
    """What differs from the run before the restart, for the diagnosis."""
    epoch, step = resumed.position.epoch, len(resumed.position.steps)
    events = [Event("restart", epoch, step)]
    before, now = resumed.settings, settings.as_dict()
    rate, size = before["optimizer"]["learning_rate"], before["launch"]["workers"]
    if rate != settings.optimizer.learning_rate:
        events.append(Event("learning_rate", epoch, step, rate, settings.optimizer.learning_rate))
    elif _schedule(before) != _schedule(now):
        events.append(Event("learning_rate", epoch, step))  # from which rate to which depends on the step
    if size != workers:
        events.append(Event("world_size", epoch, step, size, workers))
    return events


def _schedule(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """The settings that determine how the learning rate changes."""
    optimizer = settings["optimizer"]
    epochs = settings["training"]["epochs"] if optimizer["schedule"] == "cosine" else None
    return epochs, *(optimizer[key] for key in ("schedule", "warmup_epochs", "step_epochs", "step_factor"))


def plain_steps(steps: np.ndarray, prefix: str = "") -> dict[str, np.ndarray]:
    """STEP_RECORD [s] -> a plain array [s] for each field, named prefix + field: what safetensors can store."""
    return {prefix + name: steps[name].copy() for name in STEP_RECORD.names or ()}


def step_records(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The reverse of `plain_steps`, without a prefix."""
    steps = np.zeros(len(next(iter(arrays.values()), ())), STEP_RECORD)
    for name in STEP_RECORD.names or ():
        steps[name] = arrays[name]
    return steps


def _pop(state: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Removes the arrays whose names begin with `prefix`, and returns them without it."""
    return {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
