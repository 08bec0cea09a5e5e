"""Checks before a run trains; the data set itself is tested in tests/trainer/data."""

import re

import pytest

from spikewise.findings import Findings
from trainer import config
from trainer.data.dataset import DataError
from trainer.epoch import EpochReport
from trainer.run.preparation import OutputError, check_batch_size, check_output, complete
from trainer.storage import results
from trainer.storage.folder import FolderStore


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path):
    """A run would train for hours and then be unable to write its report."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"run\.output = '.*/file/runs' cannot be written \(Not a directory\)\. Fix: set it to"):
        check_output(str(tmp_path / "file" / "runs"))
    check_output(str(tmp_path / "new" / "runs"))
    assert list((tmp_path / "new" / "runs").iterdir()) == []


def test_a_batch_larger_than_the_training_set_is_refused():
    """The run would have epochs of 0 steps."""
    check_batch_size(32, 32)
    with pytest.raises(DataError, match=r"batch_size = 33 is larger than .* of about 32 images\. Fix: lower it or add"):
        check_batch_size(33, 32, about="about ")


@pytest.mark.parametrize(
    ("outcome", "trained", "overrides", "line"),
    [
        ("completed", 4, [], r"Run first is complete: completed after 4 epochs; .* raise training.epochs \(now 4\)"),
        ("completed", 4, ["training.epochs=2"], r"raise training.epochs \(now 2\)"),
        ("completed", 4, ["training.epochs=6"], None),
        ("completed", 4, ["training.keep=best"], None),
        ("completed", 4, ["launch.max_failures=9"], "is complete"),
        ("stopped early", 3, [], r"stopped early after 3 epochs; .* raise training.early_stopping \(now 2\)"),
        ("stopped early", 3, ["training.early_stopping=9"], None),
        ("stopped early", 3, ["training.epochs=6"], None),
        ("interrupted", 3, [], None),
        ("failed: no space", 4, [], None),
    ],
)
def test_a_complete_run_is_recognized(tmp_path, outcome, trained, overrides, line):
    """A finished run would start pods and "resume in epoch 5 of 4"; or a run with work left would be called complete."""
    base = ["training.epochs=4", "training.keep=last", "training.early_stopping=2"]
    settings = config.load("jobs/configs/demo.toml", base)
    store = FolderStore(tmp_path)
    results.put_run(store, "first", {"config": settings.as_dict(), "manifest": "m", "environment": {}, "outcome": outcome})
    for epoch in range(1, trained + 1):
        report = EpochReport(
            **dict.fromkeys(EpochReport.__dataclass_fields__, 0.5) | {"epoch": epoch, "step": 10 * epoch, "restarts": 0}
        )
        results.put_epoch(store, "first", report, {})
    results.put_findings(store, "first", Findings())
    now = config.load("jobs/configs/demo.toml", [*base, *overrides])
    found = complete(results.get_run(store, "first"), store, now, "first")
    assert found is None if line is None else re.search(line, found), found
    store.delete(["runs/first/epochs/0002.json"])  # the workers still know the epoch
    assert complete(results.get_run(store, "first"), store, now, "first") is None


def test_a_new_run_is_not_complete(tmp_path):
    """No run could start."""
    assert complete(None, FolderStore(tmp_path), config.load("jobs/configs/demo.toml"), "first") is None
