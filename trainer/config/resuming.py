"""What may be changed when a run is resumed."""

from typing import Any

from trainer.config.problems import ConfigError
from trainer.config.settings import Settings

FREE_TO_CHANGE = {"s3", "launch", "checkpoint", "metrics", "diagnosis"}
"""Sections that a resumed run may change, because they do not affect what is learned."""
KEYS_FREE_TO_CHANGE = {
    ("run", "name"),
    ("run", "storage"),
    ("run", "output"),
    ("pipeline", "memory_bytes"),
    ("pipeline", "cache_dir"),
    ("pipeline", "cache_max_bytes"),
    ("training", "epochs"),
    ("optimizer", "learning_rate"),
    ("optimizer", "schedule"),
    ("optimizer", "warmup_epochs"),
    ("optimizer", "step_epochs"),
    ("optimizer", "step_factor"),
    ("optimizer", "weight_decay"),
    ("optimizer", "clip_norm"),
    ("training", "early_stopping"),
    ("training", "keep"),
    ("diagnosis", "sensitivity"),
    ("data", "min_validation"),
    ("data", "max_quarantined"),
}
"""Keys of other sections that a resumed run may change."""


def check_resumable(now: Settings, before: dict[str, Any], name: str) -> None:
    """Raises ConfigError when run `name`, started with the settings `before` (`as_dict`), cannot continue with `now`."""
    for section, values in now.as_dict().items():
        for key, value in values.items():
            was = before.get(section, {}).get(key, value)
            if was != value and section not in FREE_TO_CHANGE and (section, key) not in KEYS_FREE_TO_CHANGE:
                raise ConfigError(
                    f"Run {name} was started with {section}.{key} = {was!r}, now it is {value!r}. "
                    "Fix: restore the value to resume that run, or choose another run.name."
                )
