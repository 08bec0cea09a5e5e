"""The files of one checkpoint: named arrays and JSON, written, and verified before they are parsed."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from trainer import UserError
from trainer.formatting import plain
from trainer.storage import NotFound, Store
from trainer.storage.files import scratch
from trainer.storage.lineage import COMMIT
from trainer.storage.parsing import Damaged, json_object, unsealed

STATE, META = "state.safetensors", "meta.json"
FORMER_STATE = "state.npz"
"""In place of STATE, in checkpoints from before version 0.1.0 was released."""
STORABLE = frozenset(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)) | {
    *("bool", "bfloat16", "float16", "float32", "float64", "complex64")
}
"""Names of the dtypes that safetensors reads back unchanged."""


class CheckpointError(UserError):
    """A checkpoint cannot be written as asked, or differs from what was committed; the one-line message names the object."""


class Restored(NamedTuple):
    step: int
    state: dict[str, np.ndarray]
    meta: dict[str, Any]


def write(folder: Path, state: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Writes the files of a checkpoint; returns size and SHA-256 of each. Raises CheckpointError for a dtype not in STORABLE."""
    _write_state(folder / STATE, state)
    (folder / META).write_text(json.dumps(dict(meta)), encoding="utf-8")
    return {name: _fingerprint(folder / name) for name in (STATE, META)}


def read(store: Store, folder: str, step: int) -> Restored:
    """The checkpoint of `step` in `folder`, its sizes and digests verified before it is parsed.

    Raises CheckpointError when it is incomplete, altered or cannot be parsed; UserError when an earlier version wrote it;
    StoreError.
    """
    try:
        files = unsealed(store.get(folder + COMMIT))["files"]
        if FORMER_STATE in files:
            raise UserError(
                f"{folder} was written before checkpoints were safetensors and cannot be read. Fix: finish this run with the "
                "version that began it, or set another run.name."
            )
        with scratch() as local:
            for name in (STATE, META):
                store.download(folder + name, local / name)
                found, expected = _fingerprint(local / name), files[name]
                if found["size"] != expected["size"]:
                    raise CheckpointError(f"{folder}{name} has {found['size']} bytes, {expected['size']} were committed")
                if found["sha256"] != expected["sha256"]:
                    raise CheckpointError(f"{folder}{name} differs from what was committed (SHA-256)")
            return Restored(step, load_file(local / STATE), json_object((local / META).read_bytes()))
    except NotFound as error:
        raise CheckpointError(f"{folder} is incomplete: {error}") from None
    except UserError:
        raise
    except (Damaged, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be parsed: {type(error).__name__}: {plain(error)}") from None


def loss_of(meta: Mapping[str, Any]) -> float | None:
    """The validation loss; None if it is missing or not finite."""
    loss = meta.get("validation_loss")
    return float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else None


def _write_state(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays; equal arrays give equal bytes."""
    for name, array in state.items():
        if array.dtype.name not in STORABLE:
            raise CheckpointError(f'Array "{name}" has dtype {array.dtype}. Fix: store numbers or booleans.')
    save_file({name: np.asarray(array, order="C") for name, array in state.items()}, path)  # save_file ignores strides


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
