"""report.html: what it shows, also of hostile keys and broken runs."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spikewise.curve import Parts
from spikewise.findings import Findings
from spikewise.records import Cause, Diagnosis, Overfitting, Spike
from tests.trainer.report.runs import HOSTILE, Page, broken, demo, diagnosed, facts, replayed, written
from trainer.report import figures
from trainer.report.summary import HARDEST


def test_the_page_has_no_script_and_makes_no_request(tmp_path: Path) -> None:
    """The page would not open offline or under a strict content policy, or would reveal that it was opened."""
    _, text = written(demo(), tmp_path)
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "base", "form"}
    sources = [attributes[name] for _, attributes in page.tags for name in ("src", "srcset", "href") if name in attributes]
    assert {str(source).split(",")[0] for source in sources} == {"data:image/jpeg;base64", "data:", "report.json"}
    assert not re.search(r"@import|url\(|https?://", text)


def test_hostile_strings_are_shown_as_text(tmp_path: Path) -> None:
    """Anyone who can upload an image could run code in a reader's browser, or disguise a key."""
    result = demo(epochs=3, images=30)
    quarantined = [{"key": HOSTILE, "reason": "</td><img src=x onerror=alert(1)>"}]
    result = replace(
        result,
        run="<i>run</i>",
        outcome=f"failed: {HOSTILE}",
        keys=[HOSTILE] * 30,
        groups=[HOSTILE + str(index // 2) for index in range(30)],
        classes=(HOSTILE, "b"),
        environment={HOSTILE: HOSTILE},
        network={"name": HOSTILE, "parameters": 1, "trainable": 1},
        config={**result.config, HOSTILE: {HOSTILE: HOSTILE}},
        data={**facts((HOSTILE, "b"), result.labels, result.groups), "images": 30, "manifest": HOSTILE, "quarantined": quarantined},
    )
    document, text = written(result, tmp_path)
    page = Page(text)
    assert document["hardest"][0]["key"] == HOSTILE
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
    assert page.text.count('<script>alert("1")</script>\\n\\u202egnp.exe & {{ 7*7 }} žluťoučký 图像') > 30
    assert "\u202e" not in text


def test_hostile_keys_in_a_diagnosis_are_shown_as_text(tmp_path: Path) -> None:
    """A diagnosis names suspicious images, whose keys an attacker may have chosen."""
    result = diagnosed(replace(demo(epochs=30, images=60), keys=[HOSTILE] * 60))
    _, text = written(result, tmp_path)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "\u202e" not in text
    assert 'mislabelled: Tp/<script>alert("1")</script>\\n\\u202egnp.exe' in page.text


def test_each_remedy_is_followed_by_its_options(tmp_path: Path) -> None:
    """A user would have to search the settings for what a remedy means, or for a setting that does not exist."""
    _, text = written(diagnosed(demo(epochs=30, images=60)), tmp_path)
    assert "<code>--set model.statistics=precise</code> or <code>--set model.momentum=0.9</code></p>" in text
    assert "No setting does this.</p>" in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("which", "title"),
    [
        ("one epoch", "Worse than guessing"),
        ("no epoch", "No epoch finished"),
        ("no image", "No usable validation results"),
        ("one image", "100 % of 1 unseen image classified correctly"),
        ("diverged", "No usable validation results"),
        ("some not finite", None),
        ("losses not stored", None),
        ("class missing", None),
        ("all right", "100 % of 60 unseen images classified correctly"),
        ("one group", None),
        ("no groups", None),
        ("three classes", None),
        ("many classes", None),
    ],
)
def test_every_run_gets_a_report(which: str, title: str | None, tmp_path: Path) -> None:
    """The report is needed most for a run that went wrong; there it would be missing, or show "nan"."""
    document, page = written(broken(which), tmp_path)
    assert title in (None, document["headline"][0])
    assert not re.search(r"\b(nan|None|inf|Undefined)\b", Page(re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)).text)
    assert document["headline"][0] in Page(page).text


