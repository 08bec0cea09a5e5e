"""trainer.data.split on made-up rows: the content hash of row i is the hash of i."""

import hashlib
import json
from itertools import pairwise

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


def labelled(**changes) -> dict:
    return rows(400) | changes


def test_the_same_pixels_in_two_files_stay_together():
    """A picture saved as PNG and as BMP would be on both sides: two files, one image."""
    table = rows(1000)
    pixels = np.arange(1000) % 500
    sides = sides_of(table, copies=Copies(pixels, np.empty((0, 2), int)))
    assert {row % 500 for row in sides.training}.isdisjoint({row % 500 for row in sides.validation})
    assert sides.facts["duplicates"]["images"] == 500
    assert sides.facts["leaked"]["images"] == 0


def test_other_images_keep_their_side_when_a_copy_is_found():
    """Finding copies would reshuffle the split of a data set."""
    before = sides_of(rows(1000))
    pixels = np.arange(1000)
    pixels[1] = 0
    after = sides_of(rows(1000), copies=Copies(pixels, np.array([[2, 3]])))
    assert set(before.validation) ^ set(after.validation) <= {0, 1}


def given(validation: range = range(300, 360), test: range = range(360, 400)) -> list[str]:
    return ["validation" if i in validation else "test" if i in test else "training" for i in range(400)]


def test_given_sides_are_kept():
    """A validation set of one's own would be trained on."""
    sides = sides_of(rows(400), given=given())
    assert sides.training == tuple(range(300))
    assert sides.validation == tuple(range(300, 360))
    assert sides.test == tuple(range(360, 400))
    assert sides.facts["counts"]["test"] == {"authentic": 20, "fake": 20}
    assert sides.facts["warnings"] == []


def test_images_without_a_given_side_are_split_by_hash():
    """A labels file that names only the test set would leave nothing to validate on."""
    table, some = rows(2000), ["test" if i < 40 else "" for i in range(2000)]
    sides = sides_of(table, given=some)
    assert sides.test == tuple(range(40))
    assert set(sides.validation) == {row for row in sides_of(table).validation if row >= 40}


def test_a_group_in_the_test_set_is_not_trained_on():
    """The model would be tested on photographs that it has seen, or the test set would grow by images that were not given."""
    table = rows(2000, groups=500)
    some = ["test" if i < 40 else "training" if i < 44 else "" for i in range(2000)]
    sides = sides_of(table, given=some)
    tested = {table["groups"][row] for row in range(40)}
    assert sides.test == tuple(range(40))
    assert tested.isdisjoint({table["groups"][row] for row in sides.training + sides.validation})
    assert {row for row in range(44, 2000) if table["groups"][row] in {"g40", "g41", "g42", "g43"}} <= set(sides.training)
    assert sides.facts["shared_groups"] == {"groups": 0, "names": [], "left_out": 120}
    assert "120 images are left out because other images of their groups are in the test set" in sides.facts["warnings"][0]


def test_groups_that_are_torn_apart_by_hand_are_reported():
    """The labels file would tear photographs apart, and the results would be of photographs that the model has seen."""
    table = rows(400) | {"groups": ["p" if i in (0, 399) else "" for i in range(400)]}
    facts = sides_of(table, given=given()).facts
    assert facts["shared_groups"] == {"groups": 1, "names": ["p"], "left_out": 0}
    assert "1 groups have images on several sides, such as 'p'. Fix: correct their sides in data.labels." in facts["warnings"]


def test_copies_between_given_sides_are_left_out_of_the_earlier_one():
    """The test set would contain images of the training or the validation set."""
    pixels = np.arange(400)
    pixels[[5, 310, 311]] = [370, 370, 6]
    sides = sides_of(rows(400), given=given(), copies=Copies(pixels, np.empty((0, 2), int)))
    assert set(range(400)) - set(sides.training + sides.validation + sides.test) == {5, 6, 310}
    assert sides.facts["leaked"]["keys"] == [
        {"test": ["k370"], "left_out": ["k5", "k310"]},
        {"validation": ["k311"], "left_out": ["k6"]},
    ]
    assert (
        "3 training or validation images are copies of validation or test images and are left out of" in sides.facts["warnings"][0]
    )


def test_copies_of_given_test_images_do_not_join_the_test_set():
    """The test set would grow by images of data.source, which are its copies."""
    table, some = rows(400), ["test" if i < 40 else "" for i in range(400)]
    pixels = np.arange(400)
    pixels[100] = 5
    for flag in (False, True):
        sides = sides_of(table, copies=Copies(pixels, np.array([[6, 101]])), given=some, group_near_duplicates=flag)
        assert sides.test == tuple(range(40))
        assert 100 not in sides.training + sides.validation
        assert (101 in sides.training + sides.validation) is not flag


