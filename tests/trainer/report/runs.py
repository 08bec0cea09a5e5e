"""Runs to report, whole and broken, and what their written reports hold: shared by the tests of the report."""

import json
import math
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spikewise.findings import Findings
from spikewise.proof import Experiment, Proof
from spikewise.records import Cause, Diagnosis, Event, Probe, Spike, Suspect
from trainer import config
from trainer.epoch import EpochReport
from trainer.report.result import RunResult, Trained
from trainer.report.write import write

HOSTILE = 'Tp/<script>alert("1")</script>\n\u202egnp.exe & {{ 7*7 }} žluťoučký 图像'


@cache
def photographs() -> list[np.ndarray]:
    """Crops of the photographs in scikit-image, uint8 [64, 64, 3]."""
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
    """The facts of a split of clean data, with four training images for each validation image."""
    nothing: dict[str, Any] = {"contents": 0, "images": 0, "keys": []}
    counts = {name: int((labels == index).sum()) for index, name in enumerate(classes)}
    return {
        "counts": {"training": {name: 4 * count for name, count in counts.items()}, "validation": counts},
        "groups": {"training": 4 * len(set(groups)), "validation": len(set(groups))},
        "imbalance_ratio": round(max(counts.values()) / max(1, min(counts.values())), 3),
        "duplicates": nothing,
        "leaked": nothing,
        "conflicting_labels": nothing,
        "near_duplicates": {"pairs": 0, "images": 0, "other_label": 0, "keys": []},
        "near_leaked": {"pairs": 0, "images": 0, "left_out": 0, "other_label": 0, "keys": []},
        "near_complete": True,
        "shared_groups": {"groups": 0, "names": [], "left_out": 0},
        "contradicted": {"images": 0, "keys": []},
        "warnings": [],
    }


def demo(
    epochs: int = 40, images: int = 300, classes: tuple[str, ...] = ("authentic", "fake"), grouped: bool = True, seed: int = 7
) -> RunResult:
    """An ordinary run: the training loss falls, the validation loss turns up and jumps twice; resumed once."""
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
    return RunResult(
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
        network={"name": "question", "parameters": 527_442, "trainable": 527_122, "layers": 11, "ending": "softmax"},
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


def diagnosed(result: RunResult, epochs: tuple[int, ...] = (5, 13, 29), **changes: Any) -> RunResult:
    """The run with spikes in `epochs`, caused in turn by lagging statistics, four images, a learning rate and bad batches."""
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
                settings=("model.statistics=precise", "model.momentum=0.9"),
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
    findings = Findings(
        tuple(diagnoses), **{name: changes.pop(name) for name in ("overfitting", "parts", "standing") if name in changes}
    )
    return replace(result, **{"losses": losses, "history": history, "findings": findings, "batch": batch, **changes})


def replayed(result: RunResult, **changes: Any) -> RunResult:
    """The run, whose first spike was trained again with two settings: one helps in part, one is proven."""
    spike = result.findings.diagnoses[0].spike
    epochs, control = (spike.epoch, spike.epoch + 1), (spike.loss, spike.baseline)
    half, low = spike.loss - 0.5 * spike.rise, spike.baseline
    tried = (
        Proof("model.momentum=0.9", "helps in part", (half, low), spike.loss - half, 0.1, 0.3, 0.5, half - low),
        Proof("model.statistics=precise", "proven", (low, low), spike.rise, 0.3, 0.5, 1.0, 0.0),
    )
    one = Experiment(spike.epoch, spike.loss, spike.epoch - 1, epochs, control, proofs=tried, seconds=20.0)
    return replace(result, experiments=[replace(one, **changes)])


def batch(epoch: int, number: int) -> list[Trained]:
    """32 training images of a batch."""
    pictures = photographs()
    return [Trained(f"fake/{epoch}-{number}-{i:02d}.jpg", 1, pictures[(number + i) % len(pictures)]) for i in range(32)]


def broken(which: str) -> RunResult:
    """A run that went wrong, or hardly began."""
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


class Page(HTMLParser):
    """The tags and the text that a browser finds in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def written(result: RunResult, folder: Path) -> tuple[dict[str, Any], str]:
    """Write the report; return report.json as a strict parser reads it, and the page."""
    returned = write(result, folder)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
    assert read == returned
    assert sorted(path.name for path in folder.iterdir()) == ["loss.png", "report.html", "report.json"]
    with Image.open(folder / "loss.png") as picture:
        assert picture.size == (1600, 800)
    return read, (folder / "report.html").read_text()
