"""Which images there are, of which class, and on which side of the split each one is.

Separation of concerns: `build_manifest` looks at names only, never at pixels. `split` looks at the packed rows (and so at
content hashes), never at a store: it is pure.

Shapes: N rows, K classes.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trainer import UserError, config
from trainer.data.dataset import Image, Manifest, Split
from trainer.storage import Object, Store

LISTED = 200
"""Most entries of one kind whose keys `Split.facts` lists; the numbers count them all."""


class DataError(UserError):
    """The data cannot be trained on; one line that says why, and what to do."""


def build_manifest(store: Store, data: config.Data) -> Manifest:
    """Lists the store and labels every object by its key.

    Classes are numbered in the order of `data.classes`, or sorted by name where `data.class_pattern` finds them. Objects of no
    class are counted. The digest is the SHA-256 of classes and images as canonical JSON: where the data lie and when they were
    listed does not change it.

    Raises DataError for an empty store, a class without images, fewer than two classes; StoreError if the store fails.
    """
    objects = list(store.list())
    if not objects:
        raise DataError(f"data.source = {store.url} holds no objects: correct it, or upload the images first")
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
    ignored = sum(not key.rpartition("/")[2].startswith(".") for key in strays)  # .DS_Store and its like are no news
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
            f"class {missing[0]!r}: no key below {url} begins with {prefix!r}; there are {_folders(objects, prefix)}: "
            f"correct data.classes.{missing[0]} or upload the images"
        )
    if not classes:
        raise DataError(
            f"data.class_pattern = {data.class_pattern!r} finds a class in none of the {len(objects)} keys below {url}, "
            f"such as {objects[0].key!r}; there are {_folders(objects)}: correct it"
        )
    if len(classes) < 2:
        raise DataError(
            f"data.class_pattern = {data.class_pattern!r} finds only the class {classes[0]!r} ({counts[classes[0]]} images) below "
            f"{url}, and at least two are needed; there are {_folders(objects)}: correct it or upload the other class"
        )


def _folders(objects: Iterable[Object], like: str = "") -> str:
    """What the keys begin with, as deep as in `like`, for a message."""
    depth = max(1, like.count("/"))
    found = Counter("/".join(entry.key.split("/")[:depth]) + "/" * (entry.key.count("/") >= depth) for entry in objects)
    listed = ", ".join(f"{name!r} ({count})" for name, count in found.most_common(8))
    return listed + (f" and {len(found) - 8} more" if len(found) > 8 else "")


def _digest(classes: Sequence[str], images: Iterable[Image]) -> str:
    rows = [[image.key, image.size, image.etag, image.label, image.group] for image in images]
    canonical = json.dumps({"classes": list(classes), "images": rows}, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def split(
    keys: Sequence[str],
    labels: np.ndarray,
    groups: Sequence[str],
    contents: Sequence[str],
    classes: Sequence[str],
    data: config.Data,
) -> Split:
    """Sides of the N packed rows, by hash: a unit (the group, or the content where there is none) is for validation iff its
    hash, as a fraction of all hashes, is below `data.validation_fraction`.

    So an image never changes sides, whatever is added or removed. The price is that each class meets the share up to chance
    only, as if every unit drew lots: of 1,000 images at 0.2, 200 +- 13. There is no tighter rule that keeps this promise: one
    that holds for every later addition is a function of the unit alone. The counts are in the facts.

    Copies of a validation image that lie on the training side (groups can do that) are left out of training. Copies under two
    labels stay, and are reported.

    `Split.facts`: `counts` {side: {class: images}}, `groups` {side: units}, `imbalance_ratio` (most images of a class by fewest),
    `duplicates`, `leaked`, `conflicting_labels` (each `contents`, `images`, and at most LISTED `keys`), and `warnings`, lines
    for the user.

    Raises DataError when a class has fewer than `data.min_validation` validation images or none to train on.
    """
    units = [f"group {group}" if group else f"content {content}" for group, content in zip(groups, contents, strict=True)]
    to_validation = {unit: _fraction(unit) < data.validation_fraction for unit in set(units)}
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
    _check_counts(counts, data)
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
    """In [0, 1), evenly spread."""
    return int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=6).digest()) / 2**48


def _copies(contents: Sequence[str]) -> list[list[int]]:
    """The rows of every content that more than one row has."""
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


def _check_counts(counts: dict[str, dict[str, int]], data: config.Data) -> None:
    grouped = ", or check data.group_by: whole groups go to one side" if data.group_by else ""
    for name, count in counts["validation"].items():
        if not counts["training"][name]:
            raise DataError(
                f"class {name!r} has no training image ({count} for validation): add images or lower data.validation_fraction "
                f"(now {data.validation_fraction:g}){grouped}"
            )
        if count < data.min_validation:
            raise DataError(
                f"class {name!r} has {count} validation images ({counts['training'][name]} for training), below "
                f"data.min_validation = {data.min_validation}: add images, raise data.validation_fraction "
                f"(now {data.validation_fraction:g}) or lower data.min_validation{grouped}"
            )


def _warnings(facts: dict[str, Any]) -> list[str]:
    lines = []
    if facts["leaked"]["images"]:
        first = facts["leaked"]["keys"][0]
        lines.append(
            f"{facts['leaked']['images']} training images are copies of validation images and left out of training, "
            f"such as {first['left_out'][0]!r}, a copy of {first['validation'][0]!r}"
        )
    if facts["conflicting_labels"]["contents"]:
        (one, ones), (other, others), *_ = facts["conflicting_labels"]["keys"][0].items()
        lines.append(
            f"{facts['conflicting_labels']['contents']} images lie under more than one label, such as {ones[0]!r} ({one}) and "
            f"{others[0]!r} ({other}): delete the wrong copies"
        )
    if facts["duplicates"]["images"]:
        lines.append(
            f"{facts['duplicates']['images']} images are exact copies of others, such as "
            f"{' and '.join(map(repr, facts['duplicates']['keys'][0][:2]))}"
        )
    return lines
