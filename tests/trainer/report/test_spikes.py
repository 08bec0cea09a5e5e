"""The report of a run with spikes: the answer first, each spike shown with its causes, older runs as they were."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spikewise.records import Cause, Diagnosis, Event, Overfitting, Probe, Spike, Suspect
from tests.trainer.report.test_summary import HOSTILE, Page, demo, photographs, written
from trainer.report import summary


def diagnosed(result: summary.RunResult, epochs: tuple[int, ...] = (5, 13, 29), **changes: Any) -> summary.RunResult:
    """The run with spikes in these epochs, by turns from lagging statistics, from four images, a raised learning rate and two bad
    batches."""
    losses, diagnoses = result.losses.copy(), []
    for number, epoch in enumerate(epochs):
        worst = np.argsort(-losses[epoch - 2])[:4]
        if number % 3 == 1:
            losses[epoch - 1, worst] = losses[epoch - 2, worst] + 0.08 * losses.shape[1]
        else:
            losses[epoch - 1] = losses[epoch - 2] + 0.4
        before, loss = (float(losses[row].mean()) for row in (epoch - 2, epoch - 1))
        rise, count = loss - before, losses.shape[1]
        spike = Spike(epoch, loss, before, 0.02, 0.16, rise, 0.7 * rise, 1.3 * rise, 0.05, count, "recovered", epoch + 1)
        suspects = tuple(
            Suspect(int(i), float(losses[epoch - 2, i]), float(losses[epoch - 1, i]), "fake", "authentic", 0.97, "mislabelled")
            for i in worst
        )
        entries = [{"image": int(i), "before": float(losses[epoch - 2, i]), "now": float(losses[epoch - 1, i])} for i in worst]
        statistics, few, line = ((0.93, 0.2, 0.3), (0.1, 0.81, 0.05), (0.2, 0.15, 0.96), (0.3, 0.2, 0.4))[number % 4]
        path = {0: before, 75: before + 0.1 * rise, 100: before + 0.7 * rise, 200: loss}
        way = {0.0: before, 0.33: before + 0.02, 0.5: before + 0.1, 1.0: loss - 0.05}
        probes = (
            Probe("few_examples", few, few, few + 0.03, facts={"images": entries, "left": 0.02, "of": count}),
            Probe("repetition", 0.0, 0.0, 0.0, passes=1, facts={"difference": 0.0}),
            Probe("path", 0.6, 0.6, 0.6, passes=3, facts={"first": 75, "last": 100, "losses": path}),
            Probe("statistics", statistics, statistics - 0.08, statistics + 0.05, 0.03, 3, {"now": before, "before": before}),
            Probe("line", line, line - 0.1, line + 0.02, 0.03, 3, {"at": 0.33, "times": 3.0, "losses": way}),
            Probe("averaged", 0.4, 0.1, 0.7, 0.12, 2, {"now": before, "before": before}),
            Probe("before_event", line, line, line, passes=1, facts=Event("learning_rate", epoch, 75, 1e-4, 1e-3).as_dict()),
            Probe(
                "bad_batches",
                *(0.98, 0.93, 1.02, 0.03, 1),
                {"batches": [96, 97], "losses": [4.1, 2.9], "usual": 0.4, "each": [list(np.linspace(0.1, 8, 32)), [2.9] * 32]},
            ),
        )
        named = ", ".join(result.keys[i] for i in worst)
        causes = [
            Cause(
                "batchnorm_statistics",
                statistics,
                statistics - 0.08,
                statistics + 0.05,
                f"With statistics re-estimated on training batches the loss is {before + 0.03:.3f}.",
                "set BatchNormalization's momentum to 0.9 (it is 0.99: half of an epoch's change takes 69 steps to arrive).",
            ),
            Cause(
                "few_examples",
                few,
                few,
                few + 0.03,
                f"Without 4 of {count} images 0.020 of the rise of {rise:.3f} is left.",
                f"look at these 4 images, which stand out and look mislabelled: {named}.",
            ),
            Cause(
                "run_event",
                line,
                line - 0.03,
                line + 0.02,
                "The learning rate was changed from 0.0001 to 0.001 at step 75 of this epoch.",
                "go back to a learning rate of 0.0001, or warm up to the new one.",
                "learning_rate",
            ),
            Cause(
                "bad_batch",
                *(0.98, 0.93, 1.02),
                "For the weights of the epoch before, batches 97, 98 of 200 had a loss of 3.50, others 0.40; "
                "undoing the steps from there on removes 98% of the rise.",
                "look at the images and labels of batches 97, 98.",
            ),
        ]
        ranked = [causes[number % 4], *causes[: number % 4], *causes[number % 4 + 1 :]]
        diagnoses.append(Diagnosis(spike, tuple(ranked), probes, seconds=4.2, suspects=suspects))
    history = [replace(row, validation_loss=float(mean)) for row, mean in zip(result.history, losses.mean(1), strict=True)]
    return replace(result, **{"losses": losses, "history": history, "diagnoses": diagnoses, "batch": batch, **changes})


def batch(epoch: int, number: int) -> list[summary.Trained]:
    """32 training images."""
    pictures = photographs()
    return [summary.Trained(f"fake/{epoch}-{number}-{i:02d}.jpg", 1, pictures[(number + i) % len(pictures)]) for i in range(32)]


def test_spikes_are_the_first_answer_and_shown_one_by_one(tmp_path: Path) -> None:
    """This answer is what the report is read for: what happened, why, and what to do."""
    document, text = written(diagnosed(demo()), tmp_path)
    page = Page(text)
    assert document["spikes_summary"].startswith("3 spikes in 40 epochs. One was lagging BatchNorm statistics (epoch 5).")
    assert page.text.index(document["spikes_summary"][30:]) < page.text.index("Always answering") < page.text.index("Accuracy")
    assert [attributes["id"] for tag, attributes in page.tags if tag == "article"] == ["spike-5", "spike-13", "spike-29"]
    assert page.text.count("Within the epoch") == page.text.count("Along the way") == 3
    for spike in document["spikes"]:
        assert spike["headline"] in page.text
        assert spike["causes"][0]["evidence"] in page.text
    assert "spike: 4 images, probably mislabelled" in text
    assert document["spikes"][1]["images"][0]["key"] in page.text[page.text.index("Epoch 13 ") : page.text.index("Epoch 29")]
    assert [len(spike["images"]) for spike in document["spikes"]] == [0, 4, 0]


def test_the_images_of_a_bad_batch_are_shown_worst_first(tmp_path: Path) -> None:
    """Without them "look at batch 97" would send a user to write a program first."""
    document, text = written(diagnosed(demo(), epochs=(5, 13, 29, 34)), tmp_path)
    first, second = document["spikes"][3]["batches"]
    assert [spike["name"] for spike in document["spikes"][2:]] == ["a raised learning rate", "a bad training batch"]
    assert [len(spike["batches"]) for spike in document["spikes"]] == [0, 0, 0, 2]
    assert (first["batch"], first["of"], len(first["images"]), second["batch"]) == (97, 32, summary.SUSPECTS, 98)
    assert [row["key"] for row in first["images"][:2]] == ["fake/34-96-31.jpg", "fake/34-96-30.jpg"]
    shown = Page(text).text.partition("Epoch 34 ")[2]
    assert "Batch 97: loss 4.100, others 0.400" in shown
    assert "fake/34-96-31.jpg" in shown


def test_a_batch_that_cannot_be_looked_up_is_told_without_images(tmp_path: Path) -> None:
    """The report of a run whose training images are unknown must still be made."""
    document, text = written(diagnosed(demo(), epochs=(5, 13, 29, 34), batch=None), tmp_path)
    assert [batch["images"] for batch in document["spikes"][3]["batches"]] == [[], []]
    assert "Batch 97:" not in text


def test_what_single_images_look_like_is_told(tmp_path: Path) -> None:
    """A wrong label is mended in a minute, once one sees which and why."""
    document, text = written(diagnosed(demo()), tmp_path)
    row = document["spikes"][1]["images"][0]
    assert (row["prediction"], row["probability"], row["looks"]) == ("authentic", 0.97, "mislabelled")
    assert Page(text).text.count("called authentic, 97.0 %") == 4


def test_a_watched_run_without_spikes_says_so_and_an_unwatched_one_nothing(tmp_path: Path) -> None:
    """Silence must not read as "no spike", and a quiet run needs no empty section."""
    _, quiet = written(replace(demo(), diagnoses=[]), tmp_path / "quiet")
    document, unwatched = written(demo(), tmp_path / "unwatched")
    assert "No spike in 40 epochs." in quiet
    assert (document["spikes"], document["spikes_summary"]) == (None, None)
    assert quiet.count("<section") == unwatched.count("<section")
    assert quiet.replace('  <p class="lead answer"><b>No spike in 40 epochs.</b></p>\n', "") == unwatched


def test_overfitting_is_told_once(tmp_path: Path) -> None:
    """The same trend in two sentences reads like two findings."""
    trend = Overfitting(epoch=4, loss=0.44, climb=0.013, gap=0.5)
    _, text = written(diagnosed(demo(), overfitting=trend), tmp_path)
    assert Page(text).text.count("(overfitting)") == 1


@pytest.mark.filterwarnings("error")
def test_a_spike_that_is_no_number_gets_a_report(tmp_path: Path) -> None:
    """Of a run that diverged the report is read most."""
    result = diagnosed(demo(epochs=8, images=60), epochs=(5,))
    inf = math.inf
    lost = Spike(5, math.nan, 0.5, 0.02, 0.16, rise=inf, low=inf, high=inf, error=inf, images=60, outcome="divergence")
    cause = Cause("divergence", 1.0, 1.0, 1.0, "The loss is not finite.", "resume from a checkpoint.")
    history = [replace(row, validation_loss=math.nan) if row.epoch >= 5 else row for row in result.history]
    document, text = written(replace(result, history=history, diagnoses=[Diagnosis(lost, (cause,))]), tmp_path)
    assert document["spikes"][0]["spike"]["loss"] is None
    assert "Training diverged in epoch 5." in text
    assert not re.search(r"\b(nan|None|inf)\b", Page(re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)).text)


def test_hostile_keys_in_a_diagnosis_are_shown_not_obeyed(tmp_path: Path) -> None:
    """The keys of suspicious images are those that an attacker chooses."""
    result = diagnosed(replace(demo(epochs=30, images=60), keys=[HOSTILE] * 60))
    _, text = written(result, tmp_path)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "\u202e" not in text
    assert 'mislabelled: Tp/<script>alert("1")</script>\\n\\u202egnp.exe' in page.text


def test_every_field_of_a_spike_is_documented() -> None:
    """Programs are written against docs/report.md."""
    documented = (Path(summary.__file__).parent.parent / "docs" / "report.md").read_text(encoding="utf-8")
    trend = Overfitting(epoch=2, loss=0.5, climb=0.01, gap=0.2)
    document = summary.summarize(diagnosed(demo(epochs=6, images=40), epochs=(2, 3, 4, 5), overfitting=trend))
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
        document["overfitting"],
    )
    assert not [name for part in parts for name in part if f"`{name}`" not in documented]
