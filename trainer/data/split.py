"""The split of packed images into training, validation and test. Pure: it reads no store.

Shapes: N rows, K classes, M pairs.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer import config
from trainer.data.dataset import DataError, Split
from trainer.data.duplicates import MAX_PAIRS, Copies, chained, find_copies, united
from trainer.data.shards import PackedRows

SIDES = ("training", "validation", "test")
"""The sides. A copy stays on the last of the sides that have it."""
LISTED = 200
"""`Split.facts` lists the keys of at most this many findings of each kind; its counts include all of them."""


def split_rows(rows: PackedRows, classes: Sequence[str], data: config.Data) -> Split:
    """`split` of a pack's rows as `data` configures it. Reads all pixels. Raises DataError."""
    return split(
        rows.keys,
        rows.labels,
        rows.groups,
        rows.contents,
        classes,
        given=rows.sides,
        copies=find_copies(rows.images.shards),
        validation_fraction=data.validation_fraction,
        min_validation=data.min_validation,
        group_near_duplicates=data.group_near_duplicates,
        group_by=data.group_by,
    )


def split(
    keys: Sequence[str],
    labels: np.ndarray,
    groups: Sequence[str],
    contents: Sequence[str],
    classes: Sequence[str],
    *,
    given: Sequence[str],
    copies: Copies,
    validation_fraction: float,
    min_validation: int,
    group_near_duplicates: bool = False,
    group_by: str | None = None,
) -> Split:
    """Splits the N packed rows. `given`: the side of each row, or "" if its hash decides.

    A unit is a group, or all images without group that have the same pixels.
    `group_by`: the pattern that was to find the groups. With `group_near_duplicates`, units that contain
    copies or near copies of each other are one unit. A unit belongs to validation if its hash, as a fraction of all hashes, is
    below `validation_fraction` and none of its images is given for training. An image whose side is not given is left out if
    its group is in the given test set.

    An image therefore never changes sides when others are added or removed, unless they are its copies. In return, the fraction
    holds only on average (with 1,000 images at 0.2, validation gets 200 +- 13). An exact fraction is not possible, because the side
    of a unit must depend on that unit alone. The facts contain the actual counts.

    Training images with the same pixels as a validation image, and validation images with those of a test image, are left out
    (possible with groups and given sides). With `group_near_duplicates` the same holds for near copies. Copies with different
    labels stay and are reported.

    `Split.facts`:
    - `counts` {side: {class: images}}, `groups` {side: units}, `imbalance_ratio` (largest class by smallest)
    - `duplicates`, `leaked`, `conflicting_labels`, each with `contents`, `images` and at most LISTED `keys`
    - `near_duplicates`, `near_leaked` (those on different sides), each with `pairs`, `images`, `other_label` (pairs with different
      labels) and at most LISTED `keys`; `near_leaked.images` counts those on the later side, `left_out` those left out
    - `near_complete`: whether all near copies were looked for
    - `shared_groups`: `groups` on several sides and at most LISTED of their `names`; `left_out`, images left out for their group
    - `contradicted` (`images`, `keys`): validation images with a near copy that is trained on with another label
    - `warnings`: lines for the user

    Raises DataError when a class has fewer than `min_validation` validation images, no training image, or no test image although
    there is a test set.
    """
    names = [f"group {group}" if group else f"content {content}" for group, content in zip(groups, contents, strict=True)]
    units = _units(names, groups, copies, together=group_near_duplicates)
    sides = _sides(names, units, given, validation_fraction)
    exact = _same_pixels(copies.pixels)
    leaked = [rows for rows in exact if len(set(sides[rows].tolist())) > 1]
    used = np.ones(len(keys), bool)
    for rows in leaked:
        used[rows] = sides[rows] == sides[rows].max()
    grouped = _group_numbers(groups)
    outside = (np.array(given) == "") & (grouped >= 0) & (_last_given(grouped, given)[grouped] > sides)
    used &= ~outside
    pairs = _pairs(copies, exact, sides, labels)
    near_leaked = pairs[used[pairs].all(1) & (sides[pairs[:, 0]] != sides[pairs[:, 1]])]
    if group_near_duplicates:
        lower = sides[near_leaked].argmin(1)
        used[near_leaked[np.arange(len(near_leaked)), lower]] = False
    chosen = {side: used & (sides == number) for number, side in enumerate(SIDES) if number < 2 or "test" in given}
    counts = {
        side: {name: int(np.sum(mask & (labels == label))) for label, name in enumerate(classes)} for side, mask in chosen.items()
    }
    _check_counts(counts, validation_fraction if "" in given else None, min_validation, grouped=any(groups))
    totals = [counts["training"][name] + counts["validation"][name] for name in classes]
    facts = {
        "counts": counts,
        "groups": {side: len(np.unique(units[mask])) for side, mask in chosen.items()},
        "imbalance_ratio": round(max(totals) / min(totals), 3),
        **_copies_found(keys, labels, classes, exact, leaked, sides),
        **_near_found(keys, labels, pairs, near_leaked, sides, used),
        "near_complete": copies.complete,
        "shared_groups": {**_shared(groups, grouped, sides, used), "left_out": int(outside.sum())},
    }
    facts["warnings"] = _ungrouped(keys, groups, group_by) + _warnings(facts)
    training, validation, test = (tuple(np.flatnonzero(used & (sides == number)).tolist()) for number in range(len(SIDES)))
    return Split(training, validation, facts, test)


