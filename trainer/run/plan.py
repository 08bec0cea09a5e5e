"""Plans a run for `--dry-run`: lists the images of a new run, but reads none of them and writes nothing."""

from collections import Counter

from trainer import config
from trainer.data.dataset import Manifest, Pack
from trainer.data.pack import images_of, load_pack
from trainer.data.sources import open_sources
from trainer.data.split import SIDES
from trainer.formatting import size
from trainer.run.preparation import check_batch_size
from trainer.storage import open_store, results


def plan(settings: config.Settings, name: str) -> str:
    """The plan as text, one line for each part of the run. Raises ConfigError, DataError and StoreError as the run itself would."""
    storage = open_store(settings.run.storage, settings.s3)
    previous = results.get_run(storage, name) if settings.run.name else None
    if previous:
        config.check_resumable(settings, previous["config"], name)
    epochs = len(results.get_history(storage, name)) if previous else 0
    found = images_of(name, open_sources(settings.data, settings.s3), storage, settings.data, previous)
    classes = ", ".join(found.classes)
    if isinstance(found, Pack):
        images, packed = found.images, True
        data = f"{images:,} images, packed when the run began"
    else:
        images, packed = len(found.images), load_pack(storage, found.digest, (*settings.data.image_size, 3)) is not None
        sizes = [image.size for image in found.images if image.source == "source"]
        data = f"{found.source}: {len(sizes):,} images of {size(sum(sizes))}, "
        data += f"{found.ignored:,} other objects ignored"
        counts = Counter(image.label for image in found.images)
        classes = ", ".join(f"{each} {counts[label]:,}" for label, each in enumerate(found.classes))
    split, training = _split(found, settings.data)
    batch, workers = settings.training.batch_size, settings.launch.workers
    check_batch_size(batch, training, about="about ")
    height, width = settings.data.image_size
    pixels = images * height * width * 3
    weights = 4 * parameters((height, width, 3), len(found.classes))
    bound = settings.pipeline.memory_bytes
    in_memory = size(pixels) if pixels <= bound else "on disk"
    cores = settings.launch.cpus_per_worker
    each = "a GPU" if settings.launch.gpu else f"{cores} cores" if cores else "an equal number of the cluster's cores"
    lines = {
        "run": f"{name} in {storage.url}" + (f", resumes after epoch {epochs}" if previous else ", new"),
        "data": f"{data}, digest {found.digest[:16]}",
        "classes": classes,
        **_sources(found, settings.data),
        "split": split,
        "pack": f"{height}x{width}x3: {size(pixels)} in storage, " + ("already packed" if packed else "to be packed"),
        "training": f"{settings.training.epochs} epochs of {training // batch} steps of {batch} images "
        f"at learning rate {settings.optimizer.learning_rate:g}",
        "workers": f"{workers}, {batch // workers} images of each batch for each worker; each has {each}",
        "memory": f"in each worker: images {in_memory} (at most {size(bound)}); weights, gradients and Adam {size(4 * weights)}; "
        "and TensorFlow itself",
        "disk": f"{size(pixels)} in {settings.pipeline.cache_dir} on each machine",
        "metrics": f"http://{settings.metrics.host}:{settings.metrics.port}/metrics",
    }
    return "\n".join(f"{what:<10} {line}" for what, line in lines.items())


def _sources(found: Manifest | Pack, data: config.Data) -> dict[str, str]:
    """A line for each further source of images or labels."""
    lines = {side: url for side, url in (("validation", data.validation), ("test", data.test)) if url is not None}
    if isinstance(found, Manifest):
        counts = Counter(image.source for image in found.images)
        lines = {side: f"{url}: {counts[side]:,} images" for side, url in lines.items()}
    return lines if data.labels is None else {"labels": data.labels, **lines}


def _split(found: Manifest | Pack, data: config.Data) -> tuple[str, int]:
    """How the images are split, and about how many are for training. Copies, which may be left out, are found later."""
    fraction = data.validation_fraction
    unit = "group" if data.group_by else "content"
    if isinstance(found, Pack):
        training = round(found.images * (1 - fraction))
        if data.validation or data.labels or data.test:
            return "as when the run began", training
        return f"{fraction:.0%} for validation, split by {unit}: about {training:,} training images", training
    sides = Counter(image.side for image in found.images)
    if groups := len({image.group for image in found.images if image.group}):
        unit = f"group ({groups:,} groups)"
    if data.group_near_duplicates:
        unit += ", near copies together"
    training = sides["training"] + round(sides[""] * (1 - fraction))
    given = ", ".join(f"{sides[side]:,} {side}" for side in SIDES if sides[side])
    if not sides[""]:
        return f"{given} images, as given", training
    text = f"{fraction:.0%} for validation, split by {unit}: about {training:,} training images"
    return text + f"; given: {given} images" * bool(given), training


def parameters(shape: tuple[int, int, int], classes: int) -> int:
    """Number of weights of the model that question.build makes for images of `shape` (H, W, C), moving statistics included.

    A formula, because building the model would load TensorFlow. tests/trainer/run/test_plan.py checks it against Keras' count.
    """
    height, width, channels = shape
    sizes = [9 * channels, 9 * 16, 9 * 16, 9 * 32, height // 4 * (width // 4) * 32]
    units = [16, 16, 32, 32, 64]
    layers = sum(inputs * outputs + outputs + 4 * outputs for inputs, outputs in zip(sizes, units, strict=True))
    return layers + 64 * classes + classes
