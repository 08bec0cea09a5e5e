"""The records of a run, in a real folder."""

import numpy as np
import pytest

from spikewise.findings import Findings
from tests.support.epochs import report
from tests.support.runs import diagnosis
from trainer import config
from trainer.run.recording import Recorder
from trainer.storage import open_store, results


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "storage"), config.S3())


@pytest.fixture
def broken(tmp_path):
    """A store that cannot store anything: a file stands where its folder should be."""
    (tmp_path / "broken").write_text("")
    return open_store(str(tmp_path / "broken"), config.S3())


def test_epochs_and_spikes_are_stored(store):
    """The report would lack epochs, their images, or the spikes."""
    recorder = Recorder(store, "first")
    recorder.record(report(1), {"losses": np.ones(3, np.float32)}, Findings((), None))
    recorder.record(report(2), {"losses": np.zeros(3, np.float32)}, Findings((diagnosis(2),), None))
    recorder.close()
    assert results.get_history(store, "first") == [report(1), report(2)]
    assert results.get_arrays(store, "first", 2)["losses"].tolist() == [0, 0, 0]
    assert [found.spike.epoch for found in results.get_findings(store, "first").diagnoses] == [2]


def test_a_failed_diagnosis_leaves_earlier_spikes(store):
    """An epoch whose diagnosis failed would erase the spikes that were found before."""
    recorder = Recorder(store, "first")
    recorder.record(report(1), {}, Findings((diagnosis(1),), None))
    recorder.record(report(2), {}, None)
    recorder.close()
    assert len(results.get_findings(store, "first").diagnoses) == 1


def test_stored_records_become_those_of_the_run(store):
    """A run that died between a checkpoint and its record would have a hole in its report forever; after a return to an earlier
    checkpoint, abandoned epochs would be shown as part of the curve."""
    recorder = Recorder(store, "first")
    for epoch in (1, 3, 4):
        recorder.record(report(epoch), {}, Findings((diagnosis(4),), None))
    recorder.close()
    Recorder(store, "first").reconcile([report(1), report(2), report(3)], Findings((), None))
    assert [found.epoch for found in results.get_history(store, "first")] == [1, 2, 3]
    assert results.get_findings(store, "first").diagnoses == ()


def test_starts_are_counted(store):
    """The alert on restarts would never fire."""
    facts = {"settings": {"run": {}}, "machine": {"processor": "A"}}
    assert [Recorder(store, "first").count_start(lambda: facts) for _ in range(3)] == [0, 1, 2]
    assert results.get_start(store, "first", 2) == facts
    assert results.get_start(store, "first", 3) is None


def test_training_goes_on_where_nothing_can_be_stored(broken, caplog):
    """Full or unreachable storage would end a run that only wanted to store results for its report."""
    recorder = Recorder(broken, "first")
    assert recorder.count_start(dict) == 0
    recorder.reconcile([report(1)], None)
    recorder.record(report(2), {}, None)
    recorder.close()
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(":")[0] for message in messages] == [
        "this start of the workers was not counted",
        "the report may lack epochs",
        "the results of epoch 2 were not stored",
    ]
