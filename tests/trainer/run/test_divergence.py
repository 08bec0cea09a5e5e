"""Divergence: what counts as one, and where the run goes back to."""

import json

import numpy as np
import pytest

from spikewise.diagnose import News
from spikewise.records import Cause, Diagnosis
from tests.support import training
from tests.support.epochs import report
from tests.support.runs import diagnosis
from trainer import config
from trainer.run import divergence

RATE = 1e-3
FINE = np.ones(10, bool)


def diverged(epoch, settings=("optimizer.learning_rate=0.0001",), **spike):
    spike = {"outcome": "divergence", "outcome_epoch": epoch} | spike
    return Diagnosis(diagnosis(epoch, **spike).spike, (Cause("divergence", 1, 1, 1, "", "", settings=settings),))


def test_a_spike_that_recovers_is_no_divergence():
    """A run would be ended, or thrown back, by what does it no harm."""
    assert divergence.find(None, report(5), FINE, RATE) is None
    assert divergence.find(News(diagnosis(5), ()), report(5), FINE, RATE) is None
    assert divergence.find(News(None, (diagnosis(4, outcome="level shift", outcome_epoch=9),)), report(9), FINE, RATE) is None


def test_a_divergence_that_is_known_later_goes_back_before_its_first_epoch():
    """The run would go back to weights that are lost already."""
    found = divergence.find(News(None, (diverged(4, outcome_epoch=9),)), report(9), FINE, RATE)
    assert (found.epoch, found.found, found.settings, found.finite) == (4, 9, "optimizer.learning_rate=0.0001", True)
    assert found.what == (
        "Training diverged in epoch 4: the validation loss is 2.000 where 0.500 was expected, and has not recovered by epoch 9."
    )
    history = [report(epoch) for epoch in range(1, 10)]
    assert divergence.roll_back(found, history, {20, 80}, training.settings())["to_epoch"] == 2  # the one before is gone
    back = divergence.roll_back(found, history, {20, 30, 80}, training.settings())
    assert (back["to_epoch"], back["to_step"]) == (3, 30)
    assert json.loads(json.dumps(back)) == back
    assert divergence.line(back, 1, 2).endswith(
        "Went back to the end of epoch 3 with optimizer.learning_rate=0.0001 (1 of at most 2 times)."
    )


def test_weights_that_are_not_finite_are_a_divergence_without_a_diagnosis():
    """A run whose diagnosis failed would train on with NaN."""
    found = divergence.find(None, report(1), np.arange(10) < 6, RATE)
    assert (found.epoch, found.finite, found.settings) == (1, False, "optimizer.learning_rate=0.0001")
    assert found.what == "The loss or the weights are NaN or infinite in epoch 1 from step 7 on."
    back = divergence.roll_back(found, [report(1)], (), training.settings())
    assert (back["to_epoch"], back["to_step"]) == (0, 0)
    assert "Went back to the beginning" in divergence.line(back, 1, 2)
    assert "Fix: lower optimizer.learning_rate (now 0.001)" in divergence.fix(found, RATE)


def test_a_remedy_that_a_resumed_run_may_not_take_is_passed_over():
    """The run would refuse its own settings when it is started again."""
    found = divergence.find(News(diverged(5, ("model.momentum=0.9", "optimizer.clip_norm=1")), ()), report(5), FINE, RATE)
    assert found.settings == "optimizer.clip_norm=1"
    none = divergence.find(News(diverged(5, ("model.momentum=0.9",)), ()), report(5), FINE, RATE)
    assert none.settings == "optimizer.learning_rate=0.0001"


def test_settings_of_roll_backs_add_up_unless_a_person_changes_them():
    """A job that is started again from its file would diverge again; or a user could not set the learning rate any more."""
    settings = training.settings(optimizer={"learning_rate": RATE})
    backs = []
    for epoch, remedy in ((5, "optimizer.learning_rate=0.0001"), (7, "optimizer.learning_rate=1e-05 optimizer.clip_norm=1.0")):
        found = divergence.find(News(diverged(epoch, (remedy,)), ()), report(epoch), FINE, RATE)
        backs.append(divergence.roll_back(found, [report(epoch)], (), settings))
        settings = divergence.with_roll_backs(settings, backs[-1:])
    assert (settings.optimizer.learning_rate, settings.optimizer.clip_norm) == (1e-5, 1.0)
    assert divergence.with_roll_backs(training.settings(optimizer={"learning_rate": RATE}), backs) == settings
    changed = divergence.with_roll_backs(training.settings(optimizer={"learning_rate": 3e-4}), backs)
    assert (changed.optimizer.learning_rate, changed.optimizer.clip_norm) == (3e-4, 1.0)
    config.check_resumable(settings, training.settings(optimizer={"learning_rate": RATE}).as_dict(), "first")


def test_roll_backs_of_another_version():
    """A run that went back would not start again after an update that renames the setting which it had changed."""
    back = {"settings": "training.speed=0.1 optimizer.clip_norm=1", "before": {"training.speed": 1.0, "optimizer.clip_norm": None}}
    assert divergence.with_roll_backs(training.settings(), [back]).optimizer.clip_norm == 1.0


@pytest.mark.parametrize(("loss", "still"), [(2.0, True), (np.nan, True), (0.6, False)])
def test_a_resumed_run_goes_back_only_if_it_is_still_lost(loss, still):
    """A run that has long recovered would be thrown back; or one that is resumed to go back would train on with lost weights."""
    history = [*(report(epoch) for epoch in range(1, 12)), report(12, loss)]
    found = divergence.still([diagnosis(2), diverged(4, outcome_epoch=9)], history, RATE)
    assert (found is not None and found.epoch == 4) == still
    assert divergence.still([diagnosis(2)], history, RATE) is None