@pytest.mark.filterwarnings("error")
def test_a_spike_to_nan_gets_a_report(tmp_path: Path) -> None:
    """A run that diverged would have no report."""
    result = diagnosed(demo(epochs=8, images=60), epochs=(5,))
    inf = math.inf
    lost = Spike(5, math.nan, 0.5, 0.02, 0.16, rise=inf, low=inf, high=inf, error=inf, images=60, outcome="divergence")
    cause = Cause("divergence", 1.0, 1.0, 1.0, "The loss is not finite.", "resume from a checkpoint.")
    history = [replace(row, validation_loss=math.nan) if row.epoch >= 5 else row for row in result.history]
    document, text = written(replace(result, history=history, findings=Findings((Diagnosis(lost, (cause,)),))), tmp_path)
    assert document["spikes"][0]["spike"]["loss"] is None
    assert "Training diverged in epoch 5." in text
    assert not re.search(r"\b(nan|None|inf)\b", Page(re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)).text)


def test_a_long_run_on_much_data_makes_a_light_page(tmp_path: Path) -> None:
    """After 1,000 epochs with 20,000 validation images the page would be too heavy for a phone."""
    result = demo(epochs=1000, images=1000)
    many = replace(
        result,
        keys=result.keys * 20,
        groups=result.groups * 20,
        labels=np.tile(result.labels, 20),
        probabilities=np.tile(result.probabilities, (20, 1)),
        losses=np.tile(result.losses, (1, 20)),
    )
    document, page = written(many, tmp_path)
    assert document["validation"]["images"] == 20_000
    assert len(document["hardest"]) == HARDEST
    assert len(page) < 700_000
    assert (tmp_path / "report.json").stat().st_size < 1_000_000


def test_spikes_are_summed_up_first_and_then_shown_one_by_one(tmp_path: Path) -> None:
    """A reader would not find what happened, why, and what to do."""
    document, text = written(diagnosed(demo()), tmp_path)
    page = Page(text)
    first, second, *_ = document["spikes_summary"]
    assert (first, second) == ("3 spikes in 40 epochs.", "One was BatchNorm statistics that do not fit the weights (epoch 5).")
    assert f"<b>{first}</b> {second}" in text
    assert page.text.index(second) < page.text.index("Always predicting") < page.text.index("Accuracy")
    assert [attributes["id"] for tag, attributes in page.tags if tag == "article"] == ["spike-5", "spike-13", "spike-29"]
    assert page.text.count("Within the epoch") == page.text.count("Along the epoch's update") == 3
    for spike in document["spikes"]:
        assert spike["headline"] in page.text
        assert spike["causes"][0]["evidence"] in page.text
    assert "spike: 4 images, probably mislabelled" in text
    assert document["spikes"][1]["images"][0]["key"] in page.text[page.text.index("Epoch 13 ") : page.text.index("Epoch 29")]
    assert [len(spike["images"]) for spike in document["spikes"]] == [0, 4, 0]


def test_images_that_look_mislabelled_are_marked(tmp_path: Path) -> None:
    """A user would not see which labels to correct, and why."""
    document, text = written(diagnosed(demo()), tmp_path)
    row = document["spikes"][1]["images"][0]
    assert (row["prediction"], row["probability"], row["looks"]) == ("authentic", 0.97, "mislabelled")
    assert Page(text).text.count("predicted authentic, 97.0 %") == 4


def test_a_bad_batch_without_known_images_is_reported(tmp_path: Path) -> None:
    """A run whose training images cannot be looked up would have no report."""
    document, text = written(diagnosed(demo(), epochs=(5, 13, 29, 34), batch=None), tmp_path)
    assert [batch["images"] for batch in document["spikes"][3]["batches"]] == [[], []]
    assert "Batch 97:" not in text


def test_no_spike_is_reported_only_for_a_diagnosed_run(tmp_path: Path) -> None:
    """A run that was never diagnosed would read as one without spikes; a run without spikes would have an empty section."""
    _, quiet = written(replace(demo(), findings=Findings()), tmp_path / "quiet")
    document, unwatched = written(demo(), tmp_path / "unwatched")
    assert "No alarm in 40 epochs." in quiet
    assert (document["spikes"], document["spikes_summary"]) == (None, None)
    assert quiet.count("<section") == unwatched.count("<section")
    assert document["answers"] is None
    assert re.sub(r'  <dl class="answers">.*?</dl>\n', "", quiet, flags=re.DOTALL) == unwatched


