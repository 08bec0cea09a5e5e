"""The examples of docs/networks.md, and the user's own network through the whole job."""

import os
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from benchmarks.support.job import Job, read_report
from jobs import train
from tests.integration.test_training import sleep_into_the_next_epochs
from tests.support import jobs

pytestmark = pytest.mark.integration

EXAMPLES = Path("docs/examples")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images, and the settings with which an example finds them."""
    folder = tmp_path_factory.mktemp("examples")
    jobs.put_images(str(folder))
    for path in (*EXAMPLES.iterdir(), Path("tests/support/networks.py")):
        shutil.copy(path, folder)
    places = {
        "data.source": folder / "images",
        "run.storage": os.path.relpath(folder / "storage"),  # workers must not look for it elsewhere
        "run.output": folder / "runs",
        "pipeline.cache_dir": folder / "cache",
        "data.image_size": "[32, 32]",
        "data.validation_fraction": "0.3",
        "launch.object_store_bytes": "100_000_000",
        "metrics.port": "0",
        "metrics.host": "127.0.0.1",
        "metrics.linger": "0.0",
    }
    return folder, [f"{key}={value}" for key, value in places.items()]


OTHER = ("optimizer.ema=0.9", "augmentation.rotation=10", "model.precision=float64")
"""Settings that no other module trains with, and float64 to compare curves in."""


@pytest.fixture(scope="module")
def residual(place):
    """The example with a network of one's own, trained with OTHER settings."""
    folder, places = place
    job = Job(folder / "residual.toml", "residual", *places, *OTHER)
    job.succeed()
    return job


def test_a_network_of_ones_own(place, residual):
    """The first command of docs/networks.md would fail, or leave a model that is not the user's own."""
    folder, _ = place
    assert re.search(r"network: residual:build, [0-9,]+ parameters", residual.output)
    assert re.search(r"epoch 1/8  loss [0-9.]+ \+ [0-9.]+  accuracy", residual.output)  # the L2 terms, said apart
    document = read_report(folder / "runs", "residual")
    assert document["network"]["name"] == "residual:build"
    assert document["network"]["batch_normalization"] == 7
    exported = keras.models.load_model(folder / "runs/residual/model.keras")
    assert exported.name == "residual"
    assert {type(layer).__module__.split(".")[0] for layer in exported.layers} == {"keras"}


def test_a_run_can_start_from_another_runs_model(place, residual):  # noqa: ARG001
    """Fine-tuning would start from random weights, move layers that the user froze, or not find a file at a relative path."""
    folder, places = place
    start = os.path.relpath(folder / "runs/residual/model.keras")
    tuned = ["training.epochs=1", "optimizer.warmup_epochs=0.0", "model.trainable=^head", f"model.weights={start}"]
    tuned.append("model.precision=float64")
    job = Job(folder / "residual.toml", "tuned", *places, *tuned)
    job.succeed()
    assert re.search(r"network: .* parameters \([0-9,]+ of them not trained\)", job.output)
    before, after = (keras.models.load_model(folder / f"runs/{run}/model.keras") for run in ("residual", "tuned"))
    for layer in before.layers:
        for old, new in zip(layer.get_weights(), after.get_layer(layer.name).get_weights(), strict=True):
            assert np.array_equal(old, new) == (layer.name != "head")


def test_a_frozen_backbone(place):
    """The second example would fail, or train all of the network."""
    folder, places = place
    weights = folder / "mobilenet.weights.h5"  # instead of a download
    backbone = keras.applications.MobileNetV2(include_top=False, weights=None, alpha=0.35, input_shape=(32, 32, 3), pooling="avg")
    backbone.save_weights(weights)
    overrides = [*places, "training.epochs=1", f"model.arguments.weights={weights}"]
    sets = [argument for override in ("run.name=backbone", *overrides) for argument in ("--set", override)]
    assert train.main(["--config", str(folder / "backbone.toml"), *sets, "--dry-run"]) == 0
    job = Job(folder / "backbone.toml", "backbone", *overrides)
    job.succeed()
    exported = keras.models.load_model(folder / "runs/backbone/model.keras").get_layer("backbone")
    for old, new in zip(backbone.get_weights(), exported.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


NETWORKS = {
    "depthwise": ["model.network=networks:depthwise", "optimizer.ema=0.9", "augmentation.rotation=10"],
    "residual": [
        "model.network=networks:residual",
        "model.statistics=precise",
        "training.keep=best",
        "optimizer.name=SGD",
        "optimizer.arguments.momentum=0.9",
        "optimizer.schedule=cosine",
    ],
}


@pytest.mark.parametrize("network", list(NETWORKS))
def test_killed_and_resumed_equals_undisturbed(place, network):
    """A run with a network of the user's own, or with other settings than the defaults, would continue differently."""
    folder, places = place
    overrides = [*places, *NETWORKS[network], "training.epochs=6", "model.precision=float64"]
    shutil.copy("jobs/configs/question.toml", folder / "job.toml")
    Job(folder / "job.toml", f"{network}-whole", *overrides).succeed()
    job = Job(folder / "job.toml", f"{network}-killed", *overrides)
    sleep_into_the_next_epochs(job, 1.4)
    job.kill()
    again = Job(folder / "job.toml", f"{network}-killed", *overrides, "launch.workers=2")
    again.succeed()
    assert "resumed from the checkpoint of step" in again.output
    whole, resumed = (jobs.curves(str(folder), f"{network}-{how}") for how in ("whole", "killed"))
    np.testing.assert_allclose(resumed, whole, rtol=1e-6)
