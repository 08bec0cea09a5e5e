"""The report's sentences about the whole run."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.report.runs import Page, demo, written
from trainer.report.summary import summarize


def course(*losses: float, training: tuple[float, float] = (0.5, 0.1)) -> list[str]:
    """The headline of a run with these validation losses, and training losses that go from one value to the other."""
    result = demo(epochs=len(losses), images=200)
    fall = np.linspace(*training, len(losses))
    history = [
        replace(row, validation_loss=v, train_loss_inference=t) for row, v, t in zip(result.history, losses, fall, strict=True)
    ]
    return summarize(replace(result, history=history))["headline"]


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([0.7, 0.6, 0.5, 0.45, 0.4], "lowest, 0.400, after epoch 5 of 5, close to the end: more epochs may lower it further."),
        (
            [0.7, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8],
            "It has since risen to 0.800 while the loss on training images fell from 0.443 to 0.100: the model memorizes",
        ),
        (
            [0.7, 0.4, 0.41, 0.42, 0.41, 0.42, 0.41, 0.42],
            "has stayed close to it since (0.420 is the median of the last five epochs): more epochs are unlikely to help.",
        ),
        ([0.7, 0.4, 0.5, math.nan, math.inf], "Since epoch 4 it is no longer finite: training diverged."),
        ([0.7, 0.6], "too few epochs to see a trend."),
        ([math.nan] * 4, "The validation loss was never finite."),
    ],
)
def test_the_headline_says_how_the_validation_loss_developed(losses: list[float], words: str) -> None:
    """A wrong sentence would make a user train on, or stop, for nothing."""
    assert words in " ".join(course(*losses))


def test_rising_with_the_training_loss_is_not_called_overfitting() -> None:
    """A user would add data or dropout although the training loss rises too, which has other causes."""
    assert "overfitting" not in " ".join(course(0.7, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8, training=(0.3, 0.6)))


def test_disturbances_are_noted(tmp_path: Path) -> None:
    """A reader would trust numbers without knowing of resumes, lost images and contradictory labels."""
    result = demo(epochs=8, images=60)
    conflict = {"contents": 1, "images": 2, "keys": [{"authentic": ["Au/one.jpg"], "fake": ["Tp/one copy.jpg"]}]}
    leaked = {"contents": 1, "images": 1, "keys": [{"validation": ["Au/two.jpg"], "left_out": ["Au/two copy.jpg"]}]}
    quarantined = [{"key": f"Au/broken-{index}.jpg", "reason": "truncated"} for index in range(30)]
    data = {**result.data, "conflicting_labels": conflict, "leaked": leaked, "quarantined": quarantined}
    history = [replace(row, input_wait=0.4) for row in result.history]
    document, page = written(replace(result, data=data, history=history), tmp_path)
    assert document["restarts"] == [{"epoch": 5, "restarts": 1}]
    assert document["notes"][-4:] == [
        "Exact copies with different labels: 2 images (see Data).",
        "Left out because they cannot be decoded: 30 images (see Data).",
        "Training resumed from a checkpoint in epoch 5.",
        "The slowest worker spent 40.0 % of the training time waiting for input.",
    ]
    text = Page(page).text
    assert "fake: Tp/one copy.jpg" in text
    assert "Au/two.jpg · Au/two copy.jpg" in text
    assert "Not decodable (first 20 of 30)" in text
    assert "Au/broken-19.jpg · truncated" in text
    assert "Au/broken-20.jpg" not in text


def below_guessing(contradicted: int) -> dict:
    """A run whose model ranks the classes the wrong way round, with so many near copies of the other label in training."""
    result = demo(epochs=6, images=200, grouped=False)
    data = {**result.data, "contradicted": {"images": contradicted, "keys": []}}
    return summarize(replace(result, probabilities=result.probabilities[:, ::-1], data=data))


def test_an_auc_below_guessing_is_explained_by_copies_with_the_other_label() -> None:
    """The user would read "worse than guessing" and look for the cause in the network instead of the split."""
    words = below_guessing(120)["headline"]
    assert words[0] == "Worse than guessing"
    text = " ".join(words)
    assert "is clearly below 0.5: the model has learned to give the wrong label." in text
    assert "120 of 200 validation images (60.0 %) have a near copy with another label in training" in text
    assert "data.group_near_duplicates = true" in text
    assert "Check whether" not in text


@pytest.mark.parametrize(("found", "words"), [(0, "No validation image has a near copy"), (3, "This is too few to explain it.")])
def test_an_auc_below_guessing_without_copies_names_what_to_check(found: int, words: str) -> None:
    """The report would blame copies that do not exist, or leave the user without a next step."""
    text = " ".join(below_guessing(found)["headline"])
    assert words in text
    assert "Check whether the labels of one side are swapped" in text


def test_a_good_model_gets_no_explanation() -> None:
    """An ordinary run would be explained away because it has copies."""
    result = demo(epochs=6, images=200, grouped=False)
    data = {**result.data, "contradicted": {"images": 50, "keys": []}}
    assert "below 0.5" not in " ".join(summarize(replace(result, data=data))["headline"])


def test_near_copies_on_both_sides_are_noted(tmp_path: Path) -> None:
    """A reader would take the results on copies of training images for results on unseen images."""
    result = demo(epochs=6, images=60)
    keys = [{"validation": ["Tp/two.jpg"], "training": ["Au/two.jpg"]}]
    leaked = {"pairs": 9, "images": 8, "left_out": 0, "other_label": 5, "keys": keys}
    document, page = written(replace(result, data={**result.data, "near_leaked": leaked}), tmp_path)
    assert "Validation images with a near copy in training: 8 (see Data); they are not unseen." in document["notes"]
    text = Page(page).text
    assert "9, 5 with different labels" in text
    assert "validation: Tp/two.jpg · training: Au/two.jpg" in text
    quiet, _ = written(replace(result, data={**result.data, "near_leaked": {**leaked, "left_out": 8}}), tmp_path)
    assert not any("near copy" in note for note in quiet["notes"])
