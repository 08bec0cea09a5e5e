"""Trains spikes again with Ray Train, as the run itself was trained, and judges what that proves.

Separation of concerns: `replay` plans, `spikewise.proof` judges, the workers are those of a run (worker.py). Records go to
`runs/<run>/replays/`; nothing else of the run is written, and its checkpoints are only read.
"""

import dataclasses as dc
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from spikewise import proof
from spikewise.detect import Resampler
from spikewise.proof import Experiment
from spikewise.records import Diagnosis, Spike
from trainer import UserError, config
from trainer.data.dataset import Pack, Split
from trainer.model.module import Module
from trainer.run import ray_cluster, replay
from trainer.run.console import RunLog
from trainer.run.events import Started, WorkerEvent
from trainer.run.mailbox import listen, start_mailbox
from trainer.run.ray_train import WorkerGroup
from trainer.run.replay import Plan, ReplayError
from trainer.run.status import RunStatus
from trainer.run.task import Replay, Task
from trainer.storage import Store, results
from trainer.storage.checkpoint import Checkpoints
from trainer.storage.lease import Lease

END_SECONDS = 60.0
"""Longest wait for Ray Train to notice that a replay has failed for good."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """A stop was requested during a replay."""


@dataclass
class Prover:
    """Replays epochs of one run. Ray must be connected."""

    run: str
    storage: Store
    pack: Pack
    split: Split
    groups: Sequence[str]
    """Of the validation images [n]."""
    module: Module | None
    output: Path
    """Local folder for Ray Train's own files."""
    lease: Lease
    """On the run's name or on the replays of one epoch: the workers write while it is valid."""
    log: RunLog
    """Of the run, or of a replay of its own."""
    where: Sequence[str] = ()
    """Overrides that say where to train, for control and treatments."""
    stop: threading.Event = field(default_factory=threading.Event)
    hear: Callable[[WorkerEvent], None] = lambda _: None
    """Called with each event of a replay's workers."""
    start_seconds: float = 0.0
    """How long the last start of workers took."""

    @property
    def _records(self) -> Store:
        return self.storage.guarded(self.lease.fence.check)

    def plan(self, epoch: int, spike: Spike | None) -> Plan:
        """What to train again for `spike`, or to diagnose `epoch`. Raises ReplayError if it is not recorded; StoreError."""
        history = results.get_history(self.storage, self.run)
        report = next((report for report in history if report.epoch == epoch), None)
        facts = results.get_run(self.storage, self.run)
        if report is None or facts is None:
            finished = f"has finished epochs 1 to {history[-1].epoch}" if history else "has not finished an epoch"
            raise ReplayError(f"Run {self.run} has no epoch {epoch}: it {finished}. Fix: name one of them.")
        begun = results.get_start(self.storage, self.run, report.restarts)
        settings = config.parse(begun["settings"] if begun else facts["config"], f"run {self.run}")
        threads = int(begun["machine"].get("threads of a worker", 0)) if begun else settings.launch.cpus_per_worker
        settings = config.changed(settings, [f"launch.cpus_per_worker={threads}", *self.where])
        stored = Checkpoints(self.storage, self.run, 1).steps()
        begin, step = replay.start(history, stored, epoch)
        last = replay.last_epoch(spike, history) if spike else epoch
        recorded = {each: self._losses(self.run, each) for each in range(begin + 1, last + 1)}
        if recorded[epoch] is None:
            raise ReplayError(f"The losses of epoch {epoch} of run {self.run} are not stored. Fix: name another epoch.")
        known = {each: losses for each, losses in recorded.items() if losses is not None}
        return Plan(epoch, last, begin, step, settings, begun["machine"] if begun else None, known)

    def _losses(self, name: str, epoch: int) -> np.ndarray | None:
        """The recorded losses [n] of an epoch; None if they are missing or of other images. Raises StoreError."""
        arrays = results.get_arrays(self.storage, name, epoch)
        return results.of_images(arrays, len(self.groups)).get("losses")

    def experiment(
        self,
        plan: Plan,
        diagnosis: Diagnosis | None,
        changes: Sequence[Sequence[str]],
        *,
        asked: bool = False,
        affordable: Callable[[], bool] = lambda: True,
    ) -> tuple[Experiment, Diagnosis | None]:
        """Trains the epochs again, first with nothing changed, then with each of `changes` until one is proven.

        `asked`: the control diagnoses the plan's epoch, and `diagnosis` becomes what it finds. `affordable()`: asked before each
        change but the first. Returns what was found, which is also stored, and the diagnosis.

        Raises ReplayError and other UserErrors of the control, and Interrupted.
        """
        began = time.monotonic()
        control, status = self._train(plan, plan.settings, "control", asked=plan.epoch if asked else None)
        if asked:
            diagnosis = next((one for one in status.diagnoses if one.spike.epoch == plan.epoch), None)
        loss = float(np.mean(plan.recorded[plan.epoch], dtype=np.float64))
        means = tuple(float(np.mean(control[epoch], dtype=np.float64)) for epoch in plan.epochs)
        found = Experiment(plan.epoch, diagnosis.spike.loss if diagnosis else loss, plan.start, tuple(plan.epochs), means)
        problem = self._problem(plan, control)
        self.log.say(problem or f"control: {plan.trained} as recorded, to the last bit")
        if diagnosis and not problem:
            found = self._try(plan, found, diagnosis.spike, changes, control, affordable)
        found = dc.replace(found, problem=problem, seconds=time.monotonic() - began)
        earlier = {one.epoch: one for one in results.get_experiments(self.storage, self.run)}
        found = proof.merged(earlier.get(found.epoch), found)
        results.put_experiment(self._records, self.run, found)
        return found, diagnosis

    def _try(
        self,
        plan: Plan,
        found: Experiment,
        spike: Spike,
        changes: Sequence[Sequence[str]],
        control: dict[int, np.ndarray],
        affordable: Callable[[], bool],
    ) -> Experiment:
        """`found` with what the changes did, until one is proven. `control`: the losses [n] of each epoch with nothing changed."""
        resampler = Resampler(len(self.groups), self.groups)
        proofs: list[proof.Proof] = []
        skipped: list[str] = []
        for number, change in enumerate(changes, 1):
            if proofs and (proofs[-1].verdict == "proven" or not affordable()):
                break
            label = " ".join(change)
            try:
                treatment, _ = self._train(plan, replay.treated(plan.settings, change), f"treatment-{number}")
            except UserError as error:
                skipped.append(f"Not tried: {error}" if change[0] in str(error) else f"Not tried: {label}: {error}")
                self.log.say(skipped[-1])
                continue
            one, other = (np.array([losses[epoch] for epoch in plan.epochs]) for losses in (control, treatment))
            proofs.append(proof.judge(spike, label, one, other, resampler))
            self.log.say(proof.sentence(found, proofs[-1]))
        return dc.replace(found, proofs=tuple(proofs), skipped=tuple(skipped))

    def prove_worst(self, diagnoses: Sequence[Diagnosis], epoch_seconds: float, budget: float) -> None:
        """Tries the remedies of the worst spikes that were not trained again yet, as many as `budget` seconds allow.

        `epoch_seconds`: what an epoch takes.

        Raises as `experiment` does.
        """
        began = time.monotonic()

        def left(length: int, trials: int) -> float:
            """The seconds that would be left after further trials of `length` epochs."""
            return budget - (time.monotonic() - began) - trials * (self.start_seconds + length * epoch_seconds)

        def affordable(length: int) -> bool:
            return left(length, 1) >= 0

        tried = results.get_experiments(self.storage, self.run)
        for diagnosis in replay.worst_first(diagnoses):
            remedies = replay.remedies(diagnosis)
            if not remedies or any(one.is_about(diagnosis.spike) for one in tried):
                continue
            plan = self.plan(diagnosis.spike.epoch, diagnosis.spike)
            if left(plan.length, 2) < 0:  # a control and a treatment
                needs = left(plan.length, 0) - left(plan.length, 2)
                self.log.not_proven(plan.epoch, needs, max(left(0, 0), 0), self.storage.url)
                continue
            self.log.say(f"proving the remedy of the spike in epoch {plan.epoch}: training {plan.trained} again")
            found, _ = self.experiment(plan, diagnosis, remedies, affordable=partial(affordable, plan.length))
            if found.problem:
                return

    def _problem(self, plan: Plan, control: dict[int, np.ndarray]) -> str | None:
        """Why the control proves nothing; None if it is equal to the record."""
        found = proof.mismatch(plan.recorded, control)
        if found is None:
            return None
        now = results.get_start(self.storage, results.replay_name(self.run, plan.epoch, "control"), 0)
        return replay.why_different(found, plan.machine, now["machine"] if now else None, len(self.groups))

    def _train(
        self, plan: Plan, settings: config.Settings, trial: str, asked: int | None = None
    ) -> tuple[dict[int, np.ndarray], RunStatus]:
        """Trains the plan's epochs with `settings`. Returns the losses [n] of each (NaN after a divergence), and the status.

        Raises UserError when the workers fail, and Interrupted.
        """
        name = results.replay_name(self.run, plan.epoch, trial)
        results.clear_replay(self._records, name)
        began = time.monotonic()
        mailbox, status = start_mailbox(self.lease), RunStatus(plan.last)
        job = Replay(self.run, plan.step, plan.last, asked)
        cores = ray_cluster.cores_for_a_worker(settings.launch)
        task = Task(name, settings.as_dict(), self.pack, self.split, mailbox, cores, self.lease.fence.number, self.module, job)
        self.log.phase("starting the workers, which import TensorFlow")
        workers, stopping = WorkerGroup(task, settings.launch, self.output), False
        for events in listen(mailbox, workers):
            for event in events:
                status.update(event)
                self.log.hear_replay(event)
                self.hear(event)
                if isinstance(event, Started):
                    self.start_seconds = time.monotonic() - began
            if status.failure:
                break
            if self.lease.lost.is_set():
                raise ReplayError(
                    "Another job has taken over, so this one ends and writes nothing more. Fix: start only one of them."
                )
            if self.stop.is_set() and not stopping:
                if not status.starts:
                    raise Interrupted
                stopping = True
                mailbox.request_stop.remote()
        if status.failure:
            workers.wait(END_SECONDS)
            raise ReplayError(status.failure.message, transient=status.failure.transient)
        if self.stop.is_set():
            raise Interrupted
        if not status.finished:
            raise ReplayError(workers.failure or "The workers exited without reporting an error. Fix: replay again.")
        losses = {epoch: np.full(len(self.groups), np.nan, np.float32) for epoch in range(plan.start + 1, plan.last + 1)}
        for report in status.history:
            found = self._losses(name, report.epoch)
            if found is None:
                raise ReplayError(f"The losses of the replay are not in {self.storage.url}. Fix: replay again.", transient=True)
            losses[report.epoch] = found
        return losses, status
