"""What the driver hands to every worker."""

from dataclasses import dataclass
from typing import Any

from trainer.data.dataset import Pack, Split


@dataclass(frozen=True, slots=True)
class Task:
    """What every worker is handed."""

    run: str
    settings: dict[str, Any]
    """Config.digestible()."""
    pack: Pack
    split: Split
    mailbox: Any
    """Handle of the actor launch.Mailbox."""
    threads: int
    """TensorFlow's threads for one operation."""
