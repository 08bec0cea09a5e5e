"""The dry run."""

import json
import re
from dataclasses import replace

import pytest

from jobs import train
from jobs.command_line import find_module
from tests.support import jobs
from trainer import config
from trainer.config import Data
from trainer.data.dataset import Image, Manifest
from trainer.data.pack import images_of
from trainer.data.pack_file import folder_name
from trainer.data.sources import open_sources
from trainer.run import plan
from trainer.storage import open_store, results
from trainer.storage.folder import FolderStore


@pytest.fixture(autouse=True)
def _one_inspection(monkeypatch):
    """Each network is built in a process of its own once, not in each test: TensorFlow takes seconds to start."""
    monkeypatch.setattr(plan, "inspect", jobs.inspected_once(plan.inspect))


def test_a_dry_run_says_what_would_be_done_and_touches_nothing(tmp_path, capsys):
    """A user who only wants to see the plan would already have written to the bucket, or would not learn what the job would do."""
    jobs.put_images(str(tmp_path), images=60)
    configuration = jobs.write_config(tmp_path, str(tmp_path), workers=2)
    before = sorted(tmp_path.rglob("*"))
    assert train.main(["--config", str(configuration), "--set", "run.name=first", "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    shown = capsys.readouterr().out
    for part in (
        "first in",
        "60 images",
        "authentic 30, fake 30",
        "30% for validation",
        "about 42 training images",
        "4 epochs of 1 steps",
        "2, 16 images",
        "question: 134,226 parameters, 133,906 of them trained, in 11 layers; 5 BatchNormalization, 3 Dropout",
        "Adam at learning rate",
    ):
        assert part in shown


def test_a_dry_run_refuses_what_the_run_would(tmp_path, capsys):
    """A dry run would promise epochs of 0 steps, and the run would end with an error."""
    jobs.put_images(str(tmp_path), images=60)
    configuration = jobs.write_config(tmp_path, str(tmp_path))
    assert train.main(["--config", str(configuration), "--set", "training.batch_size=64", "--dry-run"]) == 2
    assert "training.batch_size = 64 is larger than the training set of about 42 images" in capsys.readouterr().err


def test_a_dry_run_foretells_groups_and_small_classes():
    """A user would learn only after all images are packed that a class is too small, or that a pattern misses some keys."""
    images = tuple(Image(str(number), 1, "", number % 2, f"group {number}" if number else "") for number in range(60))
    found = Manifest("folder", ("authentic", "fake"), images, "0" * 64)
    line, training = plan._split(found, Data(source="x", class_pattern="(?P<class>.)", validation_fraction=0.3))
    assert training == 42
    assert "split by group (59 groups; in none: 1): about 42 training images. Class 'authentic' gets about 9 validation" in line
    assert "below data.min_validation = 20" in line
    line, _ = plan._split(found, Data(source="x", class_pattern="(?P<class>.)", validation_fraction=0.3, min_validation=9))
    assert "min_validation" not in line


def test_a_dry_run_counts_archived_images(tmp_path, capsys, monkeypatch):
    """A user would learn only after packing that a lifecycle rule has moved a part of the images to Glacier."""

    def listed(self, prefix="", _list=FolderStore.list):
        return iter([replace(entry, archived=entry.key.endswith("1.jpg")) for entry in _list(self, prefix)])

    jobs.put_images(str(tmp_path), images=60)
    configuration = jobs.write_config(tmp_path, str(tmp_path))
    monkeypatch.setattr(FolderStore, "list", listed)
    assert train.main(["--config", str(configuration), "--dry-run"]) == 0
    assert "6 archived (skipped unless they are restored first)" in " ".join(capsys.readouterr().out.split())


def test_the_reports_of_earlier_runs_are_no_images(tmp_path, capsys):
    """With the storage in a bucket and the reports beside the images, a run would train on the loss curves of earlier runs."""
    jobs.put_images(str(tmp_path), images=60)
    (tmp_path / "images/fake/runs/first").mkdir(parents=True)
    (tmp_path / "images/fake/runs/first/loss.png").write_bytes(b"PNG")
    configuration = jobs.write_config(tmp_path, str(tmp_path))
    assert train.main(["--config", str(configuration), "--set", f"run.output={tmp_path}/images/fake/runs", "--dry-run"]) == 0
    assert "authentic 30, fake 30" in capsys.readouterr().out


def test_a_dry_run_of_an_existing_run(tmp_path, capsys):
    """A dry run would promise to resume what the run refuses, or describe other images than those that the run began with."""
    jobs.put_images(str(tmp_path), images=60)
    path = jobs.write_config(tmp_path, str(tmp_path))
    settings = config.load(path)
    storage = open_store(settings.run.storage, settings.s3)
    digest = images_of("first", open_sources(settings.data, settings.s3), storage, settings.data, None).digest
    results.put_run(storage, "first", {"config": settings.as_dict(), "manifest": digest, "environment": {}})
    dry = ["--config", str(path), "--set", "run.name=first", "--dry-run"]
    assert train.main([*dry, "--set", "training.batch_size=8"]) == 2
    assert "first was started with training.batch_size = 32, now it is 8" in capsys.readouterr().err
    jobs.put_images(str(tmp_path), images=64)
    assert train.main(dry) == 2
    assert "began with images other than" in capsys.readouterr().err
    shape = (*settings.data.image_size, 3)
    folder = f"shards/{folder_name(digest, shape)}"
    shard = {"key": f"{folder}/part-00000-{'0' * 16}.arrow", "rows": 59, "size": 59 * 3 * shape[0] * shape[1], "sha256": "0" * 64}
    made = {"digest": digest, "classes": ["authentic", "fake"], "image_shape": shape, "shards": [shard], "images": 59}
    storage.put(f"{folder}/pack.json", json.dumps({**made, "quarantined": []}).encode())
    assert train.main(dry) == 0
    assert "59 images, packed when the run began" in capsys.readouterr().out


MODULE = """
import keras, my_blocks

def build(image_shape, classes):
    return keras.Sequential([keras.Input(image_shape), keras.layers.Flatten(), keras.layers.Dense(my_blocks.UNITS)])
"""


@pytest.mark.integration
def test_a_dry_run_with_a_network_of_the_users_own(tmp_path, capsys):
    """A user would train another file than they think; or a run would go on with another network than the one it began with."""
    jobs.put_images(str(tmp_path), images=60)
    path, module = jobs.write_config(tmp_path, str(tmp_path)), tmp_path / "my_module.py"
    module.write_text(MODULE)
    (tmp_path / "my_blocks.py").write_text("UNITS = 2\n")
    dry = ["--config", str(path), "--set", "run.name=first", "--set", "model.network=my_module:build", "--dry-run"]
    settings = config.load(path, ["model.network=my_module:build"])
    found = find_module(settings, str(path))
    assert train.main(dry) == 0
    shown = capsys.readouterr().out
    assert f"my_module:build, from my_module.py, my_blocks.py, digest {found.digest[:16]}: 6,146 parameters" in shown
    storage = open_store(settings.run.storage, settings.s3)
    digest = images_of("first", open_sources(settings.data, settings.s3), storage, settings.data, None).digest
    facts = {"config": settings.as_dict(), "manifest": digest, "environment": {}, "module": found.facts}
    results.put_run(storage, "first", facts)
    assert train.main(dry) == 0
    assert "resumes" in capsys.readouterr().out
    (tmp_path / "my_blocks.py").write_text("UNITS = 3\n")
    assert train.main(dry) == 2
    assert re.fullmatch(
        r"error: Run first was started with another version of module my_module .* Fix: restore its files .*\n",
        capsys.readouterr().err,
    )
    module.unlink()
    assert train.main(dry) == 2
    assert re.fullmatch(rf"error: model.network = .*: no my_module.py in {tmp_path} or .*\n", capsys.readouterr().err)


def test_a_dry_run_shows_all_sources_and_sides(tmp_path, capsys):
    """A user would learn only from the report that the test set was empty, or that the labels file gave other sides."""
    root = str(tmp_path)
    jobs.put_images(root, images=60)
    jobs.put_images(root, images=20, seed=1, below="more")
    path = jobs.write_config(tmp_path, root)
    assert train.main(["--config", str(path), "--set", f"data.test={root}/more", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"test       {root}/more: 20 images" in shown
    assert "30% for validation, split by content: about 42 training images; given: 20 test images" in shown
    labels = tmp_path / "labels.csv"
    names = ["fake" if i % 2 else "authentic" for i in range(60)]
    rows = [f"{name}/{i:05d}.jpg,{name},{'val' if i < 20 else 'train'}\n" for i, name in enumerate(names)]
    labels.write_text("key,label,split\n" + "".join(rows))
    given = ["--set", "data.classes={}", "--set", f"data.labels={labels}", "--set", "training.batch_size=8"]
    assert train.main(["--config", str(path), *given, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"labels     {labels}" in shown
    assert "split      40 training, 20 validation images, as given" in shown
    assert "4 epochs of 5 steps" in shown
