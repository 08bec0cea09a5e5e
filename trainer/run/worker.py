"""What one worker does, top to bottom: the story of an epoch.

Every worker runs the same lines on its own part of each global batch. Rank 0 also stores results and reports to the driver, in the
background, so that neither delays training.

Shapes: n validation images, m images of the fixed training sample, K classes, s steps of an epoch.
"""

import logging
import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train.collective import broadcast_from_rank_zero

from spikewise.diagnose import Diagnostician, News
from spikewise.findings import Findings
from spikewise.records import Event
from trainer import UserError, config
from trainer.data.class_weights import class_weights
from trainer.data.loader import Feed
from trainer.data.shards import open_rows
from trainer.engine import devices
from trainer.engine.chunk import engine
from trainer.engine.distributed_network import DistributedNetwork
from trainer.engine.evaluate import evaluate
from trainer.engine.group import Group
from trainer.engine.step import Learner, StateError, finite
from trainer.epoch import EpochReport, best
from trainer.model.module import NetworkError
from trainer.run import divergence, events, ray_cluster
from trainer.run.fencing import WorkerFence
from trainer.run.finish import load_best, store_model
from trainer.run.mailbox import Outbox
from trainer.run.recording import Recorder
from trainer.run.replay import before_spikes, state_error
from trainer.run.resume import Position, changes, plain_steps, resume, to_checkpoint
from trainer.run.task import Task
from trainer.storage import StoreError, open_store, results
from trainer.storage.checkpoint import CheckpointError, Checkpoints

log = logging.getLogger(__name__)

PREEMPTION_STEPS = 32
"""Steps of several workers between two queries to Ray whether a node is about to leave. Each is a round trip of all workers (2 to
9 ms)."""
PREEMPTION_SECONDS = 1.0
"""Time between two such queries of a single worker."""
TRACE_BYTES = 2**28
"""The moving statistics of every step of an epoch are kept for the diagnosis if they take at most this many bytes."""


class TrainingError(UserError):
    """Training cannot continue, and a restart would not help."""


def work(task: Task) -> None:
    """Trains from the newest checkpoint to the last epoch, or makes the task's replay.

    Raises whatever ends a worker. Errors that a restart cannot fix are reported to the driver first.
    """
    if ray.get(task.mailbox.failed.remote()):  # Ray Train restarts the workers even after such an error
        return
    try:
        _Worker(task).run()
    except UserError as error:
        ray.get(task.mailbox.post.remote(events.Failed(str(error), error.transient)))
        raise


@dataclass(frozen=True)
class _Trained:
    """The steps of an epoch that this process has trained: all of them, or the remaining ones after a resume inside the epoch."""

    steps: int
    seconds: float


@dataclass(frozen=True)
class _Evaluated:
    """The evaluation at the end of an epoch, in inference mode."""

    losses: np.ndarray
    """[n], nats."""
    probabilities: np.ndarray
    """[n, K]."""
    sample_losses: np.ndarray
    """[m], nats."""


