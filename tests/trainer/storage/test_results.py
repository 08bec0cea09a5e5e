"""trainer.storage.results on a folder."""

from dataclasses import replace

import numpy as np
import pytest

from spikewise.curve import Parts
from spikewise.findings import Findings
from spikewise.proof import Experiment, Proof
from spikewise.records import Cause, Diagnosis, Overfitting, Spike, Suspect
from spikewise.standing import Standing
from tests.support.epochs import report
from trainer import config
from trainer.storage import open_store, results


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path), config.S3())


def test_epochs_read_back_as_they_were(store):
    """The report would show other numbers than the run measured."""
    reports = [report(1), report(2, np.nan), report(3)]
    arrays = {"losses": np.array([0.1, np.nan], np.float32), "steps": np.zeros((2, 7), np.float32)}
    for each in reports:
        results.put_epoch(store, "a-run", each, arrays)
    assert repr(results.get_history(store, "a-run")) == repr(reports)  # NaN is not equal to itself
    found = results.get_arrays(store, "a-run", 2)
    assert found.keys() == arrays.keys()
    np.testing.assert_array_equal(found["losses"], arrays["losses"])


def test_missing_results_are_empty(store):
    """A run that never started, or an epoch whose upload failed, would cause a traceback."""
    assert results.get_run(store, "none") is None
    assert results.get_history(store, "none") == []
    assert results.get_arrays(store, "none", 1) == {}


def test_the_stored_epochs_become_those_of_the_checkpoint(store):
    """A run that died between a checkpoint and the epoch's record would keep a gap in its curve; a run that went back would show
    epochs of two paths as one curve."""
    first, second, third, fourth = map(report, (1, 2, 3, 4))
    arrays = {"losses": np.zeros(2, np.float32)}
    for each in (first, third, fourth):
        results.put_epoch(store, "a-run", each, arrays)
    store.put("runs/a-run/epochs/notes.txt", b"of the user")
    results.replace_history(store, "a-run", [first, second, third])
    assert results.get_history(store, "a-run") == [first, second, third]
    assert results.get_arrays(store, "a-run", 3).keys() == arrays.keys()
    assert results.get_arrays(store, "a-run", 4) == {}
    assert store.get("runs/a-run/epochs/notes.txt") == b"of the user"
    results.replace_history(store, "a-run", [])
    assert results.get_history(store, "a-run") == []
    results.replace_history(store, "another", [first])
    assert results.get_history(store, "another") == [first]


def test_starts_are_counted(store):
    """A run that keeps dying before its next checkpoint would count one restart, and no alert would fire."""
    assert [results.count_start(store, "a-run") for _ in range(3)] == [0, 1, 2]
    assert results.count_start(store, "another") == 0


def test_reports_of_another_version_are_read():
    """After an update, older runs could not be resumed or reported."""
    values = report(1).as_dict() | {"unknown": 1}
    del values["restarts"]
    assert results.report_from(values) == replace(report(1), restarts=0)


def test_spikes_read_back(store):
    """The report would lack the spikes of a run, or claim none for a run that was not watched for them."""
    assert results.get_findings(store, "a-run") is None
    spike = Spike(3, 1.0, 0.6, 0.05, 0.2, 0.4, 0.3, 0.5, 0.05, 80)
    suspects = (Suspect(7, 0.2, 9.5, "cat", "dog", 0.98, "mislabelled"), Suspect(3, 0.1, 2.0))
    diagnosis = Diagnosis(spike, (Cause("unexplained", float("nan"), 0.0, 1.0, "seen.", "do."),), suspects=suspects)
    trend = Overfitting(epoch=2, loss=0.5, climb=0.01, gap=0.2)
    parts = Parts(3, 1.0, 0.4, 0.0, 0.2, 0.4, (0.1, 0.0, 0.1, 0.1), 0.3)
    standing = Standing("statistics", "t", 1, 3, "Found.", "Seen.", "do.", ("model.momentum=0.9",))
    stored = Findings((diagnosis,), trend, (parts,), (standing,))
    results.put_findings(store, "a-run", stored)
    found = results.get_findings(store, "a-run")
    assert found.diagnoses[0].spike == spike
    assert found.diagnoses[0].verdict.name == "unexplained"
    assert found.diagnoses[0].suspects == suspects
    assert (found.overfitting, found.parts, found.standing) == (trend, (parts,), (standing,))


def test_the_result_on_the_test_set(store):
    """The report would show no test result, or that of another epoch."""
    assert results.get_test(store, "first") == {}
    losses, probabilities = np.array([0.5, 1.5], np.float32), np.array([[0.6, 0.4], [0.8, 0.2]], np.float32)
    results.put_test(store, "first", 7, losses, probabilities)
    found = results.get_test(store, "first")
    assert int(found["epoch"]) == 7
    np.testing.assert_array_equal(found["losses"], losses)
    np.testing.assert_array_equal(found["probabilities"], probabilities)
    store.put("runs/first/test.npz", b"damaged")
    assert results.get_test(store, "first") == {}


def test_experiments_and_roll_backs_read_back(store):
    """The report would lose the proof of a remedy, or how often the run went back."""
    proof = Proof("a.b=1", "proven", (0.5, float("nan")), 0.4, 0.3, 0.5, 1.0, 0.02)
    for epoch in (46, 7):
        results.put_experiment(store, "a-run", Experiment(epoch, 0.9, epoch - 1, (epoch, epoch + 1), (0.9, 0.5), None, (proof,)))
    store.put("runs/a-run/replays/0009/proof.json", b"torn")
    name = results.replay_name("a-run", 46, "control")
    results.put_epoch(store, name, report(46), {"losses": np.ones(3, np.float32)})
    assert [one.epoch for one in results.get_experiments(store, "a-run")] == [7, 46]
    assert results.get_history(store, "a-run") == []  # a replay is no part of the curve
    assert results.get_history(store, name) == [report(46)]
    results.clear_replay(store, name)
    assert results.get_history(store, name) == []
    assert len(results.get_experiments(store, "a-run")) == 2
    assert results.get_roll_backs(store, "a-run") == []
    results.put_roll_backs(store, "a-run", [{"epoch": 5}])
    assert results.get_roll_backs(store, "a-run") == [{"epoch": 5}]
