"""trainer.data.split on made-up rows: the content hash of row i is the hash of i."""

import hashlib
import json

import numpy as np
import pytest

from trainer.data.dataset import DataError, Split
from trainer.data.duplicates import Copies
from trainer.data.split import LISTED, split

CLASSES = ("authentic", "fake")


def rows(n: int, *, groups: int = 0) -> dict:
    return {
        "keys": [f"k{i}" for i in range(n)],
        "labels": np.arange(n) % 2,
        "groups": [f"g{i % groups}" if groups else "" for i in range(n)],
        "contents": [hashlib.blake2b(str(i).encode(), digest_size=16).hexdigest() for i in range(n)],
    }


def sides_of(table: dict, near: tuple[tuple[int, int], ...] = (), **more) -> Split:
    """The split of rows whose pixels are equal where their contents are; `near` are further near copies."""
    numbers = {content: number for number, content in enumerate(dict.fromkeys(table["contents"]))}
    pixels = np.array([numbers[content] for content in table["contents"]])
    settings = {
        "given": [""] * len(table["keys"]),
        "copies": Copies(pixels, np.array(near, int).reshape(-1, 2)),
        "validation_fraction": 0.2,
        "min_validation": 20,
    }
    return split(**table, classes=CLASSES, **settings | more)


def halves(table: dict, validation_fraction: float = 0.2) -> tuple[set[str], set[str], dict]:
    """Keys of the training and the validation side, and the facts."""
    sides = sides_of(table, validation_fraction=validation_fraction)
    named = [{table["keys"][row] for row in side} for side in (sides.training, sides.validation)]
    json.dumps(sides.facts)
    return named[0], named[1], sides.facts


def test_every_image_is_on_exactly_one_side_in_about_the_right_number():
    """Validation images would be trained on, or a class would be missing on one side."""
    training, validation, facts = halves(rows(10_000))
    assert training.isdisjoint(validation)
    assert len(training | validation) == 10_000
    for name in CLASSES:
        assert facts["counts"]["training"][name] + facts["counts"]["validation"][name] == 5000
        assert abs(facts["counts"]["validation"][name] - 1000) < 5 * np.sqrt(5000 * 0.2 * 0.8)
    assert facts["groups"] == {"training": len(training), "validation": len(validation)}
    assert facts["imbalance_ratio"] == 1.0
    assert facts["warnings"] == []


def test_an_image_never_changes_sides_when_others_are_added():
    """Adding data would move validation images into training, and later runs could not be compared with earlier ones."""
    few, many = rows(2000), rows(20_000)
    before_training, before_validation, _ = halves(few)
    after_training, after_validation, _ = halves(many)
    assert before_training <= after_training
    assert before_validation <= after_validation


def test_a_larger_fraction_only_adds_to_validation():
    """Changing the fraction would reshuffle everything."""
    _, smaller, _ = halves(rows(2000), validation_fraction=0.1)
    _, larger, _ = halves(rows(2000), validation_fraction=0.3)
    assert smaller < larger


def test_names_and_order_do_not_matter():
    """Renaming files or moving them to another store would change the split."""
    table = rows(1000)
    _, validation, _ = halves(table)
    order = np.random.default_rng(0).permutation(1000)
    shuffled = {name: np.array(values)[order].tolist() for name, values in table.items()} | {"labels": table["labels"][order]}
    _, again, _ = halves(shuffled)
    assert again == validation


def test_a_group_stays_together():
    """A fake would be validated on a network that has seen its original."""
    table = rows(4000, groups=400)
    training, validation, facts = halves(table)
    group_of = dict(zip(table["keys"], table["groups"], strict=True))
    assert {group_of[key] for key in training}.isdisjoint({group_of[key] for key in validation})
    assert facts["groups"]["training"] + facts["groups"]["validation"] == 400
    assert abs(facts["groups"]["validation"] - 80) < 40


def test_copies_stay_together_and_are_reported():
    """An image uploaded twice would be on both sides."""
    table = rows(1000)
    table["contents"][501:1000:2] = table["contents"][1:500:2]
    training, validation, facts = halves(table)
    for i in range(1, 500, 2):
        assert (f"k{i}" in training) == (f"k{i + 500}" in training) != (f"k{i}" in validation)
    assert facts["duplicates"]["contents"] == facts["duplicates"]["images"] == 250
    assert facts["duplicates"]["keys"][0] == ["k1", "k501"]
    assert len(facts["duplicates"]["keys"]) == LISTED
    assert facts["leaked"]["images"] == facts["conflicting_labels"]["images"] == 0
    assert "250 images are exact copies of others, such as 'k1' and 'k501'" in facts["warnings"][0]


def test_copies_on_both_sides_are_left_out_of_training():
    """The same bytes would be on both sides, because two groups contain a copy each."""
    table = rows(4000, groups=400)
    training, validation, _ = halves(table)
    for target, source in zip(sorted(training)[:3], sorted(validation)[:3], strict=True):
        table["contents"][int(target[1:])] = table["contents"][int(source[1:])]
    less, same, facts = halves(table)
    assert less == training - set(sorted(training)[:3])
    assert same == validation
    assert facts["leaked"] == {
        "contents": 3,
        "images": 3,
        "keys": [
            {"validation": [kept], "left_out": [out]}
            for out, kept in sorted(
                zip(sorted(training)[:3], sorted(validation)[:3], strict=True), key=lambda pair: min(int(key[1:]) for key in pair)
            )
        ],
    }
    assert sum(facts["counts"]["training"].values()) == len(less)
    assert "3 training images are copies of validation images and are left out" in facts["warnings"][0]


def test_one_image_under_two_labels_is_reported():
    """Any prediction for such an image would be wrong, and the user would not learn why its loss is high."""
    table = rows(1000)
    table["contents"][7] = table["contents"][500] = table["contents"][4]
    _, _, facts = halves(table)
    assert facts["conflicting_labels"] == {"contents": 1, "images": 3, "keys": [{"authentic": ["k4", "k500"], "fake": ["k7"]}]}
    assert any("have more than one label, such as 'k4' (authentic) and 'k7' (fake)" in line for line in facts["warnings"])


def test_too_few_validation_images():
    """The validation loss would be of three images, and jump for no other reason."""
    table = rows(1000)
    table["labels"] = (np.arange(1000) < 970).astype(int)
    with pytest.raises(DataError) as error:
        halves(table)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    for word in (
        "Class 'authentic' has ",
        "below data.min_validation = 20",
        "Fix: add images",
        "data.validation_fraction (now 0.2)",
    ):
        assert word in message
    assert "group_by" not in message
    with pytest.raises(DataError, match=r"Whole groups are on one side, so check data\.group_by too"):
        halves(rows(100, groups=3))


def test_nothing_to_train_on():
    """The network would learn that a class never occurs."""
    with pytest.raises(
        DataError, match=r"Class 'authentic' has no training image \(200 for validation\)\. Fix: .* \(now 0.999999\)"
    ):
        halves(rows(400), validation_fraction=0.999999)


def test_imbalance():
    """The user would not see that always predicting `fake` has an accuracy of 80 %."""
    table = rows(1000)
    table["labels"] = (np.arange(1000) % 5 > 0).astype(int)
    assert halves(table)[2]["imbalance_ratio"] == 4.0
