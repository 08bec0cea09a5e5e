"""Prepares what the workers train on: packs, downloads, splits and checks the listed images."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer import UserError, config
from trainer.data.dataset import DataError, Manifest, Pack, Split
from trainer.data.pack import pack
from trainer.data.shards import PackedRows, open_rows
from trainer.data.sources import Sources
from trainer.data.split import split_rows
from trainer.formatting import one_line
from trainer.model.module import Module, check_unchanged
from trainer.run.console import RunLog
from trainer.storage import Store, results


class OutputError(UserError):
    """The local folder for reports cannot be written."""


@dataclass(frozen=True)
class Prepared:
    """A run's images."""

    pack: Pack
    rows: PackedRows
    split: Split


def prepare(
    images: Manifest | Pack,
    sources: Sources,
    storage: Store,
    data: config.Data,
    *,
    cache_dir: Path,
    cache_max_bytes: int,
    batch_size: int,
    log: RunLog,
    progress: Callable[[int, int], None],
) -> Prepared:
    """Packs the images of a manifest unless that is done already, and splits them.

    Ray must be initialized. Calls progress(images done, all images) while images are packed; an exception that it raises ends the
    packing. Raises DataError when there are too few images, PackError and StoreError.
    """
    packed = images if isinstance(images, Pack) else _packed(images, sources, storage, data, log, progress)
    rows = open_rows(packed, storage, cache_dir, cache_max_bytes)
    sides = split_rows(rows, packed.classes, data)
    training, validation = len(sides.training), len(sides.validation)
    check_batch_size(batch_size, training)
    pixels = packed.images * int(np.prod(packed.image_shape))
    log.split(
        training,
        validation,
        packed.classes,
        pixels,
        dropped=training % batch_size,
        test=len(sides.test),
        groups=len(set(rows.groups) - {""}) if any(rows.groups) else None,
    )
    for warning in sides.facts["warnings"]:
        log.warn(warning)
    return Prepared(packed, rows, sides)


def check_resumable(previous: Mapping[str, Any] | None, settings: config.Settings, module: Module | None, name: str) -> None:
    """Raises ConfigError or NetworkError when run `name` cannot continue with these settings and this module of its network.

    `previous`: the run.json of the run to resume, None for a new run.
    """
    if previous:
        config.check_resumable(settings, previous["config"], name)
        check_unchanged(module, previous.get("module"), name)


def complete(previous: Mapping[str, Any] | None, storage: Store, settings: config.Settings, name: str) -> str | None:
    """A line for the user if run `name` has nothing left to do with these settings, else None. Raises StoreError.

    `previous`: its run.json. A run that is to export another epoch (training.keep), or whose records were lost, is
    not complete.
    """
    if not previous or previous.get("outcome") not in ("completed", "stopped early"):
        return None
    before, now = previous["config"]["training"], settings.training
    epochs = [report.epoch for report in results.get_history(storage, name)]
    trained = len(epochs)
    if epochs != list(range(1, trained + 1)) or results.get_findings(storage, name) is None:
        return None  # records were lost; the workers still know them
    early = previous["outcome"] == "stopped early" and trained < now.epochs
    if early and (before["epochs"], before["early_stopping"]) != (now.epochs, now.early_stopping):
        return None
    if before["keep"] != now.keep or (trained < now.epochs and not early):
        return None
    key = f"training.early_stopping (now {now.early_stopping})" if early else f"training.epochs (now {now.epochs})"
    return (
        f"Run {name} is complete: {previous['outcome']} after {trained} epochs; its report and model are in "
        f"{storage.url}/runs/{name}. To train it longer, raise {key}. For another run, choose another run.name."
    )


def check_batch_size(batch_size: int, training: int, about: str = "") -> None:
    """Raises DataError when `training` images do not fill one batch. `about`: how exact that number is, such as "about "."""
    if training < batch_size:
        raise DataError(
            f"training.batch_size = {batch_size} is larger than the training set of {about}{training} images. Fix: lower it or add "
            "images."
        )


def check_output(folder: str) -> None:
    """Creates `run.output` if need be. Raises OutputError when no file can be created there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"run.output = {folder!r} cannot be written ({error.strerror or one_line(error)}). Fix: set it to a writable folder."
        ) from None


def _packed(
    manifest: Manifest, sources: Sources, storage: Store, data: config.Data, log: RunLog, progress: Callable[[int, int], None]
) -> Pack:
    began, read = time.monotonic(), False

    def note(done: int, total: int) -> None:
        nonlocal read
        read = True
        progress(done, total)

    packed = pack(manifest, sources, storage, data, progress=note)
    log.packed(manifest, packed.quarantined, time.monotonic() - began if read else None)
    return packed
