"""The images of a data source, their classes, and the split into training and validation.

Separation of concerns: `build_manifest` reads keys, never pixels. `split` works on packed rows and their content hashes; it is pure
and reads no store.

Shapes: N rows, K classes.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from trainer import config
from trainer.data.dataset import DataError, Image, Manifest, Split
from trainer.data.shards import PackedRows
from trainer.storage import Object, Store

LISTED = 200
"""`Split.facts` lists the keys of at most this many findings of each kind; its counts include all of them."""


def build_manifest(store: Store, data: config.Data) -> Manifest:
    """Lists the store and labels every object by its key.

    Classes are numbered in the order of `data.classes`, or sorted by name if `data.class_pattern` finds them. Objects of no class
    are counted. The digest is the SHA-256 of classes and images as canonical JSON. It depends neither on the data's location nor
    on the time of the listing.

    Raises DataError for an empty store, a class without images or fewer than two classes; StoreError.
    """
    objects = list(store.list())
    if not objects:
        raise DataError(f"data.source = {store.url} holds no objects. Fix: correct it or upload the images.")
    names = [_class_of(entry.key, data) for entry in objects]
    classes = tuple(data.classes) or tuple(sorted({name for name in names if name is not None}))
    _check_classes(classes, names, objects, store.url, data)
    labels = {name: label for label, name in enumerate(classes)}
    images = tuple(
        Image(entry.key, entry.size, entry.etag, labels[name], _group_of(entry.key, data))
        for entry, name in zip(objects, names, strict=True)
        if name is not None
    )
    strays = [entry.key for entry, name in zip(objects, names, strict=True) if name is None]
    # Hidden files such as .DS_Store are not worth a warning.
    ignored = sum(not key.rpartition("/")[2].startswith(".") for key in strays)
    return Manifest(store.url, classes, images, _digest(classes, images), ignored)


def _class_of(key: str, data: config.Data) -> str | None:
    if data.class_pattern is None:
        return next((name for name, prefix in data.classes.items() if key.startswith(prefix)), None)
    match = re.search(data.class_pattern, key)
    return match["class"] or None if match else None


def _group_of(key: str, data: config.Data) -> str:
    match = re.search(data.group_by, key) if data.group_by else None
    return match[1] or "" if match else ""


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


def _folders(objects: Iterable[Object], like: str = "") -> str:
    """The most common folders of the keys with their counts, for a message; as deep as the prefix `like`."""
    depth = max(1, like.count("/"))
    found = Counter("/".join(entry.key.split("/")[:depth]) + "/" * (entry.key.count("/") >= depth) for entry in objects)
    listed = ", ".join(f"{name!r} ({count})" for name, count in found.most_common(8))
    return listed + (f" and {len(found) - 8} more" if len(found) > 8 else "")


def _digest(classes: Sequence[str], images: Iterable[Image]) -> str:
    rows = [[image.key, image.size, image.etag, image.label, image.group] for image in images]
    canonical = json.dumps({"classes": list(classes), "images": rows}, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def split_rows(rows: PackedRows, classes: Sequence[str], data: config.Data) -> Split:
    """`split` of a pack's rows as `data` configures it. Raises DataError."""
    return split(
        rows.keys,
        rows.labels,
        rows.groups,
        rows.contents,
        classes,
        validation_fraction=data.validation_fraction,
        min_validation=data.min_validation,
    )


def split(
    keys: Sequence[str],
    labels: np.ndarray,
    groups: Sequence[str],
    contents: Sequence[str],
    classes: Sequence[str],
    *,
    validation_fraction: float,
    min_validation: int,
) -> Split:
    """Splits the N packed rows by hash. A unit (the group, or the content of an image without group) belongs to validation if its
    hash, as a fraction of all hashes, is below `validation_fraction`.

    An image therefore never changes sides when others are added or removed. In return, the fraction holds only on average (with
    1,000 images at 0.2, validation gets 200 +- 13). An exact fraction is not possible, because the side of a unit must depend on
    that unit alone. The facts contain the actual counts.

    Training images whose content is also in validation (possible with groups) are left out of training. Copies with
    different labels stay and are reported.

    `Split.facts`: `counts` {side: {class: images}}, `groups` {side: units}, `imbalance_ratio` (largest class by smallest),
    `duplicates`, `leaked` and `conflicting_labels` (each with `contents`, `images` and at most LISTED `keys`), and `warnings`,
    lines for the user.

    Raises DataError when a class has fewer than `min_validation` validation images or no training image.
    """
    units = [f"group {group}" if group else f"content {content}" for group, content in zip(groups, contents, strict=True)]
    to_validation = {unit: _fraction(unit) < validation_fraction for unit in set(units)}
    validates = np.array([to_validation[unit] for unit in units], bool)
    copies = _copies(contents)
    leaked = [rows for rows in copies if 0 < validates[rows].sum() < len(rows)]
    trains = ~validates
    for rows in leaked:
        trains[rows] = False
    sides = {"training": trains, "validation": validates}
    counts = {
        side: {name: int(np.sum(mask & (labels == label))) for label, name in enumerate(classes)} for side, mask in sides.items()
    }
    _check_counts(counts, validation_fraction, min_validation, grouped=any(groups))
    totals = [counts["training"][name] + counts["validation"][name] for name in classes]
    facts = {
        "counts": counts,
        "groups": {side: len({units[row] for row in np.flatnonzero(mask)}) for side, mask in sides.items()},
        "imbalance_ratio": round(max(totals) / min(totals), 3),
        **_copies_found(keys, labels, classes, copies, leaked, validates),
    }
    facts["warnings"] = _warnings(facts)
    return Split(tuple(np.flatnonzero(trains).tolist()), tuple(np.flatnonzero(validates).tolist()), facts)


