"""The images of the data sources and their labels: keys and sizes, never pixels.

Shapes: K classes.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from trainer import config
from trainer.data.dataset import PIXELS_VERSION, DataError, Image, Manifest
from trainer.data.junk import is_junk, own_prefixes
from trainer.data.labels import Label, Labels, read_labels
from trainer.data.sources import Sources
from trainer.formatting import is_plain
from trainer.storage import Object, Store


def build_manifest(sources: Sources, data: config.Data, storage: Store | None = None, local: Collection[str] = ()) -> Manifest:
    """Lists the sources and labels every object, by its key or by the labels file.

    Classes are numbered in the order of `data.classes`, or sorted by name if `data.class_pattern` or `data.labels` names them.
    Objects of no class are counted, and so is junk: files of operating systems, and those that runs keep in `storage` and in
    `local`, folders of this machine, if these lie within a source. The digest is the SHA-256 of classes, images and the version of
    the decoder as canonical JSON. It depends neither on the data's location nor on the time of the listing.

    Raises DataError for an empty source, a class without images in a source, fewer than two classes, an object that two sources
    contain, a data.group_by that matches no key, a class name with control characters, or a labels file that does not fit;
    StoreError.
    """
    own = {name: own_prefixes(store, storage, local) for name, store in sources.images.items()}
    everything = {
        name: [entry for entry in _listed(store) if not _is_labels(sources, name, entry.key)]
        for name, store in sources.images.items()
    }
    objects = {name: [entry for entry in listed if not is_junk(entry.key, own[name])] for name, listed in everything.items()}
    junk = sum(map(len, everything.values())) - sum(map(len, objects.values()))
    for name, store in sources.images.items():
        if not objects[name]:
            only = f"images, only files such as {everything[name][0].key!r}" if everything[name] else "objects"
            raise DataError(f"data.{name} = {store.url} holds no {only}. Fix: correct it or upload the images.")
    labels = _labels(sources, objects, data)
    found = {name: [(entry, _label(name, entry.key, data, labels)) for entry in listed] for name, listed in objects.items()}
    _check_apart(sources, found)
    source = [label.name if label else None for _, label in found["source"]]
    classes = tuple(data.classes) or tuple(sorted({name for name in source if name is not None}))
    if labels is None:
        _check_classes(classes, source, objects["source"], sources.images["source"].url, data)
    elif len(classes) < 2:
        labelled = f"only the label {classes[0]!r}" if classes else "no label"
        raise DataError(f"{_where(sources)} has {labelled} for data.source, but at least two are needed. Fix: add the others.")
    for name in [name for name in found if name != "source"]:
        _check_other(name, sources.images[name].url, found[name], classes)
    if disguised := [name for name in classes if not is_plain(name)]:
        raise DataError(f"The class name {disguised[0]!r} contains control characters. Fix: rename it.")
    numbers = {name: number for number, name in enumerate(classes)}
    given = _validation_given(found)
    images = tuple(
        Image(entry.key, entry.size, entry.etag, numbers[label.name], label.group, name, label.side or given * "training")
        for name, each in found.items()
        for entry, label in each
        if label is not None
    )
    if labels is not None:
        _check_sides(images, classes, _where(sources))
    if data.group_by and not any(image.group for image in images):
        raise DataError(
            f"data.group_by = {data.group_by!r} matches none of the {len(images):,} keys, such as {images[0].key!r}. Fix: "
            "correct the pattern, or remove data.group_by."
        )
    ignored = sum(label is None for each in found.values() for _, label in each)
    archived = sum(entry.archived for each in found.values() for entry, label in each if label is not None)
    return Manifest(sources.images["source"].url, classes, images, _digest(classes, images), ignored, junk, archived)


Labelled = Sequence[tuple[Object, Label | None]]
"""The objects of a source with their labels; None for an object of no class."""


def _labels(sources: Sources, objects: Mapping[str, Iterable[Object]], data: config.Data) -> Labels | None:
    """The labels file, checked against the keys and the settings; None without one."""
    if sources.labels is None:
        return None
    labels, where = read_labels(*sources.labels), _where(sources)
    keys = {_name(name, entry.key) for name, listed in objects.items() for entry in listed}
    if missing := [key for key in labels.of if key not in keys and not is_junk(key)]:
        raise DataError(
            f"{where} labels {len(missing)} of {len(labels.of)} keys that do not exist, such as {missing[0]!r} (an existing key: "
            f"{min(keys)!r}). Fix: correct the keys, which are relative to data.source, or delete these rows."
        )
    if labels.grouped and data.group_by:
        raise DataError(f"{where} has the column 'group', and data.group_by is set too. Fix: remove one of them.")
    for key, label in labels.of.items():
        name = next((name for name in sources.images if name != "source" and key.startswith(f"{name}:")), "source")
        if name != "source" and label.side not in ("", name):
            raise DataError(f"{where}: {key!r} is in data.{name}, but has split = {label.side}. Fix: leave its split empty.")
        if name == "source" and label.side in sources.images:
            raise DataError(
                f"{where}: {key!r} has split = {label.side}, but data.{label.side} is set too. Fix: remove data.{label.side} or "
                "leave the split empty."
            )
    return labels


def _where(sources: Sources) -> str:
    assert sources.labels is not None
    return f"data.labels = {sources.labels[0].url}/{sources.labels[1]}"


def _name(source: str, key: str) -> str:
    """Image.name."""
    return key if source == "source" else f"{source}:{key}"


def _is_labels(sources: Sources, name: str, key: str) -> bool:
    """Whether an object is the labels file itself, which may lie beside the images."""
    if sources.labels is None:
        return False
    return f"{sources.images[name].url}/{key}" == f"{sources.labels[0].url}/{sources.labels[1]}"


def _label(source: str, key: str, data: config.Data, labels: Labels | None) -> Label | None:
    """The label of an object; None if it belongs to no class. Without labels file, its side is that of its source."""
    side = "" if source == "source" else source
    if labels is not None:
        found = labels.of.get(_name(source, key))
        return found and found._replace(
            group=found.group if labels.grouped else _group_of(source, key, data), side=side or found.side
        )
    name = _class_of(key, data)
    return None if name is None else Label(name, _group_of(source, key, data), side)


def _validation_given(found: Mapping[str, Labelled]) -> bool:
    """Whether the validation set is given, so that all other images of data.source are for training."""
    return any(label.side == "validation" for each in found.values() for _, label in each if label)


def _check_apart(sources: Sources, found: Mapping[str, Labelled]) -> None:
    """Raises DataError if an image is in two sources."""
    seen: dict[str, str] = {}
    for name, each in found.items():
        url = sources.images[name].url
        mine = [f"{url}/{entry.key}" for entry, label in each if label is not None]
        if twice := [one for one in mine if one in seen]:
            other = seen[twice[0]]
            raise DataError(
                f"data.{other} and data.{name} overlap: {len(twice)} images are in both, such as {twice[0]!r}. Fix: use separate "
                "folders or prefixes."
            )
        seen |= dict.fromkeys(mine, name)


def _check_sides(images: Sequence[Image], classes: Sequence[str], where: str) -> None:
    """Raises DataError if a side that the labels file gives lacks a class, or a class has nothing to train on."""
    counts = Counter((image.side, image.label) for image in images)
    for side in sorted({side for side, _ in counts} - {""}):
        for label, name in enumerate(classes):
            if not counts[side, label] and not (side == "training" and counts["", label]):
                raise DataError(
                    f"{where} gives class {name!r} no {side} image, and there are {side} images of other classes. Fix: correct the "
                    "column 'split' or add images."
                )


def _check_other(name: str, url: str, found: Labelled, classes: Sequence[str]) -> None:
    """Raises DataError if the classes of data.validation or data.test are not exactly those of data.source."""
    counts = Counter(label.name for _, label in found if label is not None)
    if unknown := [each for each in counts if each not in classes]:
        raise DataError(
            f"data.{name} = {url} has the class {unknown[0]!r} ({counts[unknown[0]]} images), which data.source does not have. "
            "Fix: add it to data.source or remove these images."
        )
    if missing := [each for each in classes if not counts[each]]:
        keys = ", such as " + repr(found[0][0].key) if found else ""
        raise DataError(
            f"data.{name} = {url} has no image of class {missing[0]!r} ({sum(counts.values())} images of other classes; it holds "
            f"{len(found)} objects{keys}). Fix: add images of it, or correct data.{name}."
        )


def _class_of(key: str, data: config.Data) -> str | None:
    if data.class_pattern is None:
        return next((name for name, prefix in data.classes.items() if key.startswith(prefix)), None)
    match = re.search(data.class_pattern, key)
    return match["class"] or None if match else None


def _group_of(source: str, key: str, data: config.Data) -> str:
    """The group that data.group_by finds. Groups of different sources are different, because numbers as names may coincide."""
    match = re.search(data.group_by, key) if data.group_by else None
    return _name(source, match[1]) if match and match[1] else ""


def _check_classes(
    classes: Sequence[str], names: Sequence[str | None], objects: Sequence[Object], url: str, data: config.Data
) -> None:
    counts = Counter(names)
    if missing := [name for name in classes if not counts[name]]:
        prefix = data.classes[missing[0]]
        raise DataError(
            f"Class {missing[0]!r}: no key below {url} starts with {prefix!r} (found: {_folders(objects, prefix)}). "
            f"Fix: correct data.classes.{missing[0]} or upload the images."
        )
    if not classes:
        raise DataError(
            f"data.class_pattern = {data.class_pattern!r} matches none of the {len(objects)} keys below {url}, "
            f"such as {objects[0].key!r} (found: {_folders(objects)}). Fix: correct the pattern."
        )
    if len(classes) < 2:
        raise DataError(
            f"data.class_pattern = {data.class_pattern!r} finds only the class {classes[0]!r} ({counts[classes[0]]} images) below "
            f"{url}, but at least two classes are needed (found: {_folders(objects)}). "
            "Fix: correct the pattern or upload the other class."
        )


def _listed(store: Store) -> list[Object]:
    """All objects. A single empty listing proves nothing."""
    found = list(store.list())
    for seconds in store.PAUSES:
        if found:
            break
        time.sleep(seconds)
        found = list(store.list())
    return found


def _folders(objects: Iterable[Object], like: str = "") -> str:
    """The most common folders of the keys with their counts, for a message; as deep as the prefix `like`."""
    depth = max(1, like.count("/"))
    found = Counter("/".join(entry.key.split("/")[:depth]) + "/" * (entry.key.count("/") >= depth) for entry in objects)
    listed = ", ".join(f"{name!r} ({count})" for name, count in found.most_common(8))
    return listed + (f" and {len(found) - 8} more" if len(found) > 8 else "")


def _digest(classes: Sequence[str], images: Iterable[Image]) -> str:
    # Source and side are added only where they are not the default, so that data sets of one source keep their digests.
    rows = [
        [image.key, image.size, image.etag, image.label, image.group]
        + ([image.source, image.side] if (image.source, image.side) != ("source", "") else [])
        for image in images
    ]
    canonical = json.dumps({"classes": list(classes), "images": rows, "pixels": PIXELS_VERSION}, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
