"""The report of a run: true numbers, strict JSON, a page that survives hostile keys and broken runs."""

import json
import math
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from trainer import config
from trainer.epoch import EpochReport
from trainer.report import summary

HOSTILE = 'Tp/<script>alert("1")</script>\n\u202egnp.exe & {{ 7*7 }} žluťoučký 图像'


@cache
def photographs() -> list[np.ndarray]:
    """Real photographs, uint8 [64, 64, 3], cut from those that scikit-image carries."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    cut = []
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg"):
        with Image.open(folder / name) as file:
            picture = file.convert("RGB")
            side = min(picture.size) // 2
            for x in range(3):
                for y in range(2):
                    left, top = x * (picture.width - side) // 2, y * (picture.height - side)
                    cut.append(np.asarray(picture.crop((left, top, left + side, top + side)).resize((64, 64))))
    return cut


def facts(classes: tuple[str, ...], labels: np.ndarray, groups: list[str]) -> dict[str, Any]:
    """What the split tells of clean data, four training images for each validation image."""
    nothing: dict[str, Any] = {"contents": 0, "images": 0, "keys": []}
    counts = {name: int((labels == index).sum()) for index, name in enumerate(classes)}
    return {
        "counts": {"training": {name: 4 * count for name, count in counts.items()}, "validation": counts},
        "groups": {"training": 4 * len(set(groups)), "validation": len(set(groups))},
        "imbalance_ratio": round(max(counts.values()) / max(1, min(counts.values())), 3),
        "duplicates": nothing,
        "leaked": nothing,
        "conflicting_labels": nothing,
        "warnings": [],
    }


def demo(
    epochs: int = 40, images: int = 300, classes: tuple[str, ...] = ("authentic", "fake"), grouped: bool = True, seed: int = 7
) -> summary.RunResult:
    """A run as it happens: the training loss falls, the validation loss turns up and jumps twice, one resume."""
    random = np.random.default_rng(seed)
    k = len(classes)
    labels = random.choice(k, images, p=np.array([0.56] + [0.44 / (k - 1)] * (k - 1))) if images else np.empty(0, int)
    ease = random.normal(1.6, 1.5, images) - 6 * (random.random(images) < 0.02)
    progress = 1 - np.exp(-np.arange(1, epochs + 1) / (0.12 * epochs + 0.5))
    sharp = 0.15 + progress * (1 + 1.1 * np.arange(epochs) / max(1, epochs))
    noise_scale = random.normal(0, 0.12, (epochs, images)) + random.normal(0, 0.1, (epochs, 1))
    for jump in (int(0.3 * epochs), int(0.72 * epochs)):
        noise_scale[jump : jump + 1] -= 0.9
    margin = sharp[:, None] * (ease + noise_scale)
    losses = np.logaddexp(0, -margin + math.log(k - 1)).astype(np.float32)
    of_label = np.exp(-losses[-1]) if epochs else np.empty(0)
    probabilities = random.dirichlet(np.full(k - 1, 0.8), images) * (1 - of_label[:, None])
    probabilities = (
        np.stack([np.insert(rest, label, p) for rest, label, p in zip(probabilities, labels, of_label, strict=True)])
        if images
        else np.empty((0, k))
    )
    validation = losses.mean(1) if images else np.full(epochs, np.nan)
    history = [
        EpochReport(
            epoch=e + 1,
            step=(e + 1) * 200,
            train_loss=float(0.72 * np.exp(-2.0 * e / epochs) + 0.06 + random.normal(0, 0.006)),
            train_accuracy=float(0.97 - 0.42 * np.exp(-3.2 * (e + 1) / epochs)),
            train_loss_inference=float(0.62 * np.exp(-2.6 * e / epochs) + 0.04 + random.normal(0, 0.012)),
            validation_loss=float(validation[e]),
            validation_accuracy=float((losses[e] < math.log(2)).mean()) if images else math.nan,
            learning_rate=1e-4,
            gradient_norm=float(1.9 * np.exp(-e / epochs) + random.gamma(2, 0.08)),
            update_norm=float(0.09 * np.exp(-1.4 * e / epochs) + random.gamma(2, 0.002)),
            images_per_second=float(314 + random.normal(0, 9) - 90 * (e == epochs // 2)),
            input_wait=float(np.clip(random.gamma(2, 0.012), 0, 1)),
            step_seconds=0.102,
            seconds=float(25.5 + random.gamma(2, 0.6)),
            restarts=int(e >= epochs // 2 and epochs > 2),
        )
        for e in range(epochs)
    ]
    groups = (
        [f"scene-{number:04d}" for number in np.sort(random.integers(0, max(1, images // 3), images))] if grouped else [""] * images
    )
    prefixes = {name: f"{name}/" for name in classes}
    settings = config.parse({"data": {"source": "s3://photographs/2025", "classes": prefixes, "group_by": "(scene-[0-9]+)"}})
    return summary.RunResult(
        run="question-1122-0917",
        outcome="completed",
        config=settings.as_dict(),
        environment={
            "python": "3.11.9",
            "tensorflow": "2.21.0",
            "keras": "3.15.0",
            "cpu": "16 cores",
            "gpu": "none",
            "workers": "2",
        },
        classes=classes,
        data={**facts(classes, labels, groups), "images": 5 * images, "manifest": "9f2c" * 16, "quarantined": []},
        history=history,
        epoch=epochs,
        keys=[
            f"{classes[label]}/{group or 'image'}-{index:05d}.jpg"
            for index, (label, group) in enumerate(zip(labels, groups, strict=True))
        ],
        groups=groups,
        labels=labels,
        probabilities=probabilities.astype(np.float32),
        losses=losses,
        thumbnail=lambda index: photographs()[index % len(photographs())],
    )


class Page(HTMLParser):
    """What a browser would find in the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def written(result: summary.RunResult, folder: Path) -> tuple[dict[str, Any], str]:
    """The JSON as a strict reader sees it, and the page."""
    returned = summary.write(result, folder)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
    assert read == returned
    assert sorted(path.name for path in folder.iterdir()) == ["loss.png", "report.html", "report.json"]
    with Image.open(folder / "loss.png") as picture:
        assert picture.size == (1600, 800)
    return read, (folder / "report.html").read_text()