def _units(names: Sequence[str], groups: Sequence[str], copies: Copies, *, together: bool) -> np.ndarray:
    """The unit of each row, int [N]. `together`: whether copies and near copies unite groups."""
    numbers: dict[str, int] = {}
    links = [chained(np.array([numbers.setdefault(name, len(numbers)) for name in names], int))]
    same = chained(copies.pixels)
    if together:
        links += [same, copies.near]
    else:
        grouped = np.array([bool(group) for group in groups])
        alone = np.where(grouped, -1 - np.arange(len(groups)), copies.pixels)
        links.append(chained(alone))
    return united(len(names), links)


def _sides(names: Sequence[str], units: np.ndarray, given: Sequence[str], validation_fraction: float) -> np.ndarray:
    """The side of each row, int [N] into SIDES."""
    sides = np.array([SIDES.index(side) if side else -1 for side in given], int)
    first: dict[int, str] = {}
    for unit, name in zip(units.tolist(), names, strict=True):
        first[unit] = min(first.get(unit, name), name)
    of_unit = np.zeros(len(names), int)
    trained = set(units[sides == 0].tolist())
    for unit, name in first.items():
        of_unit[unit] = 0 if unit in trained else int(_fraction(name) < validation_fraction)
    return np.where(sides < 0, of_unit[units], sides)


def _group_numbers(groups: Sequence[str]) -> np.ndarray:
    """The number of each row's group, int [N]; -1 without a group."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) if group else -1 for group in groups], int)


def _last_given(grouped: np.ndarray, given: Sequence[str]) -> np.ndarray:
    """The last side that is given to an image of each group, int [groups + 1]; -1 for none."""
    last = np.full(grouped.max(initial=-1) + 2, -1)
    np.maximum.at(last, grouped, np.array([SIDES.index(side) if side else -1 for side in given], int))
    return last


def _shared(groups: Sequence[str], grouped: np.ndarray, sides: np.ndarray, used: np.ndarray) -> dict[str, Any]:
    """The groups with images on several sides."""
    on: dict[int, set[int]] = defaultdict(set)
    for row in np.flatnonzero(used & (grouped >= 0)).tolist():
        on[int(grouped[row])].add(int(sides[row]))
    shared = {number for number, each in on.items() if len(each) > 1}
    names = {group: None for group, number in zip(groups, grouped.tolist(), strict=True) if number in shared}
    return {"groups": len(shared), "names": list(names)[:LISTED]}


def _fraction(unit: str) -> float:
    """The unit's hash, uniform in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=6).digest()) / 2**48


def _same_pixels(pixels: np.ndarray) -> list[list[int]]:
    """The rows of each picture that occurs more than once."""
    rows = defaultdict(list)
    for row, number in enumerate(pixels.tolist()):
        rows[number].append(row)
    return [same for same in rows.values() if len(same) > 1]


