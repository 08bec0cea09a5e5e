"""Plans a run for `--dry-run`: lists the images of a new run, but reads none of them and writes nothing."""

from collections import Counter

from trainer import config
from trainer.data.class_weights import check_class_weights
from trainer.data.dataset import Manifest, Pack
from trainer.data.pack import images_of, load_pack
from trainer.data.sources import open_sources
from trainer.data.split import SIDES
from trainer.engine.facts import inspect
from trainer.formatting import size
from trainer.model.module import Module
from trainer.run.preparation import check_batch_size, check_resumable, complete
from trainer.storage import open_store, results


def plan(settings: config.Settings, name: str, module: Module | None) -> str:
    """The plan as text, one line for each part of the run. `module`: that of the user's own network.

    Raises ConfigError, NetworkError, DataError and StoreError as the run itself would.
    """
    storage = open_store(settings.run.storage, settings.s3)
    previous = results.get_run(storage, name) if settings.run.name else None
    check_resumable(previous, settings, module, name)
    if line := complete(previous, storage, settings, name):
        return line
    epochs = len(results.get_history(storage, name)) if previous else 0
    sources = open_sources(settings.data, settings.s3)
    found = images_of(name, sources, storage, settings.data, previous, settings.local_folders)
    classes = ", ".join(found.classes)
    if isinstance(found, Pack):
        images, packed = found.images, True
        data = f"{images:,} images, packed when the run began"
    else:
        images, packed = len(found.images), load_pack(storage, found.digest, (*settings.data.image_size, 3)) is not None
        sizes = [image.size for image in found.images if image.source == "source"]
        data = f"{found.source}: {len(sizes):,} images of {size(sum(sizes))}, "
        data += f"{found.ignored:,} other objects ignored" + (
            f" besides {found.junk:,} like .DS_Store or .txt" if found.junk else ""
        )
        if found.archived:
            data += f", {found.archived:,} archived (skipped unless they are restored first)"
        counts = Counter(image.label for image in found.images)
        classes = ", ".join(f"{each} {counts[label]:,}" for label, each in enumerate(found.classes))
    split, training = _split(found, settings.data)
    batch, workers = settings.training.batch_size, settings.launch.workers
    check_batch_size(batch, training, about="about ")
    height, width = settings.data.image_size
    pixels = images * height * width * 3
    check_class_weights(settings.training.class_weights, found.classes)
    network = inspect(settings, len(found.classes), module)
    weights = 4 * (network.parameters + network.trainable + network.optimizer)  # gradients included
    activations = 4 * network.activations * (batch // workers)
    source = f", from {', '.join(module.files)}, digest {module.digest[:16]}" if module else ""
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
        "network": f"{settings.model.network}{source}: {network.parameters:,} parameters, {network.trainable:,} of them "
        f"trained, in {network.layers} layers; {network.batch_normalization} BatchNormalization, {network.dropout} Dropout",
        "training": f"{settings.training.epochs} epochs of {training // batch} steps of {batch} images "
        f"with {settings.optimizer.name} at learning rate {settings.optimizer.learning_rate:g}",
        "workers": f"{workers}, {batch // workers} images of each batch for each worker; each has {each}",
        "memory": f"in each worker: images {in_memory} (at most {size(bound)}); weights, gradients and optimizer {size(weights)}; "
        f"layers' outputs about {size(activations)}; and TensorFlow itself",
        "disk": f"{size(pixels)} in {settings.pipeline.cache_dir} on each machine",
        "metrics": f"port {settings.metrics.port} of the driver's machine, {settings.metrics.host}",
    }
    return "\n".join(f"{what:<10} {line}" for what, line in lines.items())


def finished(settings: config.Settings, name: str) -> str | None:
    """A line for the user if the run is complete already, else None. Raises StoreError and ResultsError."""
    storage = open_store(settings.run.storage, settings.s3)
    return complete(results.get_run(storage, name), storage, settings, name)


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
        alone = sum(not image.group for image in found.images)
        unit = f"group ({groups:,} groups" + (f"; in none: {alone:,}" if alone else "") + ")"
    if data.group_near_duplicates:
        unit += ", near copies together"
    training = sides["training"] + round(sides[""] * (1 - fraction))
    given = ", ".join(f"{sides[side]:,} {side}" for side in SIDES if sides[side])
    if not sides[""]:
        return f"{given} images, as given", training
    text = (
        f"{fraction:.0%} for validation, split by {unit}: about {training:,} training images"
        + f"; given: {given} images" * bool(given)
    )
    undecided = Counter(image.label for image in found.images if not image.side)
    least = min(range(len(found.classes)), key=lambda label: undecided[label])
    if (expected := round(fraction * undecided[least])) < data.min_validation:
        text += (
            f". Class {found.classes[least]!r} gets about {expected} validation images, below data.min_validation = "
            f"{data.min_validation}: with fewer, the run ends"
        )
    return text, training
