"""Owns the model that a run leaves behind: which epoch's weights it has, model.keras and model.json."""

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer import config
from trainer.engine.step import PREFIXES, Learner
from trainer.epoch import EpochReport, best
from trainer.model.export import export
from trainer.storage import Store
from trainer.storage.checkpoint import Checkpoints

log = logging.getLogger(__name__)


def load_best(
    learner: Learner,
    checkpoints: Checkpoints,
    history: Sequence[EpochReport],
    *,
    chief: bool,
    broadcast: Callable[[int | None], int | None],
) -> int:
    """Loads the weights of the best checkpoint into `learner` on all workers and returns their epoch.

    `broadcast`: returns rank 0's argument on all workers. Logs a warning when the best epoch has no checkpoint. Without any
    checkpoint the weights stay those of the last epoch. Raises StoreError.
    """
    epoch, wanted = history[-1].epoch, best(history)
    found = checkpoints.best() if chief else None
    step = broadcast(found.step if found else None)
    if step is not None:
        state = (found or checkpoints.load(step)).state
        learner.restore({name: array for name, array in state.items() if name.startswith(PREFIXES)})
        epoch = next(report.epoch for report in history if report.step == step)
    if chief and wanted and wanted.epoch != epoch:
        log.warning("model.keras has the weights of epoch %d: the best epoch, %d, has no intact checkpoint", epoch, wanted.epoch)
    return epoch


def store_model(
    learner: Learner, shape: tuple[int, int, int], classes: Sequence[str], settings: config.Model, store: Store, run: str
) -> None:
    """Exports model.keras, and model.json with what its users must know: the class name of each output, the image size (height,
    width), the data format, and what the outputs are (see distribute.Ending). Stores
    both beside the run's checkpoints. `shape`: H W C. Raises StoreError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        export(learner.model, shape, len(classes), settings, path)
        store.upload(f"runs/{run}/model.keras", path)
    about = {
        "classes": list(classes),
        "image_size": shape[:2],
        "data_format": settings.data_format,
        "output": learner.network.ending,
    }
    store.put(f"runs/{run}/model.json", json.dumps(about, indent=1).encode(), content_type="application/json")
