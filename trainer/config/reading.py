"""Builds the settings of a run: from a TOML file, from stored values, from other settings with changes."""

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from trainer.config.overrides import apply
from trainer.config.problems import ConfigError, explained
from trainer.config.settings import Settings
from trainer.formatting import masked

T = TypeVar("T")
READ_AGAIN = {
    "run": ("seed",),
    "optimizer": ("learning_rate", "schedule", "warmup_epochs", "step_epochs", "step_factor"),
    "training": ("epochs", "batch_size", "early_stopping", "keep"),
    "launch": ("workers",),
    "diagnosis": ("sensitivity",),
}
"""What is read of the settings that a run has stored, except to train with them again."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Reads a TOML file and applies `section.key=value` overrides, as `--set` takes them.

    Values are written as in TOML; bare words are strings. Raises ConfigError when the file is missing or not TOML, and for an
    unknown key, a wrong type or an impossible value.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}. Fix: correct the path.") from None
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, or an integer of too many digits
        raise ConfigError(f"{path}: is not valid TOML: {error}. Fix: correct the file.") from None
    return parse(values, str(path), {apply(values, override): override for override in overrides})


def parse(
    values: dict[str, Any], origin: str = "configuration", overrides: Mapping[tuple[str, ...], str] | None = None
) -> Settings:
    """Builds Settings from nested dicts of JSON types.

    Raises ConfigError, which names `origin`, or the override that the value comes from. `overrides`: key path -> override.
    """
    _check_no_credentials(values, origin, overrides or {})
    try:
        return Settings.model_validate_json(json.dumps(values, default=str))  # str: TOML's dates
    except ValidationError as error:
        raise explained(error, origin, overrides or {}) from None


def stored(values: Any) -> dict[str, Any]:
    """The settings that a run has stored, as nested dicts. The keys of READ_AGAIN have valid values, those that are missing their
    defaults; all others are as stored, since another version of this program may have named or bounded them otherwise.

    Raises ValueError, in one line, for something else than sections, and for an impossible value of one of those keys.
    """
    if not isinstance(values, dict) or not all(isinstance(section, dict) for section in values.values()):
        raise ValueError("config has no sections")
    images = {"data": {"source": ".", "class_pattern": "(?P<class>.)"}}  # of no meaning, but a configuration needs some
    known = {name: {key: values[name][key] for key in keys if key in values.get(name, {})} for name, keys in READ_AGAIN.items()}
    try:
        valid = parse({**images, **known}, "config").as_dict()
    except ConfigError as error:
        raise ValueError(str(error).partition(". Fix: ")[0]) from None
    return values | {name: values.get(name, {}) | {key: valid[name][key] for key in keys} for name, keys in READ_AGAIN.items()}


@cache
def builder(kind: type[T]) -> Callable[[Any], T]:
    """A function that builds a `kind`, a dataclass, from what a JSON object holds. It ignores fields that `kind` does not have, and
    raises ValueError for a field that is missing or of another type."""
    return TypeAdapter(kind).validate_python


def changed(settings: Settings, overrides: Sequence[str]) -> Settings:
    """`settings` with `section.key=value` overrides. Raises ConfigError as `load` does."""
    values = settings.as_dict()
    return parse(values, "the run's settings", {apply(values, override): override for override in overrides})


def run_name(settings: Settings, path: str | Path) -> str:
    """`run.name`, or a name made of the configuration file's name and the time; at most 43 characters, as a RayJob allows."""
    stem = re.sub("[^a-z0-9]+", "-", Path(path).stem.lower())[:27].strip("-") or "run"
    return settings.run.name or f"{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _check_no_credentials(value: Any, origin: str, overrides: Mapping[tuple[str, ...], str], path: tuple[str, ...] = ()) -> None:
    """Raises ConfigError for a URL with credentials: they would be stored with the run and shown in its report."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_no_credentials(inner, origin, overrides, (*path, str(name)))
    elif isinstance(value, list):
        for inner in value:
            _check_no_credentials(inner, origin, overrides, path)
    elif isinstance(value, str) and masked(value) != value:
        where = "--set" if any(path[: len(known)] == known for known in overrides) else origin
        raise ConfigError(
            f"{where}: {'.'.join(path)} = {masked(value)!r} contains credentials. Fix: remove them; those of S3 belong in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
