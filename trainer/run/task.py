"""What the driver sends to every worker."""

from dataclasses import dataclass
from typing import Any

from trainer.data.dataset import Pack, Split
from trainer.model.module import Module


@dataclass(frozen=True, slots=True)
class Replay:
    """What to train again: epochs of a run, from one of its checkpoints. A replay saves no checkpoint and exports no model."""

    run: str
    """The run whose checkpoint it is."""
    step: int
    """The checkpoint's step, at the end of an epoch; 0: begin with the initial weights."""
    last: int
    """The last epoch to train."""
    asked: int | None = None
    """The epoch to diagnose although it may be no spike; None: diagnose nothing."""


@dataclass(frozen=True, slots=True)
class Task:
    """A run as its workers need it."""

    run: str
    """The run's name; of a replay, the prefix of its records below `runs/`."""
    settings: dict[str, Any]
    """Settings.as_dict()."""
    pack: Pack
    split: Split
    mailbox: Any
    """Handle of the actor mailbox.Mailbox."""
    threads: int
    """TensorFlow's threads for one operation."""
    lease: int = 0
    """Number of the driver's lease on the run's name."""
    module: Module | None = None
    """The module of the user's network; None for a built-in network."""
    replay: Replay | None = None
    """None: train the run to its end."""
