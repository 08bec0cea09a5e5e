"""What a run would do, for `--dry-run`: lists the source, reads no image, writes nothing."""

from collections import Counter

from trainer import config, results
from trainer.console import size
from trainer.index import DataError, build_manifest
from trainer.objectstore import open_store
from trainer.pack import load_pack


def plan(settings: config.Config, name: str) -> str:
    """The plan as text, one line for each part of the run. Raises DataError and StoreError as the run itself would."""
    storage = open_store(settings.run.storage, settings.s3)
    manifest = build_manifest(open_store(settings.data.source, settings.s3), settings.data)
    packed = load_pack(storage, manifest.digest, (*settings.data.image_size, 3))
    epochs = len(results.get_history(storage, name)) if settings.run.name else 0

    counts = Counter(image.label for image in manifest.images)
    share = settings.data.validation_share
    training = round(len(manifest.images) * (1 - share))
    batch, workers = settings.training.batch_size, settings.launch.workers
    if training < batch:
        raise DataError(
            f"training.batch_size = {batch} is larger than the training set of about {training} images: lower it or add images"
        )
    height, width = settings.data.image_size
    pixels = len(manifest.images) * height * width * 3
    weights = 4 * parameters((height, width, 3), len(manifest.classes))
    bound = settings.pipeline.memory_bytes
    in_memory = size(pixels) if pixels <= bound else "stay on disk"
    groups = len({image.group for image in manifest.images if image.group})
    each = "a GPU" if settings.launch.gpu else f"{settings.launch.cpus_per_worker or 'an even share of the'} cores"
    lines = {
        "run": f"{name} in {storage.url}" + (f", resumes after epoch {epochs}" if epochs else ", new"),
        "data": f"{manifest.source}: {len(manifest.images):,} images of {size(sum(image.size for image in manifest.images))}, "
        f"{manifest.ignored:,} other objects ignored, digest {manifest.digest[:16]}",
        "classes": ", ".join(f"{each} {counts[label]:,}" for label, each in enumerate(manifest.classes)),
        "split": f"{share:.0%} for validation by "
        + (f"group ({groups:,} groups)" if groups else "content")
        + f": about {training:,} to train on",
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