def test_numbers_are_those_of_scikit_learn(tmp_path: Path) -> None:
    """The numbers that a user quotes from the report must be right."""
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


def test_page_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    """It must open offline, from an archive, under the strictest rules, and tell nobody that it was opened."""
    _, text = written(demo(), tmp_path)
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "base", "form"}
    sources = [attributes[name] for _, attributes in page.tags for name in ("src", "srcset", "href") if name in attributes]
    assert {str(source).split(",")[0] for source in sources} == {"data:image/jpeg;base64", "data:", "report.json"}
    assert not re.search(r"@import|url\(|https?://", text)


def test_hostile_strings_are_shown_not_obeyed(tmp_path: Path) -> None:
    """Whoever may upload an image must not run code in the browser of whoever reads the report, nor disguise a key."""
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


def test_lone_surrogates_of_file_names_are_written(tmp_path: Path) -> None:
    """A file name that is no UTF-8 must not cost a finished run its report."""
    result = demo(epochs=2, images=12)
    document, page = written(replace(result, keys=[f"bad-\udce9-{index}" for index in range(12)], run="x\udce9"), tmp_path)
    assert document["run"] == "x\udce9"
    assert "bad-\\udce9-0" in page


def broken(which: str) -> summary.RunResult:
    """Runs that went wrong, or hardly went at all."""
    result = demo(epochs=6, images=60)
    nan = np.full_like(result.probabilities, np.nan)
    late = [replace(row, validation_loss=math.nan, train_loss=math.inf) if row.epoch > 3 else row for row in result.history]
    return {
        "one epoch": lambda: demo(epochs=1, images=60),
        "no epoch": lambda: replace(result, history=[], losses=np.empty((0, 60), np.float32), epoch=0, outcome="failed: no GPU"),
        "no image": lambda: demo(epochs=3, images=0),
        "one image": lambda: demo(epochs=3, images=1),
        "diverged": lambda: replace(
            result, history=late, losses=np.where(np.arange(6)[:, None] > 2, np.nan, result.losses), probabilities=nan
        ),
        "some not finite": lambda: replace(
            result, probabilities=np.where(np.arange(60)[:, None] < 5, np.nan, result.probabilities)
        ),
        "losses not stored": lambda: replace(result, losses=np.full_like(result.losses, np.nan)),
        "class missing": lambda: replace(result, labels=np.zeros(60, int)),
        "all right": lambda: replace(result, probabilities=np.eye(2, dtype=np.float32)[result.labels]),
        "one group": lambda: replace(result, groups=["scene"] * 60),
        "no groups": lambda: demo(epochs=3, images=60, grouped=False),
        "three classes": lambda: demo(epochs=3, images=60, classes=("authentic", "fake", "generated")),
        "many classes": lambda: demo(epochs=3, images=200, classes=tuple(f"camera-{index}" for index in range(14))),
    }[which]()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("which", "title"),
    [
        ("one epoch", "Worse than guessing"),
        ("no epoch", "No epoch was finished"),
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
    """The report of a run that went wrong is the one that is read most."""
    document, page = written(broken(which), tmp_path)
    assert title in (None, document["headline"][0])
    assert not re.search(r"\b(nan|None|inf|Undefined)\b", Page(re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)).text)
    assert document["headline"][0] in Page(page).text


def test_long_runs_on_much_data_stay_light(tmp_path: Path) -> None:
    """1,000 epochs and 20,000 validation images must give a page that opens at once on a phone."""
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
    assert len(document["hardest"]) == summary.HARDEST
    assert len(page) < 700_000
    assert (tmp_path / "report.json").stat().st_size < 1_000_000


