"""trainer.storage.results on a folder."""

import json
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
from trainer.storage import NotFound, open_store, results
from trainer.storage.folder import FolderStore

BACK = {"epoch": 5, "found": 6, "what": "It diverged.", "settings": "a.b=1", "before": {"a.b": 2}, "to_epoch": 4, "to_step": 40}


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


def test_records_of_another_owner_are_corrected(store):
    """A request that a former driver had sent before it lost the run would leave its numbers in the curve of the successor."""
    results.put_epoch(store, "a-run", report(1, 9.0), {})
    results.replace_history(store, "a-run", [report(1)])
    assert results.get_history(store, "a-run") == [report(1)]


class Once(FolderStore):
    """Its first read gives `answer`."""

    answer = b""

    def get(self, key):
        answer, self.answer = self.answer, b"sound"
        if answer is None:
            raise NotFound("no such object")
        return super().get(key) if answer == b"sound" else answer


@pytest.mark.parametrize("answer", [b"", b"<html>", None, b"[" * 100_000], ids=["empty", "page", "missing", "deep"])
def test_one_wrong_answer_is_read_again(store, answer):
    """A run would be taken for a new one, a report would lack an epoch, or a sound object would be called damaged."""
    results.put_run(store, "a-run", {"config": {}, "manifest": "m", "environment": {}})
    results.put_epoch(store, "a-run", report(1), {"losses": np.zeros(2, np.float32)})
    results.put_findings(store, "a-run", Findings())
    results.count_start(store, "a-run")
    results.put_start(store, "a-run", 0, {"settings": {}, "machine": {}})
    results.put_experiment(store, "a-run", Experiment(4, 0.9, 3, (4,), (0.9,)))
    results.put_roll_backs(store, "a-run", [BACK])
    for read in (
        lambda once: results.get_run(once, "a-run") is not None,
        lambda once: results.get_history(once, "a-run") == [report(1)],
        lambda once: results.get_arrays(once, "a-run", 1).keys() == {"losses"},
        lambda once: results.get_findings(once, "a-run") == Findings(),
        lambda once: results.get_start(once, "a-run", 0) is not None,
        lambda once: len(results.get_experiments(once, "a-run")) == 1,
        lambda once: results.get_roll_backs(once, "a-run") == [BACK],
        lambda once: results.count_start(once, "a-run") == 1,
    ):
        once = Once(store.root)
        once.answer = answer
        assert read(once)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"config": []}, "config has no sections"),
        ({"config": {"run": 3}}, "config has no sections"),
        ({"config": {"training": {"epochs": "8"}}}, "training.epochs = '8': should be a valid integer"),
        ({"config": {"run": {"seed": None}}}, "run.seed = None"),
        ({"config": {"diagnosis": {"sensitivity": {}}}}, "diagnosis.sensitivity"),
        ({"manifest": 3}, "manifest is something else"),
        ({"environment": "x"}, "environment is something else"),
        ({"outcome": 1}, "outcome is something else"),
        ({"epoch": "last"}, "epoch is something else"),
        ({"network": ["question"]}, "network is something else"),
        ({"network": {"name": "question", "parameters": "many"}}, "network lacks one of name, parameters, trainable"),
        ({"module": "nets"}, "module is something else"),
        ({"module": {"name": "nets"}}, "module lacks one of name, digest"),
    ],
)
def test_a_run_that_describes_nothing(store, change, why):
    """A damaged or hostile description of a run would end the next job with a traceback."""
    results.put_run(store, "a-run", {"config": {}, "manifest": "m", "environment": {}, **change})
    with pytest.raises(results.ResultsError, match=rf"run.json is damaged \(.*{why}.*\)\. Fix: delete it"):
        results.get_run(store, "a-run")