def test_overfitting_is_reported_once(tmp_path: Path) -> None:
    """The same trend in two sentences would read like two findings."""
    trend = Overfitting(epoch=4, loss=0.44, climb=0.013, gap=0.5)
    _, text = written(diagnosed(demo(), overfitting=trend), tmp_path)
    assert Page(text).text.count("(overfitting)") == 1


def test_the_proof_is_at_the_top_and_beside_its_spike(tmp_path: Path) -> None:
    """A reader would not learn that the advice was tried, or would miss why it could not be."""
    document, text = written(replayed(diagnosed(demo())), tmp_path / "proven")
    page, proof = Page(text).text, document["spikes_summary"][-1]
    assert proof in page[: page.index("Always predicting")]
    assert page.count(proof) == 2
    assert page.index("Trained again") > page.index("Epoch 5 ")
    _, text = written(replayed(diagnosed(demo()), problem="Nothing can be proven here.", proofs=()), tmp_path / "not")
    assert Page(text).text.count("Nothing can be proven here.") == 2


def test_the_first_lines_answer_the_questions(tmp_path: Path) -> None:
    """A reader would have to search the page for what to change and how to try it."""
    parts = tuple(Parts(row.epoch, row.validation_loss, 0.0, 0.0, row.validation_loss - 0.2, 0.2) for row in demo().history)
    document, text = written(diagnosed(demo(), parts=parts), tmp_path)
    top = Page(text).text.partition("Always predicting")[0]
    asked = ("What the validation loss is made of", "Why it jumped", "What to change", "What trying it showed")
    places = [top.index(question) for question in asked]
    assert places == sorted(places)
    answers = document["answers"]
    for name in ("made_of", "why", "change", "tried"):
        assert answers[name]
        assert all(sentence in top for sentence in answers[name])
    worst = max(document["spikes"], key=lambda one: one["spike"]["rise"])["spike"]["epoch"]
    assert f"python -m jobs.replay --run {document['run']} --storage {document['config']['run']['storage']} --spike {worst}" in top
    assert "on machines like those of the run" in top  # others round differently


def test_the_sum_shows_every_epoch_and_marks_the_measured_ones(tmp_path: Path) -> None:
    """The chart of the parts would hide a spike between two measured epochs, and contradict the loss curve above it."""
    history = demo().history
    few = tuple(Parts(row.epoch, row.validation_loss, 0.1, -0.1, row.validation_loss - 0.2, 0.2) for row in history[::4])
    document, text = written(diagnosed(demo(), parts=few), tmp_path)
    chart = figures.parts(document)
    assert chart is not None
    ((style, line),) = chart.lines
    assert style == "validation"
    assert line.count("L") == len(history) - 1
    assert [marker.style for marker in chart.markers] == ["point"] * len(few)
    assert "Measured in 10 of 40 epochs (dots)." in " ".join(Page(text).text.split())
    whole = figures.parts({**document, "parts": [{**document["parts"][0], "epoch": row.epoch} for row in history]})
    assert whole is not None
    assert not whole.markers


def test_roll_backs_are_noted(tmp_path: Path) -> None:
    """A reader would take a curve that was started anew with a lower learning rate for an undisturbed one."""
    back = {"what": "Training diverged in epoch 5.", "settings": "optimizer.learning_rate=1e-05", "to_epoch": 4}
    document, text = written(replace(demo(), roll_backs=[back, back | {"to_epoch": 0}]), tmp_path)
    assert len(document["roll_backs"]) == 2
    shown = "Training diverged in epoch 5. The run went back to the end of epoch 4, with optimizer.learning_rate=1e-05."
    assert shown in Page(text).text
    assert "The run went back to the beginning, with" in Page(text).text