def test_near_copies_on_both_sides_are_reported():
    """The user would take the accuracy on copies of training images for that on unseen ones."""
    before = sides_of(rows(400))
    trained, validated = before.training[:3], before.validation[:3]
    near = tuple(zip(trained, validated, strict=True))
    sides = sides_of(rows(400), near=near)
    assert (sides.training, sides.validation) == (before.training, before.validation)
    facts = sides.facts["near_leaked"]
    assert (facts["pairs"], facts["images"], facts["left_out"]) == (3, 3, 0)
    assert facts["keys"][0] == {"validation": [f"k{validated[0]}"], "training": [f"k{trained[0]}"]}
    other = sum((a - b) % 2 for a, b in near)
    assert facts["other_label"] == sides.facts["contradicted"]["images"] == other
    assert "3 validation images have near copies in training, such as" in sides.facts["warnings"][0]
    assert "Fix: set data.group_near_duplicates = true" in sides.facts["warnings"][0]


def test_near_copies_on_one_side_are_only_counted():
    """A forged image is an edited copy of its original: an alarm for each would hide the ones that matter."""
    before = sides_of(rows(400)).training
    one, other = next((a, b) for a, b in pairwise(before) if (a - b) % 2)
    facts = sides_of(rows(400), near=((one, other),)).facts
    assert facts["near_duplicates"] == {"pairs": 1, "images": 2, "other_label": 1, "keys": [[f"k{one}", f"k{other}"]]}
    assert facts["near_leaked"]["pairs"] == facts["contradicted"]["images"] == 0
    assert facts["warnings"] == []


def test_near_copies_are_kept_on_one_side_on_demand():
    """data.group_near_duplicates would change nothing, or move images that have no copies."""
    before = sides_of(rows(400))
    near = tuple(zip(before.training[:6], before.validation[:6], strict=True))
    sides = sides_of(rows(400), near=near, group_near_duplicates=True)
    for one, other in near:
        assert (one in sides.training) == (other in sides.training)
    moved = set(before.validation) ^ set(sides.validation)
    assert moved <= {row for pair in near for row in pair}
    assert sides.facts["near_leaked"]["pairs"] == 0
    assert len(sides.training) + len(sides.validation) == 400


def test_near_copies_of_given_images_are_left_out_on_demand():
    """With a validation set of one's own, data.group_near_duplicates would change nothing."""
    near = ((3, 305), (3, 370), (4, 5), (306, 371))
    kept = sides_of(rows(400), near=near, given=given())
    assert len(kept.training) == 300
    sides = sides_of(rows(400), near=near, given=given(), group_near_duplicates=True)
    assert set(range(300)) - set(sides.training) == {3}
    assert set(range(300, 360)) - set(sides.validation) == {306}
    assert sides.facts["near_leaked"]["left_out"] == 2
    assert "2 images are left out of training or validation" in sides.facts["warnings"][0]


def test_copies_of_copies_do_not_hide_a_near_copy():
    """A near copy would be missed because another copy of the image lies on the same side."""
    pixels = np.arange(400)
    pixels[[1, 2]] = 0
    near = np.array([[0, 305]])
    facts = sides_of(rows(400), given=given(), copies=Copies(pixels, near)).facts
    assert facts["near_leaked"]["pairs"] == 2  # one for each label
    assert facts["contradicted"]["images"] == 1


def test_a_class_without_images_on_a_given_side():
    """The run would validate or test on one class only."""
    table = labelled(labels=np.array([i % 2 if i < 360 else 1 for i in range(400)]))
    with pytest.raises(DataError, match=r"Class 'authentic' has no test image\. Fix: add images of it, or remove the test set\."):
        sides_of(table, given=given())
    with pytest.raises(DataError, match=r"Class 'authentic' has 0 validation .* Fix: add images or lower data\.min_validation\."):
        sides_of(table, given=given(range(360, 400), range(0)))


def test_keys_that_the_group_pattern_misses():
    """Images of one source would be on both sides, because the pattern fits only some of their keys."""
    table = rows(1000, groups=300)
    table["groups"][7] = table["groups"][9] = ""
    warnings = sides_of(table, group_by="^(g.*)").facts["warnings"]
    assert warnings[0].startswith(
        "data.group_by = '^(g.*)' does not match 2 of 1,000 keys, such as 'k7': each of these images is a "
    )
    assert sides_of(rows(1000, groups=300), group_by="^(g.*)").facts["warnings"] == []
    assert not [
        line for line in sides_of(table).facts["warnings"] if "group_by =" in line
    ]  # of a labels file: left empty on purpose
