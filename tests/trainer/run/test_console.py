"""What a person reads while a job runs."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from spikewise.causes import NAMES, attribute
from spikewise.describe import command_options
from spikewise.diagnose import News
from tests.spikewise.cases import SPIKE, STABLE, WINS, case
from tests.support.runs import diagnosis, finished
from trainer import config
from trainer.data.dataset import Manifest, Quarantined
from trainer.formatting import duration, size
from trainer.run import console as console_module
from trainer.run import events
from trainer.run.console import Console, RunLog
from trainer.run.status import RunStatus
from trainer.storage.checkpoint import SaveStats

STARTED = events.Started(step=0, restarts=0, workers=2, steps_per_epoch=12, resident=True)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0.0 s"), (59.94, "59.9 s"), (200, "3m20s"), (7500, "2h05m"), (float("nan"), "?"), (None, "?")]
)
def test_durations_are_readable(seconds, shown):
    """Remaining time would be shown as thousands of seconds; or an unknown one end in a traceback."""
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 bytes"), (999, "999 bytes"), (393e6, "393 MB"), (2e9, "2.0 GB"), (5e15, "5000 TB")]
)
def test_sizes_are_readable(count, shown):
    """Memory and disk would be shown as nine-digit numbers."""
    assert size(count) == shown


def lines(capsys, *seen, epochs=100):
    """What is printed for these events."""
    status = RunStatus(epochs)
    with Console() as console:
        log = RunLog(console, "first", epochs)
        for event in seen:
            status.update(event)
            log.hear(event, status)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (STARTED, ["training: 2 workers, 12 steps per epoch, images in memory"]),
        (events.Started(0, 0, 1, 12, False), ["training: 1 worker, 12 steps per epoch, images on the local disk"]),
        (events.Resumed(24, 3, 1, (), ()), ["resumed from the checkpoint of step 24, in epoch 3 (restart 1)"]),
        (events.Progress(1, 3, 12), []),
        (
            finished(7, 0.25),
            [
                "epoch   7/100  loss 0.1000  accuracy 0.500  val_loss 0.2500  val_accuracy 0.750  100 images/s  4.0 s  "
                "left 6m12s  best"
            ],
        ),
        (events.CheckpointSaved(27, SaveStats()), ["checkpoint of step 27 saved"]),
        (events.Warned("[bold]not markup[/bold]"), ["warning: [bold]not markup[/bold]"]),
        (events.Failed("No answer.", True), []),
        (events.Finished("completed", 100, SaveStats()), []),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_each_event_has_its_lines(capsys, event, expected):
    """A pod's log would lack what happened, hold escape codes, or break an epoch's line in two."""
    assert lines(capsys, event) == expected


def test_a_replay_has_its_lines(capsys):
    """While remedies are proven after the last epoch, the log would be silent for minutes, or count the epochs trained again as
    further epochs of the run; or it would go on to say that the workers are starting."""
    with Console() as console:
        log = RunLog(console, "first", 100)
        log.phase("starting the workers")
        for event in (STARTED, events.Progress(7, 3, 12), finished(7, 0.25), events.Warned("slow"), events.Failed("x", False)):
            log.hear_replay(event)
    assert capsys.readouterr().out.splitlines() == ["epoch 7: validation loss 0.2500", "warning: slow"]
    assert console._phase == ""


def test_a_restart_of_the_workers_is_a_warning(capsys):
    """A run that loses workers again and again would look healthy."""
    assert lines(capsys, STARTED, STARTED)[1] == "warning: a worker died; all workers were restarted"


def test_a_roll_back_is_no_death(capsys):
    """The user would look for a worker that died, although the run went back to an earlier checkpoint on purpose."""
    status = RunStatus(3)
    with Console() as console:
        log = RunLog(console, "first", 3)
        for _ in range(2):
            status.update(STARTED)
            log.hear(STARTED, status)
            status.forget()
    assert "died" not in capsys.readouterr().out


def test_only_the_best_epoch_is_marked(capsys):
    """A user would take a worse epoch for the best one."""
    first, second = lines(capsys, finished(1, 0.25), finished(2, 0.5))
    assert first.endswith("best")
    assert not second.endswith("best")


def test_a_spike_is_explained_and_its_outcome_printed(capsys):
    """The user would have to open the report of a running job to learn of a spike."""
    recovered = diagnosis(2, outcome="recovered", outcome_epoch=3)
    printed = lines(capsys, finished(2, 2.0, news=News(diagnosis(2), ())), finished(3, news=News(None, (recovered,))))
    assert printed[1].startswith("SPIKE in epoch 2")
    assert "Three images rose." in "\n".join(printed)
    assert "        No setting does this." in printed
    assert printed[-1] == "spike of epoch 2: recovered in epoch 3"


OPTIONS = {
    name: [option for cause in attribute(one) for option in command_options(cause.settings)]
    for name, one in {**WINS, "chance": case([STABLE], spike=replace(SPIKE, rise=0.05, error=0.02, low=0.01))}.items()
}
"""What is printed below the remedies, by the name of the first cause."""


@pytest.mark.parametrize("options", sorted({option for each in OPTIONS.values() for option in each}))
def test_the_options_of_every_remedy_can_be_used(options, tmp_path):
    """The user would copy a remedy and get an error instead of a better run."""
    path = tmp_path / "run.toml"
    path.write_text('[data]\nsource = "images"\nclasses = { a = "a/", b = "b/" }\n', encoding="utf-8")
    words = options.split()
    assert set(words[::2]) == {"--set"}
    assert config.load(path, words[1::2])


def test_every_cause_is_among_them():
    """A remedy without a test could ask for a setting that does not exist."""
    assert {*NAMES} <= {*OPTIONS}


def test_the_data_are_described(capsys):
    """A user would not notice that images are skipped or belong to no class, or how many images an epoch drops."""
    manifest = Manifest("s3://bucket/images", ("a", "b"), (), "digest", ignored=1200)
    with Console() as console:
        log = RunLog(console, "first", 1)
        log.packed(manifest, [Quarantined("a/[b]\n.jpg", "is empty (0 bytes)")], 3.1)
        log.packed(manifest, [], None)
        log.split(8014, 2003, ("a", "b"), 393_000_000, dropped=14)
        log.split(64, 16, ("a", "b"), 1000, dropped=0, groups=12)
    assert capsys.readouterr().out.splitlines() == [
        "data: 0 images at s3://bucket/images (packed in 3.1 s)",
        "warning: 1,200 objects at s3://bucket/images belong to no class and are ignored",
        r"warning: 1 image cannot be decoded and is skipped, such as 'a/[b]\n.jpg' (is empty (0 bytes)); "
        "quarantine.json lists all of them",
        "data: 0 images at s3://bucket/images (already packed: no image was read)",
        "warning: 1,200 objects at s3://bucket/images belong to no class and are ignored",
        "split: 8,014 training and 2,003 validation images of 2 classes (a, b); 393 MB of pixels",
        "Each epoch drops its last incomplete batch (14 of 8,014 images, a different set each time).",
        "split: 64 training and 16 validation images of 2 classes (a, b) in 12 groups; 1.0 kB of pixels",
    ]


def test_the_other_lines_of_a_run(capsys):
    """A user would not find the metrics or the report, or not know that a stop was understood."""
    with Console() as console:
        log = RunLog(console, "first", 1)
        log.metrics_served("127.0.0.1", 9400)
        log.stop_requested()
        log.metrics_served("0.0.0.0", 9400)
        log.metrics_served("fd00::5", 9400)
        log.report_written(Path("runs/first/report.html"))
        log.results_stored("s3://bucket/runs/first", with_model=True)
        log.results_stored("s3://bucket/runs/first", with_model=False)
        log.not_proven(5, 48.3, 20.0, "s3://bucket")
        log.report_incomplete("no answer")
    assert capsys.readouterr().out.splitlines() == [
        "run first: metrics at http://127.0.0.1:9400/metrics",
        "stop requested: saving a checkpoint",
        "run first: metrics at http://localhost:9400/metrics",
        "run first: metrics at http://[fd00::5]:9400/metrics",
        "report: runs/first/report.html",
        "stored: s3://bucket/runs/first/report.html and s3://bucket/runs/first/model.keras",
        "stored: s3://bucket/runs/first/report.html",
        "not proven: training the spike of epoch 5 again needs about 48 s, diagnosis.prove allows 20 s; "
        "python -m jobs.replay --run first --storage s3://bucket --spike 5 does it.",
        "warning: the report is incomplete (python -m jobs.report --config FILE --run first rebuilds it): no answer",
    ]


def test_a_pod_gives_no_addresses_of_its_own(capsys, monkeypatch):
    """The user would open an address or a path that exists only inside the pod, or train a spike again on a laptop, for nothing."""
    monkeypatch.setenv("POD_NAME", "run-first-0-abcde")
    monkeypatch.setenv("POD_NAMESPACE", "training")
    with Console() as console:
        log = RunLog(console, "first", 1)
        log.metrics_served("0.0.0.0", 9400)
        log.report_written(Path("/tmp/runs/first/report.html"))
        log.not_proven(5, 48.3, 20.0, "s3://bucket")
    assert capsys.readouterr().out.splitlines() == [
        "run first: metrics at http://localhost:9400/metrics after: kubectl port-forward -n training pod/run-first-0-abcde 9400",
        "not proven: training the spike of epoch 5 again needs about 48 s, diagnosis.prove allows 20 s. Fix: raise it for the next "
        "run. These pods end with their run, and on other machines a replay usually proves nothing.",
    ]


def test_names_cannot_write_escape_sequences(capsys):
    """A key or a class name could clear the terminal of a reader of the log."""
    with Console() as console:
        console.say("a\x1b[2Jb")
        console.warn("http://jane:secret@host \x9b")
    assert capsys.readouterr().out.splitlines() == ["a\\x1b[2Jb", "warning: http://***@host \\x9b"]


def test_long_silences_show_progress(capsys, monkeypatch):
    """While the workers import TensorFlow for half a minute, the user would take the job for dead."""
    monkeypatch.setattr(console_module, "PLAIN_SECONDS", 0.01)
    shown = ""
    with Console() as console:
        log = RunLog(console, "first", 1)
        log.phase("starting the workers")
        for _ in range(2000):
            shown += capsys.readouterr().out
            if "starting" in shown:
                break
            time.sleep(0.01)
        log.hear(STARTED, RunStatus(1))
        capsys.readouterr()
    assert re.match(r"starting the workers \(\d+ s so far\)\n", shown)
    assert console._phase == ""
