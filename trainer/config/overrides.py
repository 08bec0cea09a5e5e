"""Overrides of single keys, `section.key=value`, as `--set` and the Makefile's SET take them."""

import re
import tomllib
from typing import Any

from trainer.config.problems import ConfigError


def apply(values: dict[str, Any], override: str) -> tuple[str, ...]:
    """Applies an override to `values`; returns the path of its key."""
    key, equals, text = override.partition("=")
    section, *inner, name = path = key.strip().split(".") if "." in key else ["", ""]
    if not equals or not section or not name:
        raise ConfigError(f"--set {override}: not an override. Fix: write section.key=value, such as training.epochs=5.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:  # TOMLDecodeError, or an integer of too many digits
        value = text.strip()
    table: Any = values
    for part in (section, *inner):
        table = table.setdefault(part, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise ConfigError(f"--set {override}: {section} is not a section. Fix: correct the file or the override.")
    table[name] = value
    return tuple(path)


def split_overrides(text: str) -> list[str]:
    """Splits `section.key=value section.key=value`, the SET of the Makefile. Values may contain spaces.

    A value ends where white space and the next `section.key=` follow. A value that is valid TOML as a whole, such as a quoted
    string or a table, may contain even that.
    """
    starts = [0, *(match.end() for match in _NEXT_OVERRIDE.finditer(text)), len(text)]
    found, first = [], 0
    while first < len(starts) - 1:
        ends = range(first + 1, len(starts))
        last = next((end for end in ends if _is_toml(text[starts[first] : starts[end]])), first + 1)
        found.append(text[starts[first] : starts[last]].strip())
        first = last
    return found


_NEXT_OVERRIDE = re.compile(r"\s+(?=[A-Za-z_]\w*(\.[\w-]+)+\s*=)")


def _is_toml(override: str) -> bool:
    try:
        tomllib.loads(f"value = {override.partition('=')[2]}")
    except ValueError:
        return False
    return True
