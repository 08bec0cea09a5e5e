"""What one worker does, top to bottom. The only place that knows the order of an epoch.

Every worker runs the same lines on its own part of each global batch; rank 0 also writes and tells. What a worker tells the head
goes through the mailbox and never holds up training.

Shapes: n validation images, m images of the fixed training sample, K classes, s steps of an epoch.
"""

import logging
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.collective

from spikewise.diagnose import Diagnostician, News
from spikewise.records import Diagnosis, Event, Overfitting
from trainer import UserError, config
from trainer.data.loader import Feed
from trainer.data.shards import open_rows
from trainer.engine.distributed_network import TrainedNetwork
from trainer.engine.group import Group
from trainer.engine.step import Learner, StepStats
from trainer.epoch import EpochReport
from trainer.epoch import best as best_epoch
from trainer.model.export import export
from trainer.run.task import Task
from trainer.storage import StoreError, open_store, results
from trainer.storage.checkpoint import CheckpointError, Checkpoints

log = logging.getLogger(__name__)

MEMORY = "diagnosis/"
"""Begins the names of the diagnosis' arrays in a checkpoint."""
LAG = 4
"""Steps after which a step's numbers are looked at, so that a GPU is never waited for."""
LOOK = 32
"""Steps between two questions to Ray whether a node is about to go: each is a round trip of all workers (2 to 9 ms)."""
PROGRESS_SECONDS = 1.0


class TrainingError(UserError):
    """Training cannot go on, and starting it again would not help; one line."""


def work(task: Task) -> None:
    """Trains from the newest checkpoint to the last epoch. Raises what ends a worker; what a restart would not mend is told to
    the head first."""
    if ray.get(task.mailbox.failed.remote()):  # Ray starts workers again that have failed for good
        return
    try:
        _Worker(task).run()
    except UserError as error:
        ray.get(task.mailbox.post.remote({"kind": "failed", "message": str(error), "transient": error.transient}))
        raise


