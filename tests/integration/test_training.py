"""The whole job on a real S3 server with real Ray workers: the same curve on any number of workers, and after any accident."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from benchmarks.support.job import Job, read_report
from jobs import train
from tests.support import jobs
from trainer import config
from trainer.storage import open_store
from trainer.storage.checkpoint import Checkpoints

pytestmark = pytest.mark.integration

SAME = 1e-6
"""Relative tolerance: only the order of additions may differ."""
LONG = ("training.epochs=12", "model.precision=float64")
"""Settings of runs whose curves are compared. Twelve epochs, so that accidents happen before the last one even where an epoch takes
0.2 s. float64, because training amplifies the rounding of float32; a real difference (another batch, mask or statistic) shows in
both."""
EPOCH_LINE = re.compile(r"^epoch +[0-9]+/[0-9]+ .* ([0-9.]+) s  left", re.MULTILINE)


@pytest.fixture(scope="module")
def place(s3_server, tmp_path_factory):  # noqa: ARG001
    """A bucket with images, a folder, a configuration, and a finished run `one` of one worker with the settings LONG."""
    storage, folder = "s3://spikewise/training", tmp_path_factory.mktemp("training")
    jobs.put_images(storage)
    configuration = jobs.write_config(folder, storage)
    first = Job(configuration, "one", *LONG)
    first.succeed()
    assert "packed in" in first.output
    return storage, folder, configuration, first


def call(configuration, name, *overrides):
    """Calls the job in this process: fast, and enough where no worker is started. Returns its exit code."""
    settings = [argument for override in (f"run.name={name}", *overrides) for argument in ("--set", override)]
    return train.main(["--config", str(configuration), *settings])


def test_a_run_leaves_what_it_promises(place):
    """A user would find no report, no model or no checkpoints after a successful job."""
    storage, folder, _, first = place
    assert "completed" in first.output
    document = read_report(folder / "runs", "one")
    assert document["outcome"] == "completed"
    assert len(document["history"]) == 12
    stored = {entry.key for entry in open_store(f"{storage}/storage/runs/one", config.S3(path_style=True)).list()}
    for name in ("report.html", "report.json", "loss.png", "model.keras", "model.json"):
        assert name in stored
        assert (folder / "runs" / "one" / name).stat().st_size > 0
    steps = jobs.history(storage, "one")[-1].step
    assert any(key.startswith("checkpoints/") and key.endswith(f"/{steps:09d}/commit.json") for key in stored)


def test_the_exported_model_gives_the_reports_predictions(place):
    """model.keras would not be the model that the report describes."""
    storage, folder, *_ = place
    store = open_store(f"{storage}/storage", config.S3(path_style=True))
    state = Checkpoints(store, "one", 1).latest().state
    model = keras.models.load_model(folder / "runs" / "one" / "model.keras")
    names = sorted(name for name in state if name.startswith("model/") and "seed_generator" not in name)
    trained = [state[name].astype(np.float32) for name in names]  # as every export is stored
    for ours, theirs in zip(sorted(trained, key=_sum), sorted(model.get_weights(), key=_sum), strict=True):
        np.testing.assert_array_equal(theirs, ours)


def _sum(values):
    return float(np.sum(values, dtype=np.float64))


def test_the_readme_shows_how_to_predict(place):
    """The first lines that a user copies to use the model would fail, or predict something else than the report says."""
    storage, folder, *_ = place
    (snippet,) = [
        block for block in re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL) if "load_model" in block
    ]
    document = read_report(folder / "runs", "one")
    hardest = document["hardest"][0]
    photo = folder / "photo.jpg"
    photo.write_bytes(open_store(f"{storage}/images", config.S3(path_style=True)).get(hardest["key"]))
    script = snippet.replace("runs/first/", f"{folder}/runs/one/").replace("photo.jpg", str(photo))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    printed = re.findall(r"'(\w+)': (?:np\.float[0-9]+\()?([0-9.e-]+)", run.stdout)
    probabilities = {name: float(value) for name, value in printed}
    assert set(probabilities) == {"authentic", "fake"}
    # JPEG is decoded at full size here and scaled while decoding in the job
    assert probabilities[hardest["label"]] == pytest.approx(hardest["label_probability"], abs=0.05)


@pytest.fixture(scope="module")
def undisturbed(place):
    """float64 [E, 3]: the curves of every run with the settings LONG."""
    return jobs.curves(place[0], "one")


def test_the_curve_does_not_depend_on_the_number_of_workers(place, undisturbed):
    """Results from a laptop and from a cluster could not be compared."""
    storage, _, configuration, _ = place
    job = Job(configuration, "workers4", "launch.workers=4", *LONG)
    job.succeed()
    assert "already packed: no image was read" in job.output  # else every run downloads and decodes all images
    np.testing.assert_allclose(jobs.curves(storage, "workers4"), undisturbed, rtol=SAME)


def sleep_into_the_next_epochs(job: Job, epochs: float) -> None:
    """Waits until about `epochs` epochs after the second one that the job trains; the first takes longer."""
    while len(seconds := EPOCH_LINE.findall(job.output)) < 2:
        assert job.process.poll() is None, job.output
        time.sleep(0.02)
    time.sleep(epochs * float(seconds[1]))


def test_no_accident_changes_the_curve(place, undisturbed, capfd):
    """A drained node would lose an epoch; after a power cut the run would begin anew; a dead worker would end the job; a second job
    of the same name would overwrite its checkpoints; or the run would continue differently. All of it happens to one run."""
    storage, _, configuration, _ = place

    job = Job(configuration, "accidents", *LONG)
    job.await_line("^network: ")
    assert call(configuration, "accidents", *LONG) == 2
    assert re.fullmatch(r'error: Run "accidents" is in use by process [^\n]+\n', capfd.readouterr().err)
    job.await_line("^epoch +1/12")
    job.process.send_signal(signal.SIGTERM)  # a drained node
    assert job.wait() == 143, job.output
    saved = int(job.await_line("checkpoint of step ([0-9]+) saved")[1])

    job = Job(configuration, "accidents", *LONG)
    job.await_line(f"resumed from the checkpoint of step {saved},")
    sleep_into_the_next_epochs(job, 1.4)
    job.kill()  # a power cut

    job = Job(configuration, "accidents", "launch.workers=2", *LONG)
    job.await_line("resumed from the checkpoint of step")
    sleep_into_the_next_epochs(job, 0.6)
    job.workers()[-1].kill()  # the kernel kills a worker, or its node breaks
    job.succeed()
    assert "warning: a worker died; all workers were restarted" in job.output
    assert jobs.history(storage, "accidents")[-1].restarts == 3
    np.testing.assert_allclose(jobs.curves(storage, "accidents"), undisturbed, rtol=SAME)


def test_a_run_that_stopped_early_stays_as_it_is(place, capfd):
    """Each time it is submitted again, for example by Kubernetes, it would train one more epoch; or the model kept would not be the
    best one."""
    storage, folder, configuration, _ = place
    settings = ("training.epochs=100", "training.early_stopping=1", "training.keep=best")
    job = Job(configuration, "stopped-early", *settings)
    job.succeed()
    assert "stopped early" in job.output
    losses = jobs.curves(storage, "stopped-early")[:, 2]
    assert len(losses) == np.argmin(losses) + 2
    assert read_report(folder / "runs", "stopped-early")["validation"]["loss"]["value"] == pytest.approx(losses.min())
    assert call(configuration, "stopped-early", *settings) == 0
    assert "run stopped-early: stopped early" in capfd.readouterr().out
    np.testing.assert_array_equal(jobs.curves(storage, "stopped-early")[:, 2], losses)


def test_records_that_were_lost_are_stored_again(place):
    """A run that died between its last checkpoint and the record of that epoch would lack the epoch and its spikes in the report
    forever; after a return to an earlier checkpoint, abandoned epochs would be shown as part of the curve."""
    storage, folder, configuration, _ = place
    store = open_store(f"{storage}/storage/runs/one", config.S3(path_style=True))
    curves, report = jobs.curves(storage, "one"), read_report(folder / "runs", "one")
    store.put("epochs/0019.json", store.get("epochs/0004.json").replace(b'"epoch": 4', b'"epoch": 19'))
    store.delete(["epochs/0002.json", "spikes.json"])
    Job(configuration, "one", *LONG).succeed()
    np.testing.assert_array_equal(jobs.curves(storage, "one"), curves)
    assert read_report(folder / "runs", "one")["spikes"] == report["spikes"]


def test_a_resumed_run_keeps_what_it_learned_with(place, capfd):
    """A run would silently continue with other settings than it began with."""
    assert call(place[2], "one", *LONG, "training.batch_size=16") == 2
    assert "was started with training.batch_size = 32, now it is 16" in capfd.readouterr().err


def test_divergence_ends_the_run_with_a_line(place):
    """A model full of NaN would be trained for hours, restarted again and again, or reported as a success."""
    storage, folder, configuration, _ = place
    job = Job(configuration, "diverged", "optimizer.learning_rate=1e30")
    assert job.wait() == 1
    assert "The loss or the weights are NaN or infinite in epoch 1 from step" in job.output
    assert "Fix: lower optimizer.learning_rate (now 1e+30)" in job.output
    assert "Traceback" not in job.output
    assert read_report(folder / "runs", "diverged")["outcome"].startswith("failed: The loss or the weights are NaN or infinite")
    assert not Checkpoints(open_store(f"{storage}/storage", config.S3(path_style=True)), "diverged", 1).latest()