def _pairs(copies: Copies, exact: list[list[int]], sides: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The near copies as int [M, 2], with one row for each side and label of a picture that occurs more than once."""
    several: dict[int, list[int]] = {}
    for rows in exact:
        kinds = {(int(sides[row]), int(labels[row])): row for row in reversed(rows)}
        several[rows[0]] = sorted(kinds.values())
    found = [(a, b) for one, other in copies.near.tolist() for a in several.get(one, [one]) for b in several.get(other, [other])]
    return np.array(found, int).reshape(-1, 2)


def _copies_found(
    keys: Sequence[str],
    labels: np.ndarray,
    classes: Sequence[str],
    copies: list[list[int]],
    leaked: list[list[int]],
    sides: np.ndarray,
) -> dict[str, Any]:
    def named(rows: list[int]) -> list[str]:
        return [keys[row] for row in rows[:LISTED]]

    def by_side(rows: list[int]) -> dict[str, list[str]]:
        last = sides[rows].max()
        return {
            SIDES[last]: named([row for row in rows if sides[row] == last]),
            "left_out": named([row for row in rows if sides[row] < last]),
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
            "images": sum(int(np.sum(sides[rows] < sides[rows].max())) for rows in leaked),
            "keys": [by_side(rows) for rows in leaked[:LISTED]],
        },
        "conflicting_labels": {
            "contents": len(conflicting),
            "images": sum(len(rows) for rows in conflicting),
            "keys": [by_class(rows) for rows in conflicting[:LISTED]],
        },
    }


def _near_found(
    keys: Sequence[str], labels: np.ndarray, pairs: np.ndarray, leaked: np.ndarray, sides: np.ndarray, used: np.ndarray
) -> dict[str, Any]:
    differs = labels[pairs[:, 0]] != labels[pairs[:, 1]]
    order = np.argsort(sides[leaked], axis=1)
    lower, upper = np.take_along_axis(leaked, order, axis=1).T  # the copy on the earlier side, and that on the later one
    other = labels[lower] != labels[upper]
    contradicted = np.unique(upper[other & used[lower] & used[upper] & (sides[lower] == 0) & (sides[upper] == 1)])
    return {
        "near_duplicates": {
            "pairs": len(pairs),
            "images": len(np.unique(pairs)),
            "other_label": int(differs.sum()),
            "keys": [[keys[a], keys[b]] for a, b in pairs[:LISTED].tolist()],
        },
        "near_leaked": {
            "pairs": len(leaked),
            "images": len(np.unique(upper)),
            "left_out": len(np.unique(lower[~used[lower]])),
            "other_label": int(other.sum()),
            "keys": [
                {SIDES[sides[b]]: [keys[b]], SIDES[sides[a]]: [keys[a]]}
                for a, b in zip(lower[:LISTED].tolist(), upper[:LISTED].tolist(), strict=True)
            ],
        },
        "contradicted": {"images": len(contradicted), "keys": [keys[row] for row in contradicted[:LISTED].tolist()]},
    }


def _check_counts(
    counts: dict[str, dict[str, int]], validation_fraction: float | None, min_validation: int, *, grouped: bool
) -> None:
    """`validation_fraction`: None if the sides of all images are given."""
    hint = ". Whole groups are on one side, so check data.group_by too" if grouped else ""
    for name, count in counts["validation"].items():
        if not counts["training"][name]:
            fix = "add images"
            if validation_fraction is not None:
                fix += f" or lower data.validation_fraction (now {validation_fraction:g}){hint}"
            raise DataError(f"Class {name!r} has no training image ({count} for validation). Fix: {fix}.")
        if count < min_validation:
            fix = "add images or lower data.min_validation"
            if validation_fraction is not None:
                fix = f"add images, raise data.validation_fraction (now {validation_fraction:g}) or lower data.min_validation{hint}"
            raise DataError(
                f"Class {name!r} has {count} validation images ({counts['training'][name]} for training), below "
                f"data.min_validation = {min_validation}. Fix: {fix}."
            )
    if missing := [name for name, count in counts.get("test", {}).items() if not count]:
        raise DataError(f"Class {missing[0]!r} has no test image. Fix: add images of it, or remove the test set.")


def _ungrouped(keys: Sequence[str], groups: Sequence[str], group_by: str | None) -> list[str]:
    without = [key for key, group in zip(keys, groups, strict=True) if not group] if group_by else []
    if not without:
        return []
    return [
        f"data.group_by = {group_by!r} does not match {len(without):,} of {len(keys):,} keys, such as {without[0]!r}: "
        "each of these images is a group of its own. Fix: correct the pattern if they have a source in common with others."
    ]


def _warnings(facts: dict[str, Any]) -> list[str]:
    lines = []
    tested = "test" in facts["counts"]
    later, earlier = ("validation or test", "training or validation") if tested else ("validation", "training")
    if facts["leaked"]["images"]:
        first = facts["leaked"]["keys"][0]
        (kept,) = (names for side, names in first.items() if side != "left_out")
        lines.append(
            f"{facts['leaked']['images']} {earlier} images are copies of {later} images and are left out of {earlier}, "
            f"such as {first['left_out'][0]!r} (a copy of {kept[0]!r})"
        )
    if facts["near_leaked"]["pairs"]:
        (one, *_), (other, *_) = facts["near_leaked"]["keys"][0].values()
        start = f"{facts['near_leaked']['images']} {later} images have near copies in {earlier}"
        example = f"such as {one!r} (a near copy of {other!r})"
        if out := facts["near_leaked"]["left_out"]:
            lines.append(f"{start}: {out} images are left out of {earlier}, {example}")
        else:
            lines.append(f"{start}, {example}. Fix: set data.group_near_duplicates = true, or group them with data.group_by.")
    shared = facts["shared_groups"]
    if shared["groups"]:
        lines.append(
            f"{shared['groups']} groups have images on several sides, such as {shared['names'][0]!r}. Fix: correct their sides in "
            "data.labels."
        )
    if shared["left_out"]:
        lines.append(f"{shared['left_out']} images are left out because other images of their groups are in the test set")
    if not facts["near_complete"]:
        lines.append(
            f"There are more than {MAX_PAIRS:,} pairs of near copies; the others were not looked for. Fix: group them with "
            "data.group_by."
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
