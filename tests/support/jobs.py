"""A small job for tests: its images, its configuration, and the epochs that it recorded."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from trainer import config
from trainer.engine.facts import NetworkFacts
from trainer.epoch import EpochReport
from trainer.model.module import Module
from trainer.storage import open_store, results

CONFIG = """
[run]
storage = "{storage}/storage"
output = "{folder}/runs"
[data]
source = "{storage}/images"
classes = {{ authentic = "authentic/", fake = "fake/" }}
image_size = [32, 32]
validation_fraction = 0.3
[s3]
path_style = true
[pipeline]
cache_dir = "{folder}/cache"
[augmentation]
flip = true
shift = 2
[training]
epochs = 4
train_sample = 50
[launch]
workers = {workers}
object_store_bytes = 100_000_000
[checkpoint]
lease_seconds = 2.0
[metrics]
host = "127.0.0.1"
port = 0
linger = 0.0
"""


def put_images(storage: str, images: int = 480, seed: int = 0, below: str = "images") -> None:
    """Uploads JPEGs of two classes to `storage`/`below`: smooth noise, with a square pasted into the forged ones."""
    store, generator = open_store(f"{storage}/{below}", config.S3(path_style=True)), np.random.default_rng(seed)
    for number in range(images):
        pixels = np.kron(generator.normal(120, 30, (8, 8, 3)), np.ones((6, 6, 1))) + generator.normal(0, 10, (48, 48, 3))
        if forged := number % 2:
            pixels[10:30, 10:30] += generator.normal(40, 10)
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
        store.put(f"{'fake' if forged else 'authentic'}/{number:05d}.jpg", buffer.getvalue())


def write_config(folder: Path, storage: str, workers: int = 1) -> Path:
    """Writes the configuration of a job with images and storage below the URL `storage`, and output and cache below `folder`."""
    path = folder / "job.toml"
    path.write_text(CONFIG.format(storage=storage, folder=folder, workers=workers))
    return path


_inspected: dict[str, NetworkFacts] = {}


def inspected_once(inspect: Callable[..., NetworkFacts]) -> Callable[..., NetworkFacts]:
    """`inspect` (trainer.engine.facts), which starts a process, but only once for each network and optimizer."""

    def inspected(settings: config.Settings, classes: int, module: Module | None = None) -> NetworkFacts:
        key = repr((settings.model, settings.optimizer, settings.data.image_size, classes, module))
        if key not in _inspected:
            _inspected[key] = inspect(settings, classes, module)
        return _inspected[key]

    return inspected


def history(storage: str, name: str) -> list[EpochReport]:
    """The stored reports of all epochs of run `name`."""
    return results.get_history(open_store(f"{storage}/storage", config.S3(path_style=True)), name)


def curves(storage: str, name: str) -> np.ndarray:
    """[E, 3]: training loss, training loss in inference mode and validation loss of each epoch."""
    return np.array([[r.train_loss, r.train_loss_inference, r.validation_loss] for r in history(storage, name)])
