"""A validation set, a test set and a labels file of one's own, end to end with real Ray workers and folders."""

import io
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from benchmarks.support.job import Job, read_report
from tests.support import jobs
from trainer import config
from trainer.data.decode import decode
from trainer.data.pack import load_pack
from trainer.data.shards import open_rows
from trainer.data.split import split_rows
from trainer.storage import open_store, results

pytestmark = pytest.mark.integration

IMAGES = {"images": 240, "mine": 60, "unseen": 50}
"""Folder -> number of images, half of each class."""


def re_encoded(content: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(content)).save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folders of images without classes in their names, and a labels file for them. Of the first training images, one is also a
    validation image, as a PNG of the same pixels, one is a near copy of a validation image with the other label, and one of a test
    image."""
    root = tmp_path_factory.mktemp("own-sets")
    rows = ["key,label,photograph"]
    for seed, (below, count) in enumerate(IMAGES.items()):
        jobs.put_images(str(root), images=count, seed=seed, below=below)
        prefix = {"images": "", "mine": "validation:", "unseen": "test:"}[below]
        for path in sorted((root / below).rglob("*.jpg")):
            name = path.parent.name
            path.rename(root / below / path.name)
            rows.append(f"{prefix}{path.name},{name},{path.stem}")
        for name in ("authentic", "fake"):
            (root / below / name).rmdir()
    images, mine = root / "images", root / "mine"
    Image.open(mine / "00001.jpg").save(images / "00000.png")
    rows.append("00000.png,fake,copy")
    (images / "00002.jpg").write_bytes(re_encoded((mine / "00003.jpg").read_bytes()))  # authentic, and fake
    (images / "00004.jpg").write_bytes(re_encoded((root / "unseen" / "00004.jpg").read_bytes()))
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


def overrides(folder: Path) -> list[str]:
    return [
        "data.classes={}",
        f"data.labels={folder}/labels.csv",
        f"data.validation={folder}/mine",
        f"data.test={folder}/unseen",
        "training.keep=best",
        "launch.workers=2",
    ]


@pytest.fixture(scope="module")
def first(folder) -> Job:
    job = Job(jobs.write_config(folder, str(folder)), "first", *overrides(folder))
    job.succeed()
    return job


def test_the_report_has_the_sets_of_ones_own(folder, first):
    """Images of the validation or the test set would be trained on, or the results be of other images."""
    document = read_report(folder / "runs", "first")
    data = document["data"]
    assert data["counts"]["validation"] == {"authentic": 30, "fake": 30}
    assert data["counts"]["test"] == {"authentic": 25, "fake": 25}
    assert data["counts"]["training"] == {"authentic": 120, "fake": 120}  # without 00000.png
    assert data["leaked"]["keys"] == [{"validation": ["validation:00001.jpg"], "left_out": ["00000.png"]}]
    assert data["near_leaked"]["keys"] == [
        {"validation": ["validation:00003.jpg"], "training": ["00002.jpg"]},
        {"test": ["test:00004.jpg"], "training": ["00004.jpg"]},
    ]
    assert data["contradicted"] == {"images": 1, "keys": ["validation:00003.jpg"]}
    assert document["validation"]["images"] == 60
    assert all(image["key"].startswith("validation:") for image in document["hardest"])
    assert "2 validation or test images have near copies in training or validation" in first.output
    assert "240 training, 60 validation and 50 test images" in first.output


def test_the_test_result_is_that_of_the_exported_model(folder, first):
    """The user would report a test accuracy that model.keras does not have."""
    document = read_report(folder / "runs", "first")
    test = document["test"]
    shape = (32, 32, 3)
    paths = sorted((folder / "unseen").glob("*.jpg"))
    images = np.stack([decode(path.read_bytes(), shape, 10**8) for path in paths])
    labels = np.array([int(path.stem) % 2 for path in paths])
    model = keras.models.load_model(folder / "runs" / "first" / "model.keras")
    predicted = model.predict(images.astype(np.float32), verbose=0)
    stored = results.get_test(open_store(f"{folder}/storage", config.S3()), "first")
    assert int(stored["epoch"]) == document["epoch"] == document["best_epoch"]
    np.testing.assert_allclose(stored["probabilities"], predicted, atol=1e-5)
    assert test["accuracy"]["value"] == pytest.approx(np.mean(predicted.argmax(1) == labels))
    assert test["loss"]["value"] == pytest.approx(np.mean(-np.log(predicted[np.arange(50), labels])), rel=1e-4)
    assert test["accuracy"]["low"] < test["accuracy"]["value"] < test["accuracy"]["high"]
    (auc,) = test["auc"]
    assert (auc["class"], auc["low"] <= auc["value"] <= auc["high"]) == ("fake", True)
    assert first.output.count("test: loss") == 1
    page = (folder / "runs" / "first" / "report.html").read_text()
    assert "<h2>Test set</h2>" in page


def test_near_copies_are_left_out_on_demand(folder, first):  # noqa: ARG001
    """data.group_near_duplicates would change nothing when the validation set is given."""
    settings = config.load(folder / "job.toml", [*overrides(folder), "data.group_near_duplicates=true"])
    store = open_store(f"{folder}/storage", config.S3())
    packed = load_pack(store, results.get_run(store, "first")["manifest"], (32, 32, 3))
    facts = split_rows(open_rows(packed, store, folder / "cache"), packed.classes, settings.data).facts
    assert facts["counts"]["training"] == {"authentic": 118, "fake": 120}
    assert (facts["near_leaked"]["pairs"], facts["near_leaked"]["left_out"]) == (2, 2)
    assert facts["contradicted"]["images"] == 0
