"""What a Prover reads from storage, tries and stores. Its replays themselves run in tests/integration/test_replay.py."""

import math

import numpy as np
import pytest

from spikewise.records import Cause, Diagnosis
from tests.support import training
from tests.support.epochs import report
from tests.support.runs import diagnosis
from trainer import config
from trainer.run.console import Console, RunLog
from trainer.run.proving import Prover
from trainer.run.replay import ReplayError
from trainer.run.status import RunStatus
from trainer.storage import open_store, results
from trainer.storage.checkpoint import Checkpoints
from trainer.storage.lease import Lease, LeaseLost

IMAGES = 40
LOSSES = {epoch: np.linspace(0.4, 0.6, IMAGES, dtype=np.float32) + 1.5 * (epoch == 5) for epoch in range(1, 8)}
"""Seven epochs; the fifth is a spike."""


class Replays(Prover):
    """A Prover without workers: `outcomes` has what statistics and momentum do to the loss of epoch 5."""

    outcomes: dict[str, float]

    def _train(self, plan, settings, trial, asked=None):  # noqa: ARG002
        self.trials.append(trial)
        name = results.replay_name(self.run, plan.epoch, trial)
        results.put_start(self.storage, name, 0, {"settings": {}, "machine": {"processor": "B"}})
        if settings.model.momentum == 0.5:
            raise ReplayError("The change needs another state than the checkpoint holds. Fix: start another run.")
        shift = self.outcomes[f"{settings.model.statistics} {settings.model.momentum}"]
        return {epoch: LOSSES[epoch] + np.float32(shift * (epoch == 5)) for epoch in plan.recorded}, RunStatus(7)


@pytest.fixture
def prover(tmp_path):
    """Of a finished run, whose third and fourth epoch have checkpoints."""
    store = open_store(str(tmp_path), config.S3())
    settings = training.settings()
    results.put_run(store, "first", {"config": settings.as_dict(), "manifest": "x", "environment": {}})
    machine = {"processor": "A", "threads of a worker": "3"}
    results.put_start(store, "first", 1, {"settings": settings.as_dict(), "machine": machine})  # as report() says: restarts = 1
    for epoch, losses in LOSSES.items():
        results.put_epoch(store, "first", report(epoch), {"losses": losses})
    for step in (30, 40):
        Checkpoints(store, "first", 5).save(step, {"x": np.zeros(1)}, {})
    lease = Lease(store, "first/replays", 30)
    lease.fence.extend(math.inf)
    console, lines = Console(), []
    console.say = lines.append
    made = Replays("first", store, None, None, [""] * IMAGES, None, tmp_path, lease, RunLog(console, "first", 7))
    made.trials, made.lines = [], lines
    made.outcomes = {"moving None": 0.0, "moving 0.9": -0.8, "precise None": -1.5}
    return made


def spike(*settings, epoch=5, **changes):
    found = diagnosis(epoch, outcome="recovered", outcome_epoch=6, **changes).spike
    return Diagnosis(found, (Cause("batchnorm_statistics", 1, 1, 1, "", "", settings=settings),))


def test_a_plan_is_made_of_what_the_run_recorded(prover):
    """The control would be trained with other settings, threads or epochs than the run."""
    prover.where = ["launch.workers=2"]
    plan = prover.plan(5, spike().spike)
    assert (plan.start, plan.step, list(plan.epochs), plan.length) == (4, 40, [5, 6], 2)
    assert (plan.settings.launch.cpus_per_worker, plan.settings.launch.workers) == (3, 2)
    assert plan.machine["processor"] == "A"
    np.testing.assert_array_equal(plan.recorded[5], LOSSES[5])
    assert prover.plan(4, None).start == 3
    assert (prover.plan(2, None).start, prover.plan(2, None).step) == (0, 0)
    with pytest.raises(ReplayError, match=r"has no epoch 9: it has finished epochs 1 to 7\. Fix: name one of them\."):
        prover.plan(9, None)


def test_remedies_are_tried_until_one_is_proven(prover):
    """A user would wait for the remaining remedies, or get the first that helps a little."""
    changes = [
        ["data.group_by=x"],
        ["model.momentum=0.5"],
        ["model.momentum=0.9"],
        ["model.statistics=precise"],
        ["model.epsilon=0.1"],
    ]
    diagnosed = spike()
    found, _ = prover.experiment(prover.plan(5, diagnosed.spike), diagnosed, changes)
    assert [(proof.settings, proof.verdict) for proof in found.proofs] == [
        ("model.momentum=0.9", "helps in part"),
        ("model.statistics=precise", "proven"),
    ]
    assert prover.trials == ["control", "treatment-2", "treatment-3", "treatment-4"]
    assert found.skipped[0].startswith("Not tried: data.group_by=x changes which images train or validate")
    assert found.skipped[1].startswith("Not tried: model.momentum=0.5: The change needs another state")
    assert "control: epochs 5 to 6 as recorded, to the last bit" in prover.lines
    assert results.get_experiments(prover.storage, "first") == [found]


def test_nothing_is_tried_if_the_control_differs(prover):
    """The report would call a remedy proven that only another machine's rounding made seem so."""
    prover.outcomes["moving None"] = 1e-6
    diagnosed = spike()
    found, _ = prover.experiment(prover.plan(5, diagnosed.spike), diagnosed, [["model.statistics=precise"]])
    assert prover.trials == ["control"]
    assert found.proofs == ()
    assert "epoch 5 has other losses than recorded" in found.problem
    assert "processor: A then, B now" in found.problem


@pytest.mark.parametrize(("budget", "tried"), [(0.0, 0), (45.0, 0), (50.0, 1), (1000.0, 1)])
def test_no_remedy_is_tried_beyond_the_budget(prover, budget, tried):
    """A run of a minute would take hours more than the configuration allows."""
    prover.start_seconds = 20.0  # two trials of two epochs of 2 s: 48 s
    prover.prove_worst([spike("model.statistics=precise", "model.momentum=0.9")], 2.0, budget)
    assert len(results.get_experiments(prover.storage, "first")) == tried
    if not tried:
        assert prover.lines == [
            f"not proven: training the spike of epoch 5 again needs about 48 s, diagnosis.prove allows {budget:.0f} s; "
            f"python -m jobs.replay --run first --storage {prover.storage.url} --spike 5 does it."
        ]


def test_a_spike_is_not_proven_twice(prover):
    """A finished run that is submitted again would train its spikes again each time."""
    loss = float(np.mean(LOSSES[5], dtype=np.float64))
    diagnoses = [spike("model.statistics=precise", loss=loss), spike(epoch=3)]  # the second has no remedy that is a setting
    for _ in range(2):
        prover.prove_worst(diagnoses, 1.0, 1000.0)
    assert prover.trials == ["control", "treatment-1"]


def test_nothing_is_stored_without_the_lease(prover):
    """Two jobs that replay the same spike would overwrite each other's proof."""
    prover.lease.fence.lose()
    with pytest.raises(LeaseLost):
        prover.experiment(prover.plan(5, spike().spike), spike(), [])
    assert results.get_experiments(prover.storage, "first") == []
