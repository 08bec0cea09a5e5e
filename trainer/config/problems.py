"""What is wrong with a configuration, for the user: key, value, bound and fix, and the override that it comes from."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from trainer import UserError
from trainer.config.settings import Settings
from trainer.formatting import masked

MOVED = {
    "training.learning_rate": "optimizer.learning_rate",
    "pipeline.flip": "augmentation.flip",
    "pipeline.shift": "augmentation.shift",
}
"""Keys of earlier versions, and what they are called now."""
SHOWN = 200
"""Characters of a value that a message shows."""
UNION = ("literal[", "dict[")
"""How pydantic names the branches of a union in the place of a problem."""


class ConfigError(UserError):
    """The configuration is invalid; the message has one line for each problem, with key, value and bound."""


def explained(error: ValidationError, origin: str, overrides: Mapping[tuple[str, ...], str]) -> ConfigError:
    """The error for the user, with one line for each problem. `overrides`: key path -> override."""
    problems = [dict(problem) for problem in error.errors(include_url=False) if _concerns(dict(problem))]
    return ConfigError("\n".join(dict.fromkeys(_line(problem, origin, overrides) for problem in problems)))


def _concerns(problem: dict[str, Any]) -> bool:
    """Whether a problem is with the branch of a union that the user meant: the name for a string, the table for a table."""
    union = str(problem["loc"][-1] if problem["loc"] else "").startswith(UNION)
    return not union or (problem["type"] == "literal_error") != isinstance(problem["input"], dict)


def _line(problem: dict[str, Any], origin: str, overrides: Mapping[tuple[str, ...], str]) -> str:
    """A problem for the user. It names the overrides that it comes from, and otherwise `origin`."""
    message = _message(problem)
    loc = tuple(str(part) for part in problem["loc"] if not str(part).startswith(UNION))
    guilty = [override for path, override in overrides.items() if loc[: len(path)] == path]
    if not guilty and loc and problem["type"] == "extra_forbidden":  # a section that only overrides name
        inside = [path for path in overrides if path[: len(loc)] == loc]
        guilty = [overrides[path] for path in inside] if len(inside) == _leaves(problem["input"]) else []
    if not guilty:  # a check of several values, which names them
        guilty = [
            override
            for path, override in overrides.items()
            if path[: len(loc)] == loc
            and re.search(rf"\b(?:{re.escape('.'.join(path))}|{re.escape(path[len(loc)] if loc else path[-1])})\b", message)
        ]
    if guilty:
        return f"--set {_shortened(masked(' '.join(guilty)))}: {message}."
    key = ".".join(loc)
    if not isinstance(problem["input"], dict) or problem["type"] == "extra_forbidden":
        key += f" = {_shortened(repr(problem['input']))}"
    return f"{origin}: {key}: {message}." if key else f"{origin}: {message}."


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _leaves(value: Any) -> int:
    """Number of values in nested dicts."""
    return sum(map(_leaves, value.values())) if isinstance(value, dict) else 1


def _message(problem: dict[str, Any]) -> str:
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
    match problem["type"]:
        case "extra_forbidden":
            if moved := MOVED.get(".".join(map(str, problem["loc"]))):
                return f"unknown key. Fix: it is called {moved} now"
            return f"unknown key. Fix: use one of {', '.join(_known(problem['loc']))}"
        case "missing":
            return "missing. Fix: set it"
        case "dict_type":
            return "should be a table"
        case "literal_error" if str(problem["loc"][-1]).startswith(UNION):
            return f"{message} or a table"
        case "string_type":
            return f"{message}. Fix: put it in quotes"
        case "string_pattern_mismatch":  # of run.name
            return f"{message}. Fix: use at most 52 lower-case letters, digits and dashes"
    return message if "Fix: " in message else f"{message}. Fix: correct the value"


def _known(loc: tuple[Any, ...]) -> list[str]:
    """The keys of the section of an unknown key."""
    section: Any = Settings
    for part in loc[:-1]:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
