"""The file that a SpikeDiagnosis is saved to: a NumPy archive (.npz) of plain arrays, without pickled objects."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from spikewise.errors import UserError

FORMAT = 1


def write(path: str | os.PathLike[str], facts: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Writes `facts`, of JSON types, and arrays. The file is complete or not there."""
    text = json.dumps({"format": FORMAT, **facts}).encode()
    plain: dict[str, Any] = {name: _plain(values) for name, values in arrays.items()}
    temporary = Path(f"{os.fspath(path)}.partial")
    with temporary.open("wb") as file:
        np.savez(file, facts=np.frombuffer(text, np.uint8), **plain)
    temporary.replace(path)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `write` wrote. Raises UserError if there is no such file, or it is another."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        facts = json.loads(arrays.pop("facts").tobytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. Fix: pass a file that SpikeDiagnosis.save wrote.") from None
    except (ValueError, KeyError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a file that SpikeDiagnosis.save wrote: {error}. Fix: pass one.") from None
    if facts.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {facts.get('format')}, this version reads {FORMAT}. Fix: install the version that wrote it."
        )
    return facts, arrays


def _plain(values: Any) -> np.ndarray:
    """The array in a type that an archive holds: text as bytes, bfloat16 as float32."""
    array = np.asarray(values)
    if array.dtype == object:
        return array.astype(bytes)
    return array.astype(np.float32) if array.dtype.isbuiltin == 2 else array
