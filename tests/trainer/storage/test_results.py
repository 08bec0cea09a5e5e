"""What a run stores about itself."""

from dataclasses import replace

import numpy as np
import pytest

from spikewise.records import Cause, Diagnosis, Overfitting, Spike, Suspect
from tests.trainer.engine.test_golden import _Rows
from tests.trainer.report.runs import demo
from trainer import UserError, config
from trainer.data.dataset import Pack, Split
from trainer.storage import open_store, results


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path), config.S3())


def test_epochs_read_back_as_they_were(store):
    """The report would show other numbers than were measured."""
    reports = demo().history[:3]
    arrays = {"losses": np.array([0.1, np.nan], np.float32), "steps": np.zeros((2, 7), np.float32)}
    for report in reports:
        results.put_epoch(store, "a-run", report, arrays)
    assert results.get_history(store, "a-run") == reports
    found = results.get_arrays(store, "a-run", 2)
    assert found.keys() == arrays.keys()
    np.testing.assert_array_equal(found["losses"], arrays["losses"])


def test_what_is_not_there_is_empty(store):
    """A run that never started, or an epoch whose upload failed, would end in a traceback."""
    assert results.get_run(store, "none") is None
    assert results.get_history(store, "none") == []
    assert results.get_arrays(store, "none", 1) == {}


def test_the_stored_epochs_are_made_those_of_the_checkpoint(store):
    """A run that died between a checkpoint and its epoch's record has a hole in its curve for ever; one that went back shows epochs
    of two ways as one curve."""
    first, second, third, fourth = demo().history[:4]
    arrays = {"losses": np.zeros(2, np.float32)}
    for report in (first, third, fourth):
        results.put_epoch(store, "a-run", report, arrays)
    store.put("runs/a-run/epochs/notes.txt", b"somebody's own")
    results.mend_history(store, "a-run", [first, second, third])
    assert results.get_history(store, "a-run") == [first, second, third]
    assert results.get_arrays(store, "a-run", 3).keys() == arrays.keys()
    assert results.get_arrays(store, "a-run", 4) == {}
    assert store.get("runs/a-run/epochs/notes.txt") == b"somebody's own"
    results.mend_history(store, "a-run", [])
    assert results.get_history(store, "a-run") == []
    results.mend_history(store, "another", [first])
    assert results.get_history(store, "another") == [first]


def test_starts_are_counted(store):
    """A run that dies again and again before its next checkpoint would look as if it had died once: no alert."""
    assert [results.count_start(store, "a-run") for _ in range(3)] == [0, 1, 2]
    assert results.count_start(store, "another") == 0


def test_reports_of_another_version_are_read():
    """After an update, runs of before could not be resumed or reported."""
    report = demo().history[0]
    values = report.as_dict() | {"unknown": 1}
    del values["restarts"]
    assert results.report_from(values) == replace(report, restarts=0)


def test_the_best_epoch_is_the_earliest_of_the_lowest_finite_losses():
    """keep = "best" would take an epoch of a diverged network, or a later one for nothing."""
    first, *_ = demo().history
    losses = [0.7, float("nan"), 0.5, 0.5, float("inf")]
    history = [replace(first, epoch=epoch, validation_loss=loss) for epoch, loss in enumerate(losses, 1)]
    assert results.best(history).epoch == 3
    assert results.best(history[1:2]) is None


def test_a_run_without_an_epoch_has_nothing_to_report(store):
    """jobs.report of a run that has just begun would end in a traceback."""
    results.put_run(store, "young", {"config": {}, "environment": {}, "manifest": "d"})
    with pytest.raises(UserError, match="has not finished an epoch"):
        results.load("young", store, Pack("d", ("a", "b"), (8, 8, 3), (), 0), None, Split((), ()))


def test_spikes_read_back(store):
    """The report of a finished run would lack its spikes, or claim that there was none where nobody has looked."""
    assert results.get_diagnoses(store, "a-run") == (None, None)
    spike = Spike(3, 1.0, 0.6, 0.05, 0.2, 0.4, 0.3, 0.5, 0.05, 80)
    suspects = (Suspect(7, 0.2, 9.5, "cat", "dog", 0.98, "mislabelled"), Suspect(3, 0.1, 2.0))
    diagnosis = Diagnosis(spike, (Cause("unexplained", float("nan"), 0.0, 1.0, "seen.", "do."),), suspects=suspects)
    trend = Overfitting(epoch=2, loss=0.5, climb=0.01, gap=0.2)
    results.put_diagnoses(store, "a-run", [diagnosis], trend)
    found, overfitting = results.get_diagnoses(store, "a-run")
    assert [one.spike for one in found] == [spike]
    assert found[0].verdict.name == "unexplained"
    assert found[0].suspects == suspects
    assert overfitting == trend


def test_the_images_of_a_batch_are_those_that_were_trained_on():
    """The report would show other images than the ones that did the harm."""
    from trainer.data.loader import Feed

    rows, training = _Rows(), np.arange(40, 200)
    rows.keys = [f"image-{row:03d}" for row in range(200)]
    settings = config.parse({"data": {"source": "x", "classes": {"a": "a/", "b": "b/"}}, "training": {"batch_size": 32}})
    fed = [batch.images.numpy() for batch in Feed(rows, training, settings, rank=0, size=1).batches(6)]
    shown = results._batch(settings.as_dict(), rows, Split(tuple(training), ()), 6, 3)
    assert [image.key for image in shown] == [f"image-{row:03d}" for row in fed[3]]
    assert [image.label for image in shown] == rows.labels[fed[3]].tolist()
    np.testing.assert_array_equal([image.image for image in shown], rows.pixels[fed[3]])
