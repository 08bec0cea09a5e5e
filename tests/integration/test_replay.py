"""Replay and roll-back with real Ray workers: a spike that comes by itself, its remedy proven, and a run that goes back."""

import json
import logging
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.support.job import Job, read_report
from jobs import replay
from trainer.storage import results
from trainer.storage.checkpoint import Checkpoints
from trainer.storage.lease import Lease
from trainer.storage.store import list_keys

pytestmark = pytest.mark.integration
FASTER_NEWS = "from trainer.run import console\nconsole.PLAIN_SECONDS = 0.1"
STOPS_EARLY = """
import signal
from trainer.run import console
phase = console.Console.phase

def stopping(self, what):
    phase(self, what)
    if what.startswith("starting the workers"):
        signal.raise_signal(signal.SIGTERM)

console.Console.phase = stopping
"""


def replayed(*arguments, prepare=""):
    """Exit code, standard output and standard error of a replay in a process of its own, which runs `prepare` first: an interrupted
    driver leaves threads of Ray behind, which end the process minutes later."""
    script = f"import sys\n{prepare}\nfrom jobs import replay\nsys.exit(replay.main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_the_remedy_of_a_natural_spike_is_proven_at_the_end_of_the_run(workplace, spiked):
    """The report would repeat untested advice, although the job had time to test it."""
    folder, _, store = workplace
    found, *_ = results.get_findings(store, "spiked").diagnoses
    assert found.verdict.name.startswith("batchnorm")
    epoch, (experiment, *_) = found.spike.epoch, results.get_experiments(store, "spiked")
    assert experiment.problem is None, experiment.problem
    assert experiment.is_about(found.spike)
    assert experiment.control[0] == found.spike.loss
    again = results.replay_name("spiked", epoch, "control")
    for each in experiment.epochs:
        recorded, control = (results.get_arrays(store, run, each)["losses"] for run in ("spiked", again))
        np.testing.assert_array_equal(recorded, control)
    assert experiment.best is not None
    assert experiment.best.verdict == "proven"
    assert experiment.best.settings == "model.statistics=precise"
    line = f"Proven: with model.statistics=precise the loss of epoch {epoch} is "
    assert line in spiked.output
    assert f"\nepoch {epoch}: validation loss {found.spike.loss:.4f}\n" in spiked.output.partition("proving the remedy")[2]
    document = read_report(folder / "runs", "spiked")
    assert document["outcome"] == "completed"
    assert any(sentence.startswith(line) for sentence in document["spikes_summary"])
    assert document["spikes"][0]["replay"]["proofs"][0]["verdict"] == "proven"
    assert "Trained again" in (folder / "runs/spiked/report.html").read_text()


def test_the_checkpoint_before_the_spike_is_kept(workplace, spiked):
    """A replay would have to train from the beginning, or a run could not go back."""
    *_, store = workplace
    found, *_ = results.get_findings(store, "spiked").diagnoses
    before = next(report for report in results.get_history(store, "spiked") if report.epoch == found.spike.epoch - 1)
    assert before.step in Checkpoints(store, "spiked", 1).steps()
    assert (found.spike.epoch, before.epoch) != (1, 0)
    assert "resumed" not in spiked.output


def test_any_epoch_is_diagnosed_on_request_and_a_useless_setting_is_called_so(workplace, spiked):  # noqa: ARG001
    """A user could not ask about an epoch without an alarm, or not while the run is trained; or every setting would be praised; or
    the log would be silent while workers start."""
    folder, _, store = workplace
    losses = [report.validation_loss for report in results.get_history(store, "spiked")]
    found, *_ = results.get_findings(store, "spiked").diagnoses
    asked = [found.spike.epoch]
    command = ["--run", "spiked", "--storage", f"{folder}/storage", "--epoch", str(asked[0]), "--set", "training.early_stopping=9"]
    with Lease(store, "spiked", 30):  # of the job that trains the run
        before = others(store)
        code, output, errors = replayed(*command, prepare=FASTER_NEWS)
        after = others(store)
    assert code == 0, errors
    silences = re.findall(r"^([^\n]+) \(\d+ s so far\)$", output, re.MULTILINE)
    assert list(dict.fromkeys(silences))[-3:] == [
        "starting Ray",
        "starting the workers, which import TensorFlow",
        "writing the report",
    ]
    assert "starting the workers" in output.partition("as recorded, to the last bit")[2]
    assert f"SPIKE in epoch {asked[0]}: validation loss {losses[asked[0] - 1]:.3f}" in output
    assert "as recorded, to the last bit" in output
    assert f"Does not help: with training.early_stopping=9 the loss of epoch {asked[0]} is" in output
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed <= {f"runs/spiked/{name}" for name in ("report.html", "report.json", "loss.png")}


def others(store):
    """What a replay must leave alone: key -> ETag."""
    return {each.key: each.etag for each in store.list("runs/spiked/") if "/replays/" not in each.key and "/lease-" not in each.key}