def test_hardest_images_are_those_of_highest_loss_in_the_epoch_shown(tmp_path: Path) -> None:
    """They are where wrong labels show; those of another epoch would send a user to the wrong pictures."""
    result = replace(demo(), epoch=12)
    losses = result.losses.copy()
    losses[11, 5], losses[11, 7] = np.nan, 99.0
    document, _ = written(replace(result, losses=losses), tmp_path)
    expected = [5, *np.argsort(-np.nan_to_num(losses[11], nan=-1), kind="stable")[: summary.HARDEST - 1]]
    assert [row["index"] for row in document["hardest"]] == expected
    assert document["hardest"][0]["loss"] is None
    assert document["hardest"][1]["key"] == result.keys[7]


def test_a_failing_thumbnail_leaves_the_earlier_report(tmp_path: Path) -> None:
    """Half a report, or a page beside the numbers of another run, would mislead."""
    summary.write(demo(epochs=2, images=20), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def lost(index: int) -> np.ndarray:
        raise OSError(f"no row {index}")

    with pytest.raises(OSError, match="no row"):
        summary.write(replace(demo(epochs=3, images=20), thumbnail=lost), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_writing_again_gives_the_same_files(tmp_path: Path) -> None:
    """A number that moves between two looks at the same run cannot be trusted."""
    for name in ("a", "b"):
        summary.write(demo(epochs=4, images=50), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def course(*losses: float, training: tuple[float, float] = (0.5, 0.1)) -> list[str]:
    """The sentences for a run with these validation losses."""
    result = demo(epochs=len(losses), images=200)
    fall = np.linspace(*training, len(losses))
    history = [
        replace(row, validation_loss=v, train_loss_inference=t) for row, v, t in zip(result.history, losses, fall, strict=True)
    ]
    return summary.summarize(replace(result, history=history))["headline"]


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([0.7, 0.6, 0.5, 0.45, 0.4], "lowest, 0.400, after epoch 5 of 5, close to the end: more epochs may lower it further."),
        (
            [0.7, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8],
            "It has risen to 0.800 since, while that of training images fell from 0.443 to 0.100: the network memorizes",
        ),
        (
            [0.7, 0.4, 0.41, 0.42, 0.41, 0.42, 0.41, 0.42],
            "has stayed near it since (0.420 at the end): more epochs promise little.",
        ),
        ([0.7, 0.4, 0.5, math.nan, math.inf], "Since epoch 4 it is not a finite number: training diverged."),
        ([0.7, 0.6], "too few epochs to speak of a trend."),
        ([math.nan] * 4, "never a finite number."),
    ],
)
def test_the_course_is_told_in_words(losses: list[float], words: str) -> None:
    """The first thing read: wrong words would send a user to train on, or to stop, in vain."""
    assert words in " ".join(course(*losses))


def test_rising_with_the_training_loss_is_not_called_overfitting() -> None:
    """Both rising is another illness, with another remedy."""
    assert "overfitting" not in " ".join(course(0.7, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8, training=(0.3, 0.6)))


def test_what_disturbed_the_run_is_noted(tmp_path: Path) -> None:
    """A reader must know of resumes, lost images and contradictions before trusting the numbers."""
    result = demo(epochs=8, images=60)
    conflict = {"contents": 1, "images": 2, "keys": [{"authentic": ["Au/one.jpg"], "fake": ["Tp/one copy.jpg"]}]}
    leaked = {"contents": 1, "images": 1, "keys": [{"validation": ["Au/two.jpg"], "left_out": ["Au/two copy.jpg"]}]}
    quarantined = [{"key": f"Au/broken-{index}.jpg", "reason": "truncated"} for index in range(30)]
    data = {**result.data, "conflicting_labels": conflict, "leaked": leaked, "quarantined": quarantined}
    history = [replace(row, input_wait=0.4) for row in result.history]
    document, page = written(replace(result, data=data, history=history), tmp_path)
    assert document["restarts"] == [{"epoch": 5, "restarts": 1}]
    assert document["notes"][-4:] == [
        "2 images with exact copies under another label: see Data.",
        "30 images could not be decoded and took no part: see Data.",
        "Training was resumed from a checkpoint in epoch 5.",
        "The slowest worker waited for input 40.0 % of the training time.",
    ]
    text = Page(page).text
    assert "fake: Tp/one copy.jpg" in text
    assert "Au/two.jpg · Au/two copy.jpg" in text
    assert "Not decodable (the first 20 of 30)" in text
    assert "Au/broken-19.jpg · truncated" in text
    assert "Au/broken-20.jpg" not in text


def test_every_field_of_the_json_is_documented() -> None:
    """Programs are written against docs/report.md."""
    documented = (Path(summary.__file__).parent.parent / "docs" / "report.md").read_text(encoding="utf-8")
    document = summary.summarize(demo(epochs=3, images=40))
    nested = {name: document[name] for name in ("validation", "calibration", "worst_fraction", "restarts")}
    nested |= {name: document[name][0] for name in ("per_class", "roc", "hardest")} | {"bins": document["calibration"]["bins"][0]}
    names = (set(document) - {"validation", "calibration"}) | {
        key for one in nested.values() for key in (one[0] if isinstance(one, list) else one)
    }
    assert not [name for name in names if not re.search(rf"`([a-z_]+\.)?{name}`", documented)]
