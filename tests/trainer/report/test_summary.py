"""report.json: correct numbers, and every field documented."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from spikewise.records import Overfitting
from tests.trainer.report.runs import Page, demo, diagnosed, replayed, written
from trainer.report import summary
from trainer.report.result import EvaluatedTest

DOCUMENTED = Path("docs/report.md").read_text(encoding="utf-8")


def test_numbers_are_those_of_scikit_learn(tmp_path: Path) -> None:
    """Wrong accuracy, AUC or recall would be quoted from the report."""
    result = demo()
    document, page = written(result, tmp_path)
    answers = result.probabilities.argmax(1)
    validation = document["validation"]
    assert validation["accuracy"]["value"] == pytest.approx(metrics.accuracy_score(result.labels, answers))
    assert validation["loss"]["value"] == pytest.approx(metrics.log_loss(result.labels, result.probabilities), rel=1e-4)
    assert document["roc"][0]["auc"]["value"] == pytest.approx(metrics.roc_auc_score(result.labels, result.probabilities[:, 1]))
    assert document["confusion"] == metrics.confusion_matrix(result.labels, answers).tolist()
    recall = metrics.recall_score(result.labels, answers, average=None)
    assert [row["recall"]["value"] for row in document["per_class"]] == pytest.approx(list(recall))
    assert validation["guess_loss"] == pytest.approx(
        metrics.log_loss(result.labels, np.tile(np.bincount(result.labels) / 300, (300, 1)))
    )
    assert document["worst_fraction"]["images"] == 3
    assert f"bootstrap over {len(set(result.groups))} groups" in page


def test_hardest_images_are_those_of_highest_loss_in_the_epoch_shown(tmp_path: Path) -> None:
    """A user looks here for wrong labels; images of another epoch would be the wrong ones."""
    result = replace(demo(), epoch=12)
    losses = result.losses.copy()
    losses[11, 5], losses[11, 7] = np.nan, 99.0
    document, _ = written(replace(result, losses=losses), tmp_path)
    expected = [5, *np.argsort(-np.nan_to_num(losses[11], nan=-1), kind="stable")[: summary.HARDEST - 1]]
    assert [row["index"] for row in document["hardest"]] == expected
    assert document["hardest"][0]["loss"] is None
    assert document["hardest"][1]["key"] == result.keys[7]


def test_the_images_of_a_bad_batch_are_shown_worst_first(tmp_path: Path) -> None:
    """The advice "look at batch 97" would need a program of the user's own."""
    document, text = written(diagnosed(demo(), epochs=(5, 13, 29, 34)), tmp_path)
    first, second = document["spikes"][3]["batches"]
    assert [spike["name"] for spike in document["spikes"][2:]] == ["a raised learning rate", "a bad training batch"]
    assert [len(spike["batches"]) for spike in document["spikes"]] == [0, 0, 0, 2]
    assert (first["batch"], first["of"], len(first["images"]), second["batch"]) == (97, 32, summary.SUSPECTS, 98)
    assert [row["key"] for row in first["images"][:2]] == ["fake/34-96-31.jpg", "fake/34-96-30.jpg"]
    shown = Page(text).text.partition("Epoch 34 ")[2]
    assert "Batch 97: loss 4.100, usual 0.400" in shown
    assert "fake/34-96-31.jpg" in shown


def test_every_field_of_the_json_is_documented() -> None:
    """The author of a program that reads report.json would have to guess what a field means."""
    document = summary.summarize(demo(epochs=3, images=40))
    nested = {name: document[name] for name in ("validation", "calibration", "worst_fraction", "restarts")}
    nested |= {name: document[name][0] for name in ("per_class", "roc", "hardest")} | {"bins": document["calibration"]["bins"][0]}
    names = (set(document) - {"validation", "calibration"}) | {
        key for one in nested.values() for key in (one[0] if isinstance(one, list) else one)
    }
    assert not [name for name in names if not re.search(rf"`([a-z_]+\.)?{name}`", DOCUMENTED)]


def test_every_field_of_a_spike_is_documented() -> None:
    """The author of a program that reads report.json would have to guess what a field means."""
    trend = Overfitting(epoch=2, loss=0.5, climb=0.01, gap=0.2)
    document = summary.summarize(replayed(diagnosed(demo(epochs=6, images=40), epochs=(2, 3, 4, 5), overfitting=trend)))
    replay = document["spikes"][0]["replay"]
    spike, last = document["spikes"][1], document["spikes"][3]["batches"][0]
    parts = (
        spike,
        spike["spike"],
        spike["causes"][0],
        spike["probes"][0],
        spike["images"][0],
        last,
        last["images"][0],
        spike["training"],
        replay,
        replay["proofs"][0],
        document["overfitting"],
    )
    assert not [name for part in parts for name in part if f"`{name}`" not in DOCUMENTED]


def test_the_test_set_is_scored_like_the_validation_set(tmp_path: Path) -> None:
    """Test results could not be compared with validation results, or would be missing from the page."""
    result = demo(epochs=6, images=300)
    losses = result.losses[-1]
    test = EvaluatedTest(result.groups, result.labels, result.probabilities, losses)
    counts = {**result.data["counts"], "test": result.data["counts"]["validation"]}
    data = {**result.data, "counts": counts, "groups": {**result.data["groups"], "test": result.data["groups"]["validation"]}}
    document, page = written(replace(result, test=test, data=data), tmp_path)
    for name in ("images", "groups", "by_class", "accuracy", "loss", "majority", "guess_loss", "unanswered"):
        assert document["test"][name] == document["validation"][name]
    assert document["test"]["auc"] == [{"class": "fake", **document["roc"][0]["auc"]}]
    assert document["test"]["confusion"] == document["confusion"]
    assert any(line.startswith("Test set: ") and "of 300 images classified correctly, AUC" in line for line in document["headline"])
    text = Page(page).text
    assert "300 test images from" in text
    assert "Recall of fake" in text
    assert summary.summarize(result)["test"] is None


def test_a_proof_is_shown_with_its_spike_only() -> None:
    """A run that went back and has another spike in the same epoch would be shown with the proof of the abandoned one."""
    result = replayed(diagnosed(demo()))
    document = summary.summarize(result)
    assert document["spikes_summary"][-1].startswith("Proven: with model.statistics=precise the loss of epoch 5 is ")
    assert [spike["replay"] is not None for spike in document["spikes"]] == [True, False, False]
    assert document["spikes"][0]["replay"]["proofs"][0]["verdict"] == "helps in part"
    other = summary.summarize(replayed(diagnosed(demo()), loss=9.0))
    assert all(spike["replay"] is None for spike in other["spikes"])
    assert not any("Proven" in line for line in other["spikes_summary"])
