"""What a checkpoint holds, and the way back: with a real learner, diagnosis and folder."""

import json
import re
import shutil

import numpy as np
import pytest

from spikewise.diagnose import Diagnostician
from tests.support import training
from tests.support.epochs import report
from tests.trainer.engine.test_golden import SHAPE, _Rows
from trainer import UserError, config
from trainer.engine.distributed_network import DistributedNetwork
from trainer.engine.step import STEP_RECORD, records
from trainer.run.resume import Position, changes, plain_steps, resume, step_records, to_checkpoint
from trainer.storage import open_store
from trainer.storage.checkpoint import CheckpointError, Checkpoints

NETWORK = {"network": "tests.support.networks:tiny"}
"""Nothing here depends on it."""


class Worker:
    """The parts of a worker that a checkpoint is made of."""

    def __init__(self, folder) -> None:
        self.settings = training.settings(optimizer={"learning_rate": 1e-3}, model=NETWORK)
        self.learner = training.learner(self.settings, SHAPE)
        self.feed = training.feed(self.settings, _Rows(), np.arange(160))
        self.learner.resident = self.feed.load()
        network = DistributedNetwork(self.learner, self.feed, np.arange(160, 164), np.arange(4))
        self.diagnostician = Diagnostician(network, batch_size=32)
        self.checkpoints = Checkpoints(open_store(str(folder), config.S3()), "first", 5)
        self.position = Position()

    def train(self, steps):
        """Makes further steps of the current epoch; returns their records."""
        position = self.position
        batches = self.feed.batches(position.epoch, len(position.steps))
        made = records([self.learner.train(next(batches))[0] for _ in range(steps)])
        self.position = position.after(made)
        return made

    def save(self):
        step = int(self.learner.optimizer.iterations)
        self.checkpoints.save(step, *to_checkpoint(self.learner, self.position, self.diagnostician, self.settings.as_dict()))

    def resume(self, *, chief=True, broadcast=lambda step: step, step=None):
        found = resume(self.checkpoints, self.learner, self.diagnostician, chief=chief, broadcast=broadcast, step=step)
        if found:
            self.position = found.position
        return found


def test_a_run_resumed_inside_an_epoch_continues_exactly(tmp_path):
    """A resumed run would repeat or skip images, draw other dropout masks, or report another mean loss for the epoch."""
    first = Worker(tmp_path)
    first.train(5)
    first.position = first.position.next_epoch(report(1))
    first.train(2)
    first.save()
    undisturbed = first.train(3)

    second = Worker(tmp_path)
    found = second.resume()
    assert (found.step, second.position.epoch, len(second.position.steps)) == (7, 2, 2)
    assert second.position.history == [report(1)]
    assert found.settings == second.settings.as_dict()
    np.testing.assert_array_equal(second.train(3), undisturbed)
    np.testing.assert_array_equal(second.position.steps, first.position.steps)
    for name, values in first.learner.state().items():
        np.testing.assert_array_equal(second.learner.state()[name], values, err_msg=name)


def test_a_new_run_starts_at_the_beginning(tmp_path):
    """The first start of a run would fail for want of a checkpoint."""
    worker = Worker(tmp_path)
    assert worker.resume() is None
    assert (worker.position.epoch, len(worker.position.steps), worker.position.history) == (1, 0, [])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with the checkpoints of steps 1 and 2, and the learner's state after step 1."""
    worker = Worker(folder := tmp_path_factory.mktemp("stored"))
    worker.train(1)
    worker.save()
    state = worker.learner.state()
    worker.train(1)
    worker.save()
    return folder, state


def check(worker, state):
    for name, values in state.items():
        np.testing.assert_array_equal(worker.learner.state()[name], values, err_msg=name)


def test_all_workers_load_the_checkpoint_that_rank_0_found(stored):
    """A worker that sees a newer checkpoint, or a damaged one, would train with other weights than the others."""
    folder, state = stored
    other = Worker(folder)
    assert other.resume(chief=False, broadcast=lambda mine: 1 if mine is None else mine).step == 1
    check(other, state)


