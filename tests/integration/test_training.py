"""The whole job on a real S3 server with real Ray workers: the same curve on any number of workers, and after any accident."""

import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import keras
import numpy as np
import pytest

from benchmarks.support.job import Job, read_report
from tests.support import jobs
from tests.support.prometheus import prometheus, query, until
from trainer import config
from trainer.storage import open_store
from trainer.storage.checkpoint import Checkpoints

pytestmark = pytest.mark.integration

SAME = 1e-6
"""Relative tolerance: only the order of additions may differ."""
LONG = ("training.epochs=8", "model.precision=float64")
"""Settings of runs whose curves are compared. Eight epochs, so that an accident happens before the last one even where an epoch
takes 0.2 s. float64, because training amplifies the rounding of float32; a real difference (another batch, mask or statistic)
shows in both."""
EPOCH_LINE = r"^epoch 2/[0-9]+ .* ([0-9.]+) s  left"


@pytest.fixture(scope="module")
def place(s3_server, tmp_path_factory):  # noqa: ARG001
    """A bucket with images, a folder, a configuration, and a finished run `one` of one worker."""
    storage, folder = "s3://spikewise/training", tmp_path_factory.mktemp("training")
    jobs.put_images(storage)
    configuration = jobs.write_config(folder, storage)
    first = Job(configuration, "one")
    first.succeed()
    return storage, folder, configuration, first


def test_a_run_leaves_what_it_promises(place):
    """A user would find no report, no model or no checkpoints after a successful job."""
    storage, folder, _, first = place
    assert "completed" in first.output
    document = read_report(folder / "runs", "one")
    assert document["outcome"] == "completed"
    assert len(document["history"]) == 4
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
    trained = [values for name, values in sorted(state.items()) if name.startswith("model/") and "seed_generator" not in name]
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
    printed = re.findall(r"'(\w+)': (?:np\.float32\()?([0-9.e-]+)", run.stdout)
    probabilities = {name: float(value) for name, value in printed}
    assert set(probabilities) == {"authentic", "fake"}
    # JPEG is decoded at full size here and scaled while decoding in the job
    assert probabilities[hardest["label"]] == pytest.approx(hardest["label_probability"], abs=0.05)


@pytest.fixture(scope="module")
def undisturbed(place):
    """float64 [E, 3]: the curves of every run with the settings LONG."""
    storage, _, configuration, first = place
    job = Job(configuration, "undisturbed", *LONG)
    job.succeed()
    assert "packed in" in first.output
    assert "already packed: no image was read" in job.output  # else every run downloads and decodes all images
    return jobs.curves(storage, "undisturbed")


@pytest.mark.parametrize("workers", [2, 4])
def test_the_curve_does_not_depend_on_the_number_of_workers(place, undisturbed, workers):
    """Results from a laptop and from a cluster could not be compared."""
    storage, _, configuration, _ = place
    name = f"workers{workers}"
    Job(configuration, name, f"launch.workers={workers}", *LONG).succeed()
    np.testing.assert_allclose(jobs.curves(storage, name), undisturbed, rtol=SAME)


def sleep_into_the_next_epochs(job: Job, epochs: float) -> None:
    """Waits until about `epochs` epochs after the second one."""
    time.sleep(epochs * float(job.await_line(EPOCH_LINE)[1]))


def test_a_dead_worker_is_replaced_and_the_curve_is_the_same(place, undisturbed):
    """A worker that the kernel kills, or that a broken node takes away, would end the job or change its result."""
    storage, _, configuration, _ = place
    job = Job(configuration, "worker-died", "launch.workers=2", *LONG)
    sleep_into_the_next_epochs(job, 0.6)
    job.workers()[-1].kill()
    job.succeed()
    assert "warning: a worker died; all workers were restarted" in job.output
    assert "resumed from the checkpoint of step" in job.output
    assert jobs.history(storage, "worker-died")[-1].restarts == 1
    np.testing.assert_allclose(jobs.curves(storage, "worker-died"), undisturbed, rtol=SAME)


