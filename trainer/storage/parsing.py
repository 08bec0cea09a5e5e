"""Reads JSON that anyone with access to the bucket may have written, and that may arrive damaged."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
SEAL = "sha256"


class Damaged(Exception):  # noqa: N818
    """The content of an object is not what it must be. No ValueError: that is the base of all errors of storage."""


def parsed(content: bytes, read: Callable[[dict[str, Any]], T]) -> T:
    """`read` of the JSON object in `content`. Raises Damaged for other content, and for what `read` finds wrong."""
    found = json_object(content)
    try:
        return read(found)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from None


def json_object(content: bytes) -> dict[str, Any]:
    """The JSON object in `content`. Raises Damaged for everything else, however deep or large it is."""
    found = json_value(content)
    if not isinstance(found, dict):
        raise Damaged("it is not a JSON object")
    return found


def json_value(content: bytes) -> Any:
    """The JSON in `content`. Raises Damaged for everything else, however deep or large it is."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"no JSON: {error}") from None


def sealed(values: Mapping[str, Any]) -> bytes:
    """JSON with a digest of itself, so that a flipped bit is noticed."""
    return json.dumps({**values, SEAL: _digest(values)}, indent=1).encode()


def unsealed(content: bytes) -> dict[str, Any]:
    """What `sealed` was given; JSON without a digest, as earlier versions wrote it, as it is. Raises Damaged."""
    found = json_object(content)
    if found.pop(SEAL, None) not in (None, _digest(found)):
        raise Damaged("it differs from what was written (SHA-256)")
    return found


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