def test_a_replay_only_reads_the_checkpoint_that_it_names(stored, tmp_path):
    """The epochs after the spike would be trained again instead of the spike; or a replay of a run that is still training would
    take its checkpoints away from it."""
    folder, state = stored
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    run, other = Worker(tmp_path), Worker(tmp_path)
    assert run.resume().step == 2
    keys = [entry.key for entry in run.checkpoints._store.list()]
    never = lambda _: pytest.fail("all workers know the step")  # noqa: E731
    for chief in (True, False):
        assert other.resume(chief=chief, broadcast=never, step=1).step == 1
        check(other, state)
    with pytest.raises(CheckpointError, match="incomplete"):
        other.resume(broadcast=never, step=5)
    assert [entry.key for entry in run.checkpoints._store.list()] == keys
    run.learner.optimizer.iterations.assign(3)
    run.save()
    assert run.checkpoints.steps() == [1, 2, 3]


def test_a_checkpoint_holds_plain_arrays_and_json(tmp_path):
    """It could not be stored, or only with pickle, which can run code when it is loaded."""
    worker = Worker(tmp_path)
    worker.train(2)
    state, meta = to_checkpoint(worker.learner, worker.position, worker.diagnostician, worker.settings.as_dict(), 0.5)
    assert {array.dtype.kind for array in state.values()} <= set("biuf")
    assert state["epoch/steps/loss"].tolist() == worker.position.steps["loss"].tolist()
    assert json.loads(json.dumps(meta))["validation_loss"] == 0.5
    worker.train(1)
    assert len(state["epoch/steps/loss"]) == 2  # a copy: it is stored while training goes on


@pytest.mark.parametrize("count", [0, 3])
def test_step_records_survive_the_way_through_plain_arrays(count):
    """A resumed epoch would report losses as gradient norms."""
    steps = np.arange(float(len(STEP_RECORD) * count)).view(STEP_RECORD)
    np.testing.assert_array_equal(step_records(plain_steps(steps)), steps)


def test_changes_since_the_checkpoint_are_events(tmp_path):
    """A spike after a restart, a new learning rate or another number of workers would be called unexplained."""
    worker = Worker(tmp_path)
    worker.learner.optimizer.iterations.assign(2)
    worker.position = worker.position.after(np.zeros(2, STEP_RECORD))
    worker.save()
    found = worker.resume()
    (restart,) = changes(found, worker.settings, workers=1)
    assert (restart.kind, restart.epoch, restart.step) == ("restart", 1, 2)
    _, rate, size = changes(found, training.settings(optimizer={"learning_rate": 1e-4}, model=NETWORK), workers=2)
    assert (rate.kind, rate.before, rate.after) == ("learning_rate", 1e-3, 1e-4)
    assert (size.kind, size.before, size.after) == ("world_size", 1, 2)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, None),
        ({"training": {"epochs": 10, "learning_rate": 0.1}}, None),
        (None, "config has no sections"),
        ({"optimizer": 3}, "config has no sections"),
        ({"optimizer": {"learning_rate": "high"}}, "optimizer.learning_rate = 'high'"),
        ({"launch": {"workers": 0}}, "launch.workers = 0"),
    ],
)
def test_a_checkpoint_with_other_settings(tmp_path, settings, problem):
    """A checkpoint of another version, or a damaged one, would end each start of the run with a traceback."""
    worker = Worker(tmp_path)
    state, meta = to_checkpoint(worker.learner, worker.position, worker.diagnostician, worker.settings.as_dict())
    worker.checkpoints.save(1, state, meta | {"settings": settings})
    if problem is None:
        assert changes(worker.resume(), worker.settings, workers=1)
        return
    with pytest.raises(UserError, match=rf"step 1 does not describe a run \(.*{re.escape(problem)}.*\)\. Fix: "):
        worker.resume()


def test_a_changed_schedule_is_an_event(tmp_path):
    """A spike after training.epochs was raised, which lifts a cosine from 0, would be blamed on a lost state."""
    worker = Worker(tmp_path)
    cosine = {"learning_rate": 1e-3, "schedule": "cosine"}
    worker.settings = training.settings(optimizer=cosine, model=NETWORK, training={"epochs": 10})
    worker.save()
    found = worker.resume()
    assert len(changes(found, worker.settings, workers=1)) == 1
    _, rate = changes(found, training.settings(optimizer=cosine, model=NETWORK, training={"epochs": 20}), workers=1)
    assert (rate.kind, rate.before, rate.after) == ("learning_rate", None, None)