def test_a_dead_driver_is_resumed_by_hand_and_the_curve_is_the_same(place, undisturbed):
    """After a power cut the run would begin anew, or continue differently."""
    storage, _, configuration, _ = place
    job = Job(configuration, "driver-died", *LONG)
    sleep_into_the_next_epochs(job, 1.4)
    job.kill()
    again = Job(configuration, "driver-died", *LONG)
    again.succeed()
    assert "resumed from the checkpoint of step" in again.output
    np.testing.assert_allclose(jobs.curves(storage, "driver-died"), undisturbed, rtol=SAME)


def test_sigterm_saves_inside_the_epoch_and_the_curve_is_the_same(place, undisturbed):
    """A drained node would lose an epoch, or the steps before and after the interruption would not add up to one epoch."""
    storage, _, configuration, _ = place
    job = Job(configuration, "drained", *LONG)
    job.await_line("^epoch 1/8")
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 143, job.output
    saved = int(job.await_line("checkpoint of step ([0-9]+) saved")[1])
    again = Job(configuration, "drained", *LONG)
    again.succeed()
    assert f"resumed from the checkpoint of step {saved}," in again.output
    np.testing.assert_allclose(jobs.curves(storage, "drained"), undisturbed, rtol=SAME)


def test_a_second_live_run_of_the_same_name_is_refused(place):
    """Two jobs would overwrite each other's checkpoints."""
    _, _, configuration, _ = place
    job = Job(configuration, "twice", "training.epochs=1000")
    try:
        job.await_line("^run twice: metrics")
        second = Job(configuration, "twice")
        assert second.wait() == 2
        assert 'error: Run "twice" is in use by process' in second.output
        assert "Traceback" not in second.output
    finally:
        job.kill()


def test_a_run_that_stopped_early_stays_as_it_is(place):
    """Each time it is submitted again, for example by Kubernetes, it would train one more epoch; or the model kept would not be the
    best one."""
    storage, folder, configuration, _ = place
    for _ in range(2):
        job = Job(configuration, "stopped-early", "training.epochs=100", "training.early_stopping=1", "training.keep=best")
        job.succeed()
        assert "stopped early" in job.output
        losses = jobs.curves(storage, "stopped-early")[:, 2]
        assert len(losses) == np.argmin(losses) + 2
        assert read_report(folder / "runs", "stopped-early")["validation"]["loss"]["value"] == pytest.approx(losses.min())


def test_records_that_were_lost_are_stored_again(place):
    """A run that died between its last checkpoint and the record of that epoch would lack the epoch and its spikes in the report
    forever; after a return to an earlier checkpoint, abandoned epochs would be shown as part of the curve."""
    storage, folder, configuration, _ = place
    store = open_store(f"{storage}/storage/runs/records", config.S3(path_style=True))
    Job(configuration, "records").succeed()
    curves, report = jobs.curves(storage, "records"), read_report(folder / "runs", "records")
    store.put("epochs/0009.json", store.get("epochs/0004.json").replace(b'"epoch": 4', b'"epoch": 9'))
    store.delete(["epochs/0002.json", "spikes.json"])
    Job(configuration, "records").succeed()
    np.testing.assert_array_equal(jobs.curves(storage, "records"), curves)
    assert read_report(folder / "runs", "records")["spikes"] == report["spikes"]


def test_a_resumed_run_keeps_what_it_learned_with(place):
    """A run would silently continue with other settings than it began with."""
    _, _, configuration, _ = place
    job = Job(configuration, "one", "training.batch_size=16")
    assert job.wait() == 2
    assert "was started with training.batch_size = 32, now it is 16" in job.output


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


@pytest.mark.prometheus
def test_prometheus_has_the_last_epoch_after_the_job_has_ended(place, tmp_path):
    """The end of the curve would be missing in Grafana, because the job is gone before it is scraped."""
    storage, _, configuration, _ = place
    job = Job(configuration, "scraped", "metrics.linger=60.0")
    target = job.await_line(r"metrics at http://([0-9.:]+)/metrics")[1]
    with prometheus(tmp_path, target) as address:
        job.succeed()
        last = jobs.history(storage, "scraped")[-1]
        (found,) = until(lambda: query(address, 'last_over_time(spikewise_loss{split="validation"}[10m])')).values()
        assert found == pytest.approx(last.validation_loss)
        assert list(query(address, "last_over_time(spikewise_epoch[10m])").values()) == [4]
        assert list(query(address, 'last_over_time(spikewise_state{state="completed"}[10m])').values()) == [1]
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://{target}/metrics", timeout=5)