def test_a_run_of_another_version(store):
    """After an update that renames a setting or adds one, older runs would be called damaged, or end reports with a traceback."""
    older = {"training": {"epochs": 8, "learning_rate": 1e-3}, "pipeline": {"flip": True}, "model": {"dropout": [0.25, 0.5]}}
    results.put_run(store, "a-run", {"config": older, "manifest": "m", "environment": {}})
    found = results.get_run(store, "a-run")["config"]
    assert (found["pipeline"], found["model"]) == (older["pipeline"], older["model"])
    assert found["training"] == older["training"] | {"batch_size": 32, "early_stopping": 0, "keep": "last"}
    assert found["diagnosis"] == {"sensitivity": 1.0}


@pytest.mark.parametrize(
    "change",
    [{"what": None, "settings": 3}, {"before": []}, {"settings": "a.b=1 c.d=2"}],
)
def test_roll_backs_of_something_else(store, change):
    """A damaged or hostile record would end every start of the run with a traceback."""
    results.put_roll_backs(store, "a-run", [BACK | change])
    with pytest.raises(results.ResultsError, match=r"roll_backs\.json is damaged \(.*\)\. Fix: delete it"):
        results.get_roll_backs(store, "a-run")


def test_the_machine_of_a_start(store):
    """A replay of a run with a damaged record of its start would end in a traceback."""
    results.put_start(store, "a-run", 0, {"settings": {}, "machine": {"threads of a worker": "2"}})
    assert results.get_start(store, "a-run", 0)["machine"] == {"threads of a worker": "2"}
    for threads in ("many", None, float("inf")):
        results.put_start(store, "a-run", 0, {"settings": {}, "machine": {"threads of a worker": threads}})
        assert results.get_start(store, "a-run", 0) is None


@pytest.mark.parametrize(
    "change",
    [{"epoch": 2}, {"epoch": "1"}, {"epoch": True}, {"train_loss": []}, {"train_loss": 10**400}, {"step": -1}, {"step": 10**400}],
)
def test_a_report_of_something_else(store, change):
    """A damaged or hostile record would end every report of the run, and its resume, with a traceback."""
    store.put("runs/a-run/epochs/0001.json", json.dumps(report(1).as_dict() | change).encode())
    with pytest.raises(results.ResultsError, match=r"0001\.json is damaged .* Fix: delete it"):
        results.get_history(store, "a-run")


def test_arrays_that_would_fill_the_memory(store, monkeypatch):
    """A file of some kilobytes that unpacks to many gigabytes would end the job."""
    results.put_epoch(store, "a-run", report(1), {"losses": np.zeros(10_000, np.float32)})
    assert len(results.get_arrays(store, "a-run", 1)["losses"]) == 10_000
    monkeypatch.setattr(results, "LARGEST", 30_000)
    assert results.get_arrays(store, "a-run", 1) == {}


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
    assert repr(found) == repr(stored)  # NaN is not equal to itself
    content = json.loads(store.get("runs/a-run/spikes.json"))
    for key, wrong in (("spikes", [{"spike": 3}]), ("overfitting", {}), ("standing", [[]]), ("parts", [{"epoch": "third"}])):
        store.put("runs/a-run/spikes.json", json.dumps(content | {key: wrong}).encode())
        with pytest.raises(results.ResultsError, match=r"spikes\.json is damaged .* Fix: delete it"):
            results.get_findings(store, "a-run")


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
    (first, _) = results.get_experiments(store, "a-run")
    assert repr(first) == repr(Experiment(7, 0.9, 6, (7, 8), (0.9, 0.5), None, (proof,)))
    for number, wrong in enumerate(({"proofs": 3}, {"problem": 3}, {"control": ["a", 0.5]}, {"epochs": [7]}, {"epochs": None})):
        content = json.dumps(first.as_dict() | wrong).encode()
        store.put(f"runs/a-run/replays/{100 + number:04d}/proof.json", content)  # left out, as what is torn
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
    results.put_roll_backs(store, "a-run", [BACK])
    assert results.get_roll_backs(store, "a-run") == [BACK]
