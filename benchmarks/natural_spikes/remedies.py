"""What the diagnosis advises, as experiments that have a name. Pure.

An experiment is named by the settings that it changes, as a cause names them (`optimizer.clip_norm=1`), or by one of ORDER, DRAW
and WITHOUT.
"""

from collections.abc import Mapping
from typing import Any

ORDER = "another order of the images"
DRAW = "another draw of validation images"
WITHOUT = "without the batches that stand out"
STANDARD = ("model.momentum=0.9", "model.momentum=0.999", "model.statistics=precise")
"""Settings that change only the evaluation: the control's own weights show what they do. They are tried for every spike."""
FALLBACK = ("model.dropout=0", "optimizer.learning_rate=0.0005", "optimizer.clip_norm=1")
"""Changes of the training that are tried for every spike, whatever the diagnosis says."""
ADAM = {
    "optimizer.clip_norm": "global_clipnorm",
    "optimizer.weight_decay": "weight_decay",
    "optimizer.arguments.beta_2": "beta_2",
    "optimizer.arguments.epsilon": "epsilon",
}
"""Settings of the optimizer, and its fields."""
KNOWN = {
    *ADAM,
    *("model.dropout", "optimizer.learning_rate", "optimizer.warmup_epochs", "optimizer.ema"),
    *("training.batch_size", "training.label_smoothing", "augmentation.shift"),
}
"""Settings with which an epoch can be trained again."""
UNTRAINED = ("training.keep", "training.early_stopping", "data.", "model.precision")
"""Settings that a replay cannot test."""


def parsed(line: str) -> dict[str, str] | None:
    """The settings in a line, such as `optimizer.learning_rate=1e-4 optimizer.warmup_epochs=3`; None if no replay shows them.
    Raises ValueError for a setting that is unknown here: the benchmark would silently leave out a remedy."""
    settings = dict(one.split("=", 1) for one in line.split())
    if unknown := [key for key in settings if key not in KNOWN and not key.startswith(UNTRAINED)]:
        raise ValueError(f"{unknown[0]}: unknown remedy. Fix: implement it in benchmarks.natural_spikes.experiments.Change.")
    return settings if all(key in KNOWN for key in settings) else None


def own(cause: Mapping[str, Any], *, bad_batches: bool) -> list[str]:
    """The experiments that would confirm a cause, in order: its settings, or what its advice amounts to. `cause`: as in
    records.Cause.as_dict. `bad_batches`: whether batches stood out."""
    if cause["name"] in ("sampling_noise", "few_examples"):
        return [DRAW]
    if cause["name"] == "bad_batch" and bad_batches:
        return [WITHOUT]
    return [line for line in cause["settings"] if line in STANDARD or parsed(line) is not None]
