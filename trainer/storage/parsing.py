"""Reads JSON that anyone with access to the bucket may have written, and that may arrive damaged."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "sha256"


def json_object(content: bytes) -> dict[str, Any]:
    """The JSON object in `content`. Raises ValueError for everything else, however deep or large it is."""
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    return found


def sealed(values: Mapping[str, Any]) -> bytes:
    """JSON with a digest of itself, so that a flipped bit is noticed."""
    return json.dumps({**values, SEAL: _digest(values)}, indent=1).encode()


def unsealed(content: bytes) -> dict[str, Any]:
    """What `sealed` was given; JSON without a digest, as earlier versions wrote it, as it is. Raises ValueError for damage."""
    found = json_object(content)
    if found.pop(SEAL, None) not in (None, _digest(found)):
        raise ValueError("it differs from what was written (SHA-256)")
    return found


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