class _Worker:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.settings = settings = config.parse(task.settings)
        devices.configure(threads=task.threads, gpu=settings.launch.gpu, cache=Path(settings.pipeline.cache_dir))
        if task.module:
            task.module.install()
        self.fence = WorkerFence(task.mailbox, task.lease, settings.checkpoint.lease_seconds)
        self.fence.pause()
        self.store = open_store(settings.run.storage, settings.s3).guarded(self.fence.check)
        rows = open_rows(task.pack, self.store, Path(settings.pipeline.cache_dir), settings.pipeline.cache_max_bytes)
        training, self.validation = np.array(task.split.training), np.array(task.split.validation)
        self.test = np.array(task.split.test, int)
        sample = np.random.default_rng(settings.run.seed).permutation(training)
        self.sample = np.sort(sample[: settings.training.train_sample])
        self.labels = rows.labels[self.validation]
        self.test_labels = rows.labels[self.test]

        self.group = Group()
        self.chief = self.group.rank == 0
        self.feed = Feed(
            rows,
            training,
            batch_size=settings.training.batch_size,
            seed=settings.run.seed,
            memory_bytes=settings.pipeline.memory_bytes,
            augmentation=settings.augmentation,
            rank=self.group.rank,
            size=self.group.size,
        )
        self.learner = Learner(
            self.group,
            settings,
            task.pack.image_shape,
            len(task.pack.classes),
            steps=self.feed.steps,
            class_weights=class_weights(settings.training.class_weights, rows.labels[training], task.pack.classes),
        )
        if self.feed.resident:
            self.learner.resident = self.feed.load()
        self.engine = engine(self.learner, self.feed, trace_bytes=TRACE_BYTES)
        self.asked = -math.inf
        """time.monotonic() when a single worker last asked whether its node is about to leave."""
        self.network = DistributedNetwork(
            self.learner,
            self.feed,
            self.validation,
            self.sample,
            precise=settings.model.statistics == "precise",
        )
        self.diagnostician = Diagnostician(
            self.network,
            batch_size=settings.training.batch_size,
            groups=[rows.groups[row] for row in self.validation],
            keys=[rows.keys[row] for row in self.validation],
            labels=self.labels,
            momentum=self.learner.network.momentum,
            dropout=self.learner.network.dropout,
            budget=settings.diagnosis.budget,
            sensitivity=settings.diagnosis.sensitivity,
            validation_fraction=settings.data.validation_fraction if "" in rows.sides else float("nan"),
            settings={f"{section}.{key}": value for section, keys in settings.as_dict().items() for key, value in keys.items()},
        )
        self.replay = task.replay
        self.last = self.replay.last if self.replay else settings.training.epochs
        """The last epoch to train."""
        self.diagnosed = self.replay is None or self.replay.asked is not None
        self.diverged: events.Diverged | None = None
        """A divergence from which the run goes back."""
        run, lease = (self.replay.run, 0) if self.replay else (task.run, task.lease)  # a replay only reads
        self.checkpoints = Checkpoints(self.store, run, settings.checkpoint.keep_last, lease)
        self.recorder = Recorder(self.store, task.run)
        self.outbox = Outbox(task.mailbox, self.chief)
        self.position = Position()
        self.changes: list[Event] = []
        """What happened to the run since the last epoch ended, for the diagnosis."""
        self.restarts = self.recorder.count_start(self._start_facts) if self.chief else 0

    def run(self) -> None:
        self._check_network()
        self._resume()
        self._reconcile_records()
        if self.diverged:
            return
        step, feed = int(self.learner.optimizer.iterations), self.feed
        self.outbox.post(events.Started(step, self.restarts, self.group.size, feed.steps, feed.resident))
        outcome = "completed"
        while self.position.epoch <= self.last:
            if self._no_longer_improving():
                outcome = "stopped early"
                break
            began = time.perf_counter()
            trained = self._train_epoch()
            if trained is None:
                outcome = "interrupted"
                break
            self._close_epoch(trained, began)
            if self.diverged:
                return
        self._finish(outcome)

    def _start_facts(self) -> dict[str, Any]:
        """What a replay must know of this start."""
        machine = ray_cluster.environment(self.settings.launch) | devices.facts()
        return {"settings": self.task.settings, "machine": machine | {"threads of a worker": str(self.task.threads)}}

    def _check_network(self) -> None:
        """Raises NetworkError if the workers begin with different weights; warns of what depends on the number of workers."""
        if self.group.size > 1 and len(set(self.group.gather(self.learner.checksum()).ravel())) > 1:
            raise NetworkError(
                f"model.network = {self.settings.model.network!r} gives each worker other initial weights. Fix: use Keras' "
                "initializers and no random numbers of NumPy or TensorFlow without a seed."
            )
        if self.chief and self.group.size > 1:
            for line in self.learner.network.warnings():
                log.warning("%s", line)

    def _resume(self) -> None:
        step = self.replay.step if self.replay else None
        if step == 0:  # a replay from the initial weights
            return
        self.fence.pause()  # claiming writes, and building the network took a while
        try:
            found = resume(
                self.checkpoints, self.learner, self.diagnostician, chief=self.chief, broadcast=broadcast_from_rank_zero, step=step
            )
        except StateError as error:
            raise TrainingError(state_error(str(error))) if self.replay else error from None
        if found is None:
            return
        self.position = found.position
        self._keep_before_spikes()
        if self.replay:  # where the first step would be with the replay's batch size; the learning rate depends on it
            self.learner.optimizer.iterations.assign((self.position.epoch - 1) * self.feed.steps)
            try:  # statistics with a higher momentum would else be those of the run for hundreds of steps
                self.learner.assign_moving(self.diagnostician.statistics_of_another_momentum())
            except ValueError as error:
                raise TrainingError(state_error(str(error))) from None
            return
        self.changes = changes(found, self.settings, workers=self.group.size)
        history, diagnoses = tuple(self.position.history), tuple(self.diagnostician.diagnoses)
        self.outbox.post(events.Resumed(found.step, self.position.epoch, self.restarts, history, diagnoses))
        if self.settings.diagnosis.on_divergence == "roll_back":  # the run may have diverged while it was none
            self._act_on_divergence(divergence.still(diagnoses, history, self.settings.optimizer.learning_rate))

    def _keep_before_spikes(self) -> None:
        most = self.settings.checkpoint.keep_spikes
        self.checkpoints.keep(before_spikes(self.position.history, self.diagnostician.diagnoses, most))

    def _reconcile_records(self) -> None:
        if not self.chief or self.replay:
            return
        known = self.position.history and self.diagnostician.detector.epoch == len(
            self.position.history
        )  # otherwise it has failed at least once
        self.recorder.reconcile(self.position.history, self.diagnostician.findings if known else None)

    def _no_longer_improving(self) -> bool:
        patience, history = self.settings.training.early_stopping, self.position.history
        lowest = best(history)
        return bool(patience) and not self.replay and lowest is not None and history[-1].epoch - lowest.epoch >= patience

    def _train_epoch(self) -> _Trained | None:
        """Trains the remaining steps of the epoch. Returns None after a request to stop, with a checkpoint saved."""
        epoch, start, steps = self.position.epoch, len(self.position.steps), self.feed.steps
        snapshots = self.diagnostician.snapshots(steps) if self.diagnosed else frozenset()
        ends = sorted(snapshots | {steps})
        saved = False
        self.network.begin(epoch)
        self.feed.waited = 0.0
        began = time.perf_counter()
        self.engine.begin(epoch, start)
        while (done := self.engine.done) < steps:
            self.fence.pause()
            preempted = not saved and self._asks(done - start) and ray.train.get_preemption_info() is not None
            end = next(end for end in ends if end > done)
            seen = self.engine.train(end, stop=self.outbox.stop, save=preempted)
            done = self.engine.done
            if done in snapshots:
                self.diagnostician.snapshot(done)
            self.outbox.post_progress(epoch, done, steps)
            if float(seen.stop):
                self._save_inside_epoch(self._position_now())
                return None
            if not saved and float(seen.save):  # a node is about to leave: keep what is done so far
                saved = True
                self._save_inside_epoch(self._position_now())
        self.position = self._position_now()
        return _Trained(steps - start, time.perf_counter() - began)

    def _asks(self, trained: int) -> bool:
        """Whether to ask Ray before the next step if a node is about to leave, after `trained` steps of this process in this epoch.
        Several workers ask at the same steps, because they wait for each other."""
        if self.group.size > 1:
            return trained % PREEMPTION_STEPS == 0
        now = time.monotonic()
        if now - self.asked < PREEMPTION_SECONDS:
            return False
        self.asked = now
        return True

    def _position_now(self) -> Position:
        return self.position.after(self.engine.records(), self.engine.trace())

    def _save_inside_epoch(self, position: Position) -> None:
        """Best effort: a failure here loses this epoch, not the run."""
        self.learner.average_statistics()
        if not self.chief or self.replay:
            return
        step = int(self.learner.optimizer.iterations)
        try:
            if not finite(position.steps).all():  # no run could recover from such weights
                raise CheckpointError("the loss or the weights are NaN or infinite")
            self.checkpoints.save(step, *to_checkpoint(self.learner, position, self.diagnostician, self.task.settings))
            self.outbox.post(events.CheckpointSaved(step, self.checkpoints.stats))
        except (CheckpointError, StoreError) as error:
            log.warning("no checkpoint was saved inside epoch %d: %s", position.epoch, error)

    def _close_epoch(self, trained: _Trained, began: float) -> None:
        """Evaluates, diagnoses, records, saves and reports the epoch. Raises TrainingError when training has diverged and the run
        neither goes on nor goes back."""
        if self.checkpoints.superseded.is_set():
            raise RuntimeError("another worker saves the run's checkpoints")  # no UserError: that would end the run of that worker
        self.learner.average_statistics()
        with self.network.as_evaluated():
            losses, probabilities = evaluate(self.learner, self.feed, self.validation)
            evaluated = _Evaluated(losses, probabilities, evaluate(self.learner, self.feed, self.sample)[0])
        checksum = self.learner.checksum() if self.group.size > 1 else 0.0  # reads all weights
        waits, memory, checksums = self.group.gather(self.feed.waited / trained.seconds, _peak_memory(), checksum).T
        same = len(set(checksums.view(np.int64))) == 1
        assert same, f"the workers' weights differ after epoch {self.position.epoch}: {checksums}"

        steps = self.position.steps
        report = self._report(trained, evaluated, float(waits.max()), began)
        news = self._diagnose(evaluated) if self.diagnosed else None
        findings = None if news is None else self.diagnostician.findings
        self.position = self.position.next_epoch(report)
        if self.chief:
            self._record(report, evaluated, steps, findings)
            if finite(steps).all() and not self.replay:  # otherwise no run could recover from the newest checkpoint
                state = to_checkpoint(self.learner, self.position, self.diagnostician, self.task.settings, report.validation_loss)
                self._keep_before_spikes()
                self.checkpoints.save_in_background(report.step, *state)
        self.outbox.post(
            events.EpochFinished(
                report=report,
                input_waits=tuple(waits.tolist()),
                peak_memory=float(memory.max()),
                news=news,
                overfitting=findings.overfitting if findings else None,
                standing=findings.standing if findings else (),
                checkpoint=self.checkpoints.stats,
                requests=events.Requests.of(self.store),
            )
        )
        self._act_on_divergence(divergence.find(news, report, finite(steps), self.settings.optimizer.learning_rate))

    def _act_on_divergence(self, found: events.Diverged | None) -> None:
        """Raises TrainingError if the divergence ends the run; sets `diverged` if the run has to go back."""
        policy = self.settings.diagnosis.on_divergence
        if found is None or (policy == "none" and found.finite):
            return
        if self.replay:
            self.last = self.last if found.finite else found.found
            return
        self._flush()
        if policy == "roll_back":
            self.diverged = found
            if self.chief:
                ray.get(self.task.mailbox.post.remote(found))
            return
        raise TrainingError(divergence.fix(found, self.settings.optimizer.learning_rate))

    def _report(self, trained: _Trained, evaluated: _Evaluated, input_wait: float, began: float) -> EpochReport:
        """`input_wait`: of the slowest worker. `began`: time.perf_counter() when the epoch began."""
        steps, batch = self.position.steps, self.settings.training.batch_size
        return EpochReport(
            epoch=self.position.epoch,
            step=int(self.learner.optimizer.iterations),
            train_loss=float(np.mean(steps["loss"])),
            regularization=float(np.mean(steps["regularization"])),
            train_accuracy=float(np.mean(steps["correct"]) / batch),
            train_loss_inference=float(np.mean(evaluated.sample_losses, dtype=np.float64)),
            validation_loss=float(np.mean(evaluated.losses, dtype=np.float64)),
            validation_accuracy=float(np.mean(np.argmax(evaluated.probabilities, -1) == self.labels)),
            learning_rate=float(steps["learning_rate"][-1]),
            gradient_norm=float(np.mean(steps["gradient_norm"])),
            update_norm=float(np.mean(steps["update_norm"])),
            images_per_second=trained.steps * batch / trained.seconds,
            input_wait=input_wait,
            step_seconds=trained.seconds / max(trained.steps, 1),
            seconds=time.perf_counter() - began,
            restarts=self.restarts,
        )

    def _diagnose(self, evaluated: _Evaluated) -> News | None:
        """Passes the epoch to the diagnosis; None if that fails. All workers do so with the same numbers, and probe together."""

        def predict(images: Sequence[int]) -> dict[int, tuple[str, str, float]]:
            """Validation images -> label, prediction, and its probability."""
            classes, probabilities = self.task.pack.classes, evaluated.probabilities
            found = np.argmax(probabilities, -1)
            return {i: (classes[self.labels[i]], classes[found[i]], float(probabilities[i, found[i]])) for i in images}

        try:
            return self.diagnostician.close_epoch(
                evaluated.losses,
                evaluated.sample_losses,
                self.position.steps,
                learning_rate=self.settings.optimizer.learning_rate,
                events=self.changes,
                predict=predict,
                trace=None if self.position.trace is None else self.learner.average(self.position.trace),
                asked=self.replay is not None and self.replay.asked == self.position.epoch,
                final=self.position.epoch == self.settings.training.epochs,
            )
        except ray.exceptions.RayError:
            raise
        except Exception as error:  # a failed diagnosis must not end training
            if self.chief:  # the other workers meet the same error
                log.exception("the diagnosis of epoch %d failed: %r", self.position.epoch, error)
            return None
        finally:
            self.changes = []

    def _record(self, report: EpochReport, evaluated: _Evaluated, steps: np.ndarray, findings: Findings | None) -> None:
        arrays = {
            "losses": evaluated.losses,
            "probabilities": evaluated.probabilities,
            "sample": evaluated.sample_losses,
            **{name: values.astype(np.float32) for name, values in plain_steps(steps, "steps/").items()},
        }
        self.recorder.record(report, arrays, findings)

    def _flush(self) -> None:
        """Waits for the records and checkpoints that are still being stored."""
        self.recorder.close()
        self.checkpoints.close()

    def _finish(self, outcome: str) -> None:
        """Stores what is still missing, evaluates the test set, stores the model last, and reports the end of the run. Of a replay,
        only its epochs are stored."""
        self.fence.pause()
        if self.chief:
            self._flush()
            self._reconcile_records()
        history = self.position.history
        epoch = history[-1].epoch if history else 0
        tested = None
        if outcome != "interrupted" and not self.replay:
            if self.settings.training.keep == "best":
                epoch = load_best(self.learner, self.checkpoints, history, chief=self.chief, broadcast=broadcast_from_rank_zero)
            self.learner.assume_evaluated()
            tested = self._test(epoch)
            if self.chief:
                pack = self.task.pack
                store_model(self.learner, pack.image_shape, pack.classes, self.settings.model, self.store, self.task.run)
        if self.chief:
            ray.get(self.task.mailbox.post.remote(events.Finished(outcome, epoch, self.checkpoints.stats, tested)))

    def _test(self, epoch: int) -> events.Tested | None:
        """Evaluates the test set with the current weights, those of `epoch`; None without a test set. All workers call it together.
        Raises StoreError."""
        if not len(self.test):
            return None
        losses, probabilities = evaluate(self.learner, self.feed, self.test)
        if self.chief:
            results.put_test(self.store, self.task.run, epoch, losses, probabilities)
        accuracy = np.mean(np.argmax(probabilities, -1) == self.test_labels)
        return events.Tested(len(self.test), float(np.mean(losses, dtype=np.float64)), float(accuracy))


def _peak_memory() -> float:
    """The largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
