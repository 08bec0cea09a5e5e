"""What a run would do, for `--dry-run`: lists the source of a new one, reads no image, writes nothing."""

from collections import Counter

from trainer import config
from trainer.data.dataset import Pack
from trainer.data.index import DataError
from trainer.data.pack import images_of, load_pack
from trainer.formatting import size
from trainer.storage import open_store, results


def plan(settings: config.Settings, name: str) -> str:
    """The plan as text, one line for each part of the run. Raises ConfigError, DataError and StoreError as the run itself would."""
    storage = open_store(settings.run.storage, settings.s3)
    previous = results.get_run(storage, name) if settings.run.name else None
    if previous:
        config.check_resumable(settings, previous["config"], name)
    epochs = len(results.get_history(storage, name)) if previous else 0
    found = images_of(name, open_store(settings.data.source, settings.s3), storage, settings.data, previous)
    fraction = settings.data.validation_fraction
    split, classes = ("group" if settings.data.group_by else "content"), ", ".join(found.classes)
    if isinstance(found, Pack):
        images, packed = found.images, True
        data = f"{images:,} images, packed when the run began"
    else:
        images, packed = len(found.images), load_pack(storage, found.digest, (*settings.data.image_size, 3)) is not None
        data = f"{found.source}: {images:,} images of {size(sum(image.size for image in found.images))}, "
        data += f"{found.ignored:,} other objects ignored"
        counts = Counter(image.label for image in found.images)
        classes = ", ".join(f"{each} {counts[label]:,}" for label, each in enumerate(found.classes))
        if groups := len({image.group for image in found.images if image.group}):
            split += f" ({groups:,} groups)"
    training = round(images * (1 - fraction))
    batch, workers = settings.training.batch_size, settings.launch.workers
    if training < batch:
        raise DataError(
            f"training.batch_size = {batch} is larger than the training set of about {training} images: lower it or add images"
        )
    height, width = settings.data.image_size
    pixels = images * height * width * 3
    weights = 4 * parameters((height, width, 3), len(found.classes))
    bound = settings.pipeline.memory_bytes
    in_memory = size(pixels) if pixels <= bound else "stay on disk"
    each = "a GPU" if settings.launch.gpu else f"{settings.launch.cpus_per_worker or 'an even share of the'} cores"
    lines = {
        "run": f"{name} in {storage.url}" + (f", resumes after epoch {epochs}" if previous else ", new"),
        "data": f"{data}, digest {found.digest[:16]}",
        "classes": classes,
        "split": f"{fraction:.0%} for validation by {split}: about {training:,} to train on",
        "pack": f"{height}x{width}x3: {size(pixels)} in storage, " + ("already there" if packed else "to be made"),
        "training": f"{settings.training.epochs} epochs of {training // batch} steps of {batch} images "
        f"at learning rate {settings.training.learning_rate:g}",
        "workers": f"{workers}, {batch // workers} images of each batch and {each} for each",
        "memory": f"in each worker: images {in_memory} (bound {size(bound)}), weights, gradients "
        f"and Adam {size(4 * weights)}, beside TensorFlow itself",
        "disk": f"{size(pixels)} in {settings.pipeline.cache_dir} on each machine",
        "metrics": f"http://{settings.metrics.host}:{settings.metrics.port}/metrics",
    }
    return "\n".join(f"{what:<9} {line}" for what, line in lines.items())


def parameters(shape: tuple[int, int, int], classes: int) -> int:
    """Number of weights of model.build's network, moving statistics included, for images of `shape` (H, W, C)."""
    height, width, channels = shape
    sizes = [9 * channels, 9 * 16, 9 * 16, 9 * 32, height // 4 * (width // 4) * 32]
    units = [16, 16, 32, 32, 64]
    layers = sum(inputs * outputs + outputs + 4 * outputs for inputs, outputs in zip(sizes, units, strict=True))
    return layers + 64 * classes + classes
