"""The configuration of a run: one strict TOML file, typed.

Separation of concerns: this package checks what can be checked from the file alone. Checks that need the data or the cluster (a
class without images, more workers than cores) are in the modules that know these.

sections     every key, with unit, bounds and default
settings     the sections together
problems     errors for the user
overrides    `--set section.key=value`
reading      from the file to the settings
resuming     which keys a resumed run may change
"""

from trainer.config.overrides import split_overrides
from trainer.config.problems import ConfigError
from trainer.config.reading import builder, changed, load, parse, run_name, stored
from trainer.config.resuming import KEYS_FREE_TO_CHANGE, check_resumable
from trainer.config.sections import (
    S3,
    Augmentation,
    Checkpoint,
    Data,
    Diagnosis,
    Launch,
    Metrics,
    Model,
    Optimizer,
    Pipeline,
    Run,
    Training,
)
from trainer.config.settings import Settings

__all__ = [
    "KEYS_FREE_TO_CHANGE",
    "S3",
    "Augmentation",
    "Checkpoint",
    "ConfigError",
    "Data",
    "Diagnosis",
    "Launch",
    "Metrics",
    "Model",
    "Optimizer",
    "Pipeline",
    "Run",
    "Settings",
    "Training",
    "builder",
    "changed",
    "check_resumable",
    "load",
    "parse",
    "run_name",
    "split_overrides",
    "stored",
]
