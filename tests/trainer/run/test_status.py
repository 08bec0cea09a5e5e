"""What the driver knows of a run from its events."""

import numpy as np

from spikewise.diagnose import News
from tests.support.epochs import report
from tests.support.runs import diagnosis, finished
from trainer.run import events
from trainer.run.status import RunStatus
from trainer.storage.checkpoint import SaveStats


def status(*seen, epochs=3):
    found = RunStatus(epochs)
    for event in seen:
        found.update(event)
    return found


def test_a_repeated_epoch_replaces_the_first_attempt():
    """After a worker died, epochs would count twice, and abandoned ones could be named the best."""
    found = status(finished(1, 0.5), finished(2, 0.1), finished(3, 0.4), finished(2, 0.3))
    assert [(each.epoch, each.validation_loss) for each in found.history] == [(1, 0.5), (2, 0.3)]
    assert found.best == found.history[1]


def test_a_resumed_run_continues_from_what_the_checkpoint_knows():
    """The best epoch and the spikes before a restart would be forgotten."""
    known = (report(1, 0.5), report(2, np.nan))
    found = status(finished(1), events.Resumed(20, 3, 1, known, (diagnosis(2),)))
    assert found.history == list(known)
    assert found.best == known[0]
    assert [each.spike.epoch for each in found.diagnoses] == [2]


def test_the_outcome_of_a_spike_replaces_its_first_diagnosis():
    """A spike would be counted a second time when it is known how it ended, or stay open forever."""
    recovered = diagnosis(2, outcome="recovered", outcome_epoch=3)
    found = status(finished(2, news=News(diagnosis(2), ())), finished(3, news=News(None, (recovered,))))
    assert found.diagnoses == [recovered]


def test_the_first_failure_is_the_reason():
    """Other workers fail because the first one did; the user would read about their lost connection instead."""
    found = status(events.Failed("Storage does not answer.", True), events.Failed("Lost connection.", False))
    assert found.failure == events.Failed("Storage does not answer.", True)
    found.fail("Ray Train failed.")
    assert found.failure.message == "Storage does not answer."


def test_a_failure_after_the_last_epoch_says_that_training_is_not_lost():
    """The user would train all epochs again although only the export failed."""
    found = status(finished(1), events.Failed("No answer.", True), epochs=1)
    assert found.failure == events.Failed(
        "All 1 epochs are trained, but the model is not stored. Fix: run again under this name to resume from the last checkpoint. "
        "Cause: No answer.",
        True,
    )


def test_starts_and_the_end_are_noticed():
    """The driver would wait for workers that have ended, or not see that they were restarted."""
    started, end = events.Started(0, 0, 2, 12, True), events.Finished("completed", 3, SaveStats())
    found = status(started, started, end)
    assert found.starts == 2
    assert found.finished is end
    assert found.peak_memory is None
    assert status(finished(1)).peak_memory == 1e9


def test_a_run_that_goes_back_forgets_what_came_after():
    """After going back to the beginning, the abandoned epochs would stay in the log's best epoch and in the report."""
    diverged = events.Diverged(2, 2, "Training diverged in epoch 2.", "optimizer.learning_rate=1e-05", True)
    found = status(finished(1), finished(2, news=News(diagnosis(2), ())), diverged)
    assert found.diverged == diverged
    found.forget()
    assert (found.history, found.diagnoses, found.diverged) == ([], [], None)
    assert found.failure is None


def test_a_death_is_told_from_a_roll_back():
    """After every roll-back the log would say that a worker died; or a death after one would be kept secret."""
    started = events.Started(0, 0, 2, 12, True)
    found = status(started)
    assert not found.worker_died
    found.update(started)
    assert found.worker_died
    found.forget()
    found.update(started)
    assert not found.worker_died
    found.update(started)
    assert found.worker_died