def _fraction(unit: str) -> float:
    """The unit's hash, uniform in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=6).digest()) / 2**48


def _copies(contents: Sequence[str]) -> list[list[int]]:
    """The rows of each content that occurs more than once."""
    rows = defaultdict(list)
    for row, content in enumerate(contents):
        rows[content].append(row)
    return [same for same in rows.values() if len(same) > 1]


def _copies_found(
    keys: Sequence[str],
    labels: np.ndarray,
    classes: Sequence[str],
    copies: list[list[int]],
    leaked: list[list[int]],
    validates: np.ndarray,
) -> dict[str, Any]:
    def named(rows: list[int]) -> list[str]:
        return [keys[row] for row in rows[:LISTED]]

    def by_side(rows: list[int]) -> dict[str, list[str]]:
        return {
            "validation": named([row for row in rows if validates[row]]),
            "left_out": named([row for row in rows if not validates[row]]),
        }

    def by_class(rows: list[int]) -> dict[str, list[str]]:
        return {
            classes[label]: named([row for row in rows if labels[row] == label]) for label in sorted(set(labels[rows].tolist()))
        }

    conflicting = [rows for rows in copies if len(set(labels[rows].tolist())) > 1]
    return {
        "duplicates": {
            "contents": len(copies),
            "images": sum(len(rows) - 1 for rows in copies),
            "keys": [named(rows) for rows in copies[:LISTED]],
        },
        "leaked": {
            "contents": len(leaked),
            "images": sum(int(np.sum(~validates[rows])) for rows in leaked),
            "keys": [by_side(rows) for rows in leaked[:LISTED]],
        },
        "conflicting_labels": {
            "contents": len(conflicting),
            "images": sum(len(rows) for rows in conflicting),
            "keys": [by_class(rows) for rows in conflicting[:LISTED]],
        },
    }


def _check_counts(counts: dict[str, dict[str, int]], validation_fraction: float, min_validation: int, *, grouped: bool) -> None:
    hint = ". Whole groups are on one side, so check data.group_by too" if grouped else ""
    for name, count in counts["validation"].items():
        if not counts["training"][name]:
            raise DataError(
                f"Class {name!r} has no training image ({count} for validation). "
                f"Fix: add images or lower data.validation_fraction (now {validation_fraction:g}){hint}."
            )
        if count < min_validation:
            raise DataError(
                f"Class {name!r} has {count} validation images ({counts['training'][name]} for training), below "
                f"data.min_validation = {min_validation}. Fix: add images, raise data.validation_fraction "
                f"(now {validation_fraction:g}) or lower data.min_validation{hint}."
            )


def _warnings(facts: dict[str, Any]) -> list[str]:
    lines = []
    if facts["leaked"]["images"]:
        first = facts["leaked"]["keys"][0]
        lines.append(
            f"{facts['leaked']['images']} training images are copies of validation images and are left out of training, "
            f"such as {first['left_out'][0]!r} (a copy of {first['validation'][0]!r})"
        )
    if facts["conflicting_labels"]["contents"]:
        (one, ones), (other, others), *_ = facts["conflicting_labels"]["keys"][0].items()
        lines.append(
            f"{facts['conflicting_labels']['contents']} images have more than one label, such as {ones[0]!r} ({one}) and "
            f"{others[0]!r} ({other}). Fix: delete the wrong copies."
        )
    if facts["duplicates"]["images"]:
        lines.append(
            f"{facts['duplicates']['images']} images are exact copies of others, such as "
            f"{' and '.join(map(repr, facts['duplicates']['keys'][0][:2]))}"
        )
    return lines


ClassWeights = Literal["balanced"] | Mapping[str, float] | None
"""The setting training.class_weights."""


def class_weights(wanted: ClassWeights, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray | None:
    """The factor [K] of each class in the training loss, from `training.class_weights`; None for equal ones.

    `labels` [n]: of the training images. "balanced" gives n / (K n_k) to a class of n_k images, so that each class has the same
    influence.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        return np.asarray(len(labels) / (len(classes) * np.bincount(labels, minlength=len(classes))))
    return np.array([wanted[name] for name in classes])


def check_class_weights(wanted: ClassWeights, classes: Sequence[str]) -> None:
    """Raises DataError unless a table of class weights names each class once."""
    if isinstance(wanted, Mapping) and set(wanted) != set(classes):
        raise DataError(
            f"training.class_weights names {', '.join(sorted(wanted))}, but the classes are {', '.join(classes)}. "
            "Fix: give each class a weight."
        )