def test_a_record_that_the_control_does_not_repeat_proves_nothing(workplace, spiked):  # noqa: ARG001
    """On another machine, or with damaged data, every remedy could be proven."""
    folder, _, store = workplace
    found, *_ = results.get_findings(store, "spiked").diagnoses
    epoch = found.spike.epoch
    report = next(report for report in results.get_history(store, "spiked") if report.epoch == epoch)
    arrays = results.get_arrays(store, "spiked", epoch)
    losses = arrays["losses"].copy()
    losses[3] = np.nextafter(losses[3], np.float32(9))
    results.put_epoch(store, "spiked", report, arrays | {"losses": losses})
    try:
        code, output, errors = replayed("--run", "spiked", "--storage", f"{folder}/storage", "--spike", str(epoch))
    finally:
        results.put_epoch(store, "spiked", report, arrays)
    assert code == 1, errors
    assert f"Nothing can be proven here: trained again with nothing changed, epoch {epoch} has other losses than recorded" in output
    assert f"(1 of {len(losses)} images, by up to" in output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--run", "nobody", "--spike", "2"], r"No run nobody in .*\. Fix: correct --run or --storage\."),
        (["--run", "spiked", "--spike", "99"], r"has no spike in epoch 99 \(spikes: .*\)\. Fix: name one, or use --epoch 99\."),
        (["--run", "spiked", "--epoch", "99"], r"has no epoch 99: it has finished epochs 1 to 4\. Fix: name one of them\."),
        (["--set", "data.validation_fraction=0.4"], r"changes which images train or validate, .*\. Fix: start another run\."),
        (["--set", "optimizer.name=SGD"], r"needs another state than the checkpoint holds\. Fix: start another run with it\."),
        (["--set", "model.momentum=2"], r"--set model\.momentum=2: should be less than 1"),
        (["--set", "launch.workers=5"], r"training\.batch_size = 32 is not divisible by launch\.workers = 5"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_replayed_ends_in_one_line(workplace, spiked, capfd, options, words):  # noqa: ARG001
    """A user would get a traceback, or wait for workers that fail."""
    folder, _, store = workplace
    found, *_ = results.get_findings(store, "spiked").diagnoses
    if "--run" not in options:
        options = ["--run", "spiked", "--spike", str(found.spike.epoch), *options]
    assert replay.main([*options, "--storage", f"{folder}/storage"]) == 2
    complaint = capfd.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", complaint), complaint
    assert re.search(words, complaint), complaint


@pytest.fixture(scope="module")
def settled(workplace):
    """The settings of a run `back`: two workers have trained its first two epochs."""
    settings = ("model.momentum=0.5", "checkpoint.keep_last=1")
    two = ("launch.workers=2", "training.epochs=2", "optimizer.learning_rate=1e-3")
    Job(workplace.configuration, "back", *settings, *two).succeed()
    return settings


def test_a_replay_on_fewer_workers_proves_nothing(workplace, settled):  # noqa: ARG001
    """A user who replays a run of a cluster on a laptop would get a verdict that only rounding has made, or no reason for none."""
    command = ["--run", "back", "--storage", f"{workplace.folder}/storage", "--epoch", "2", "--set", "launch.workers=1"]
    code, output, errors = replayed(*command)
    assert code == 1, errors
    assert re.search(
        r"^Nothing can be proven here: trained again with nothing changed, epoch \d has other losses than recorded \(\d+ of \d+ "
        r"images, by up to [^ ]+\)\. workers: 2 then, 1 now\. Fix: replay it where and how the run was trained\.$",
        output,
        re.MULTILINE,
    )


class StopsTheWait(logging.Handler):
    """Sends SIGTERM to this process when it says that it waits for a lease."""

    def emit(self, record: logging.LogRecord) -> None:
        if "Ctrl-C ends the wait" in record.getMessage():
            signal.raise_signal(signal.SIGTERM)


def test_waiting_for_another_replay_ends_on_request(workplace, settled):  # noqa: ARG001
    """After a killed replay of the same epoch, Ctrl-C would do nothing until the lease is over, and then end the replay only after
    it had taken the lease."""
    folder, _, store = workplace
    dead = {"token": "t", "host": "h", "pid": 1, "since": "x", "lease_seconds": 5.0, "beat": 7, "released": False}
    store.put(key := "runs/back/replays/0001/lease-000009.json", json.dumps(dead).encode())
    logger, handler = logging.getLogger("trainer.storage.lease"), StopsTheWait()
    logger.addHandler(handler)
    try:
        assert replay.main(["--run", "back", "--storage", f"{folder}/storage", "--epoch", "1"]) == 143
        assert list_keys(store, "runs/back/replays/0001/") == [key]
    finally:
        logger.removeHandler(handler)
        store.delete([key])


def test_a_request_to_stop_does_not_wait_for_the_workers(workplace, settled):  # noqa: ARG001
    """Ctrl-C would seem to do nothing for half a minute, until the workers have started."""
    folder, _, store = workplace
    code, _, errors = replayed("--run", "back", "--storage", f"{folder}/storage", "--epoch", "1", prepare=STOPS_EARLY)
    assert code == 143, errors
    assert not list_keys(store, "runs/back/replays/0001/control/")  # each start of workers is recorded


def test_a_run_that_diverges_goes_back_to_its_checkpoint(workplace, settled):
    """The run would go on with lost weights overnight, or go back without a trace in log and report."""
    folder, configuration, store = workplace
    wild = ("training.epochs=8", "optimizer.learning_rate=1.0", "diagnosis.on_divergence=roll_back")
    job = Job(configuration, "back", *settled, *wild)
    job.succeed()
    (back, *_) = backs = results.get_roll_backs(store, "back")
    assert (back["epoch"], back["found"], back["to_epoch"]) == (3, 8, 2)  # that checkpoint was kept for the spike
    assert "Went back to the end of epoch 2 with optimizer.learning_rate=0.1 (1 of at most 2 times)." in job.output
    document = read_report(folder / "runs", "back")
    assert document["outcome"] == "completed"
    assert [row["epoch"] for row in document["history"]] == list(range(1, 9))
    assert document["history"][-1]["validation_loss"] < 1
    assert document["roll_backs"] == backs
    assert any("The run went back to the end of epoch 2, with optimizer.learning_rate=0.1" in note for note in document["notes"])
    assert results.get_run(store, "back")["config"]["optimizer"]["learning_rate"] == pytest.approx(10.0 ** -len(backs))
