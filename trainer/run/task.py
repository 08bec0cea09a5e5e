"""What the driver sends to every worker."""

from dataclasses import dataclass
from typing import Any

from trainer.data.dataset import Pack, Split
from trainer.model.module import Module


@dataclass(frozen=True, slots=True)
class Task:
    """A run as its workers need it."""

    run: str
    """The run's name."""
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