class _Worker:
    def __init__(self, task: Task) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(task.threads)
        self.task = task
        self.settings = config.parse(task.settings)
        gpus = tf.config.list_physical_devices("GPU")
        if self.settings.launch.gpu and not gpus:  # it would train on the cores, without a word
            raise TrainingError(
                f"launch.gpu = true, but TensorFlow {tf.__version__} sees no GPU: use an image built with VARIANT=gpu (elsewhere "
                "pip install 'spikewise[gpu]'), and an NVIDIA driver new enough for its CUDA"
            )
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        self.store = open_store(self.settings.run.storage, self.settings.s3)
        rows = open_rows(task.pack, self.store, Path(self.settings.pipeline.cache_dir))
        self.validation = np.array(task.split.validation)
        training = np.array(task.split.training)
        sample = np.random.default_rng(self.settings.run.seed).permutation(training)
        self.sample = np.sort(sample[: self.settings.training.train_sample])

        self.group = Group()
        self.chief = self.group.rank == 0
        self.learner = Learner(self.group, self.settings, task.pack.image_shape, len(task.pack.classes))
        self.feed = Feed(
            rows,
            training,
            batch_size=self.settings.training.batch_size,
            seed=self.settings.run.seed,
            memory_bytes=self.settings.pipeline.memory_bytes,
            flip=self.settings.pipeline.flip,
            shift=self.settings.pipeline.shift,
            rank=self.group.rank,
            size=self.group.size,
        )
        if self.feed.resident:
            self.learner.resident = self.feed.load()
        self.checkpoints = Checkpoints(self.store, task.run, self.settings.checkpoint.keep_last)
        self.records = ThreadPoolExecutor(1, thread_name_prefix="epoch-records")
        self.line = _Line(task.mailbox, self.chief)
        self.network = TrainedNetwork(self.learner, self.feed, lambda: self._evaluate(self.validation)[0])
        self.diagnostician = Diagnostician(
            self.network,
            batch_size=self.settings.training.batch_size,
            groups=[rows.groups[row] for row in self.validation],
            keys=[rows.keys[row] for row in self.validation],
            labels=rows.labels[self.validation],
            momentum=self.settings.model.momentum,
        )
        self.events: list[Event] = []

        self.history: list[EpochReport] = []
        self.restarts = 0
        self.epoch, self.done = 1, np.zeros((0, len(StepStats._fields)))
        """The epoch under way and the StepStats [s, 7] of its steps so far."""

    def run(self) -> None:
        self._resume()
        self._mend_records()
        here = {"workers": self.group.size, "steps": self.feed.steps, "resident": self.feed.resident}
        step = int(self.learner.optimizer.iterations)
        self.line.tell({"kind": "started", "step": step, "restarts": self.restarts, **here})
        outcome = "completed"
        while self.epoch <= self.settings.training.epochs:
            if self._no_longer_improving():
                outcome = "stopped early"
                break
            began = time.perf_counter()
            if not self._train_epoch():
                outcome = "interrupted"
                break
            self._close_epoch(began)
        self._finish(outcome)

    def _resume(self) -> None:
        """Takes the newest valid checkpoint over, in this order:
        1. rank 0 finds it, so that all workers take the same one;
        2. weights, statistics, optimizer (its step count places the dropout masks);
        3. history, epoch and the steps already made in it (they place the order of the images).
        """
        try:
            self.restarts = results.count_start(self.store, self.task.run) if self.chief else 0
        except StoreError as error:  # training does not die of its monitoring
            log.warning("this start was not counted: %s", error)
        found = self.checkpoints.latest() if self.chief else None
        step = ray.train.collective.broadcast_from_rank_zero(found.step if found else None)
        if step is None:
            return
        _, state, meta = found or self.checkpoints.load(step)
        self.done = state.pop("epoch/steps")
        memory = {name.removeprefix(MEMORY): state.pop(name) for name in list(state) if name.startswith(MEMORY)}
        self.learner.restore(state)
        self.history = [results.report_from(values) for values in meta["history"]]
        self.epoch = meta["epoch"]
        self.diagnostician.restore(meta["diagnosis"], memory, at_epoch_end=not len(self.done))
        self._note_changes(meta)
        known = {"history": meta["history"], "diagnoses": list(self.diagnostician.diagnoses)}
        self.line.tell({"kind": "resumed", "step": step, "epoch": self.epoch, "restarts": self.restarts, **known})

    def _mend_records(self) -> None:
        """What is stored for the report is made what this run knows: it may have died, or storage failed, between an epoch's
        checkpoint and its record; and after going back, records of the epochs given up are still there."""
        if not self.chief:
            return
        try:
            results.replace_history(self.store, self.task.run, self.history)
            if self.history and self.diagnostician.detector.epoch == len(self.history):  # else it has failed: nobody knows
                results.put_diagnoses(self.store, self.task.run, list(self.diagnostician.diagnoses), self.diagnostician.overfitting)
        except StoreError as error:  # training does not die of its report
            log.warning("the report may lack epochs: %s", error)

    def _note_changes(self, meta: dict[str, Any]) -> None:
        """What is different from the run before the restart, for the diagnosis."""
        step = len(self.done)
        self.events.append(Event("restart", self.epoch, step))
        rate, workers = meta["settings"]["training"]["learning_rate"], meta["settings"]["launch"]["workers"]
        if rate != self.settings.training.learning_rate:
            self.events.append(Event("learning_rate", self.epoch, step, rate, self.settings.training.learning_rate))
        if workers != self.group.size:
            self.events.append(Event("world_size", self.epoch, step, workers, self.group.size))

    def _train_epoch(self) -> bool:
        """Makes the remaining steps of the epoch; False if asked to stop, with a checkpoint saved."""
        steps: list[StepStats] = []
        saved = False
        start = len(self.done)
        snapshots = self.diagnostician.snapshots(self.feed.steps)
        self.network.begin(self.epoch)
        self.feed.waited = 0.0
        self.train_seconds = -time.perf_counter()
        for batch in self.feed.batches(self.epoch, start):
            looks = not saved and len(steps) % LOOK == 0  # all workers at the same steps: they wait for each other there
            preempted = looks and ray.train.get_preemption_info() is not None
            steps.append(self.learner.train(batch, stop=self.line.stop, save=preempted))
            if start + len(steps) in snapshots:
                self.diagnostician.snapshot(start + len(steps))
            self.line.progress(self.epoch, start + len(steps), self.feed.steps)
            seen = steps[max(len(steps) - LAG, 0)]
            if float(seen.stop):
                self.done = np.concatenate([self.done, _numbers(steps)])
                self._save_inside_epoch()
                return False
            if not saved and float(seen.save):  # a node is about to go: what is done so far is kept
                saved = True
                done = self.done
                self.done = np.concatenate([done, _numbers(steps)])
                self._save_inside_epoch()
                self.done = done
        self.done = np.concatenate([self.done, _numbers(steps)])
        self.train_seconds += time.perf_counter()
        self.steps_timed = len(steps)
        return True

    def _close_epoch(self, began: float) -> None:
        """Evaluates, reports, saves."""
        self.learner.average_statistics()
        losses, probabilities = self._evaluate(self.validation)
        sample_losses, _ = self._evaluate(self.sample)
        by_rank = np.zeros((self.group.size, 3))
        by_rank[self.group.rank] = self.feed.waited / self.train_seconds, _peak_memory(), self.learner.checksum()
        waits, memory, checksums = self.group.sum(by_rank).T
        assert len(set(checksums.view(np.int64))) == 1, f"the workers' weights differ after epoch {self.epoch}: {checksums}"

        steps = StepStats(*self.done.T)
        labels = self.feed.rows.labels[self.validation]
        batch = self.settings.training.batch_size
        report = EpochReport(
            epoch=self.epoch,
            step=int(self.learner.optimizer.iterations),
            train_loss=float(np.mean(steps.loss)),
            train_accuracy=float(np.mean(steps.correct) / batch),
            train_loss_inference=float(np.mean(sample_losses, dtype=np.float64)),
            validation_loss=float(np.mean(losses, dtype=np.float64)),
            validation_accuracy=float(np.mean(np.argmax(probabilities, -1) == labels)),
            learning_rate=float(self.learner.optimizer.learning_rate),
            gradient_norm=float(np.mean(steps.gradient_norm)),
            update_norm=float(np.mean(steps.update_norm)),
            images_per_second=self.steps_timed * batch / self.train_seconds,
            input_wait=float(waits.max()),
            step_seconds=self.train_seconds / max(self.steps_timed, 1),
            seconds=time.perf_counter() - began,
            restarts=self.restarts,
        )
        self.history.append(report)
        news = self._diagnose(losses, probabilities, sample_losses)
        overfitting = None if news is None else self.diagnostician.overfitting
        broken = np.flatnonzero(~_finite(self.done))
        if self.chief:
            arrays = {
                "losses": losses,
                "probabilities": probabilities,
                "sample": sample_losses,
                "steps": self.done.astype(np.float32),
            }
            found = None if news is None else (list(self.diagnostician.diagnoses), overfitting)
            self.records.submit(self._record, report, arrays, found)
        self.epoch, self.done = self.epoch + 1, self.done[:0]
        if self.chief and not len(broken):
            self.checkpoints.save_in_background(report.step, *self._checkpoint(report.validation_loss))
        saves, store = self.checkpoints.stats, self.store
        self.line.tell(
            {
                "kind": "epoch",
                "report": report,
                "input_waits": waits.tolist(),
                "peak_memory": memory.tolist(),
                "news": news,
                "overfitting": overfitting,
                "checkpoint": saves,
                "object_store": {"requests": dict(store.requests), "retries": store.retries, "errors": store.errors},
            }
        )
        if len(broken):
            self._flush()
            first = report.step - len(steps.loss) + broken[0] + 1
            raise TrainingError(
                f"training is not finite in epoch {report.epoch} from step {first} on: set training.learning_rate below "
                f"{report.learning_rate:g} and run again, under this name to go on from the last checkpoint"
            )

    def _diagnose(self, losses: np.ndarray, probabilities: np.ndarray, sample_losses: np.ndarray) -> News | None:
        """Asks the diagnosis about the epoch; all workers do, with the same numbers, and probe together."""
        classes, labels = self.task.pack.classes, self.feed.rows.labels[self.validation]

        def predict(images: Sequence[int]) -> dict[int, tuple[str, str, float]]:
            found = np.argmax(probabilities, -1)
            return {i: (classes[labels[i]], classes[found[i]], float(probabilities[i, found[i]])) for i in images}

        try:
            return self.diagnostician.close_epoch(
                losses,
                sample_losses,
                self.done,
                learning_rate=float(self.learner.optimizer.learning_rate),
                events=self.events,
                predict=predict,
            )
        except ray.exceptions.RayError:
            raise
        except Exception as error:  # training does not die of its diagnosis
            if self.chief:  # all workers meet the same
                log.exception("the diagnosis of epoch %d failed: %r", self.epoch, error)
            return None
        finally:
            self.events = []

    def _evaluate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inference mode, all workers together, every image once: row numbers [n] -> losses [n] and probabilities [n, K]."""
        losses = np.zeros(len(rows), np.float32)
        probabilities = np.zeros((len(rows), len(self.task.pack.classes)), np.float32)
        for positions, images, labels in self.feed.evaluation(rows):
            losses[positions], probabilities[positions] = self.learner.evaluate(images, labels)
        return self.group.sum(losses), self.group.sum(probabilities)

    def _checkpoint(self, validation_loss: float | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A copy of all that `_resume` needs."""
        diagnosis, memory = self.diagnostician.state()
        state = self.learner.state() | {"epoch/steps": self.done.copy()} | {MEMORY + name: array for name, array in memory.items()}
        history = [report.as_dict() for report in self.history]
        meta = {"epoch": self.epoch, "history": history, "diagnosis": diagnosis}
        if validation_loss is not None:
            meta["validation_loss"] = validation_loss
        return state, meta | {"settings": self.task.settings}

    def _save_inside_epoch(self) -> None:
        """The last thing that a worker may be able to do: what fails here costs the epoch so far, not the run."""
        self.learner.average_statistics()
        if not self.chief:
            return
        step = int(self.learner.optimizer.iterations)
        try:
            if not _finite(self.done).all():  # or nobody could go on from before it
                raise CheckpointError("the network is not finite")
            self.checkpoints.save(step, *self._checkpoint())
            self.line.tell({"kind": "saved", "step": step, "checkpoint": self.checkpoints.stats})
        except (CheckpointError, StoreError) as error:
            log.warning("no checkpoint inside epoch %d: %s", self.epoch, error)

    def _record(
        self,
        report: EpochReport,
        arrays: Mapping[str, np.ndarray],
        found: tuple[list[Diagnosis], Overfitting | None] | None,
    ) -> None:
        try:
            results.put_epoch(self.store, self.task.run, report, arrays)
            if found is not None:
                results.put_diagnoses(self.store, self.task.run, *found)
        except StoreError as error:  # the report will lack this epoch's images; training goes on
            self.line.tell({"kind": "warning", "message": f"results of epoch {report.epoch} were not stored: {error}"})

    def _no_longer_improving(self) -> bool:
        patience = self.settings.training.early_stopping
        best = best_epoch(self.history)
        return bool(patience) and best is not None and self.history[-1].epoch - best.epoch >= patience

    def _flush(self) -> None:
        self.records.shutdown()
        self.checkpoints.close()

    def _finish(self, outcome: str) -> None:
        """Waits for what is still being written, exports the model and says goodbye."""
        if not self.chief:
            return
        self._flush()
        self._mend_records()
        epoch = self.history[-1].epoch if self.history else 0
        if outcome != "interrupted":
            keep_best = self.settings.training.keep == "best"
            if keep_best and (found := self.checkpoints.best()) is not None:
                weights = {name: array for name, array in found.state.items() if name.startswith(("model/", "optimizer/"))}
                self.learner.restore(weights)
                epoch = next(report.epoch for report in self.history if report.step == found.step)
            if keep_best and (lowest := best_epoch(self.history)) and lowest.epoch != epoch:
                log.warning("model.keras is of epoch %d: the checkpoint of the best, %d, is not there", epoch, lowest.epoch)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model.keras")
                export(self.learner.model, self.task.pack.image_shape, self.settings.model, path)
                self.store.upload(f"runs/{self.task.run}/model.keras", path)
        farewell = {"kind": "finished", "outcome": outcome, "epoch": epoch, "checkpoint": self.checkpoints.stats}
        ray.get(self.task.mailbox.post.remote(farewell))


class _Line:
    """The chief's line to the head: posts are not waited for, and the answer to an earlier one says whether to stop."""

    def __init__(self, mailbox: Any, chief: bool) -> None:
        self._mailbox = mailbox
        self._chief = chief
        self._last = 0.0
        self._answer: Any = None
        self.stop = False

    def tell(self, event: dict[str, Any]) -> None:
        if self._chief:
            self._hear()
            self._answer = self._mailbox.post.remote(event)

    def progress(self, epoch: int, step: int, steps: int) -> None:
        """Tells how far the epoch is, at most once a second."""
        now = time.monotonic()
        if self._chief and now - self._last >= PROGRESS_SECONDS:
            self._last = now
            self.tell({"kind": "progress", "epoch": epoch, "step": step, "steps": steps})

    def _hear(self) -> None:
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            try:
                self.stop = self.stop or ray.get(self._answer)
            except ray.exceptions.RayError as error:  # training does not die of its monitoring
                log.warning("the head does not answer: %s", error)
            self._answer = None


def _finite(steps: np.ndarray) -> np.ndarray:
    """Whether loss and update of each step were finite: StepStats [s, 7] -> bool [s]."""
    numbers = StepStats(*steps.T)
    return np.isfinite(numbers.loss) & np.isfinite(numbers.update_norm)


def _numbers(steps: list[StepStats]) -> np.ndarray:
    """float64 [s, 7]."""
    return np.array([[float(value) for value in step] for step in steps]).reshape(-1, len(StepStats._fields))


def _peak_memory() -> float:
    """Bytes: the largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
