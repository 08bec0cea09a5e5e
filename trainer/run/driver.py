"""The story of a run as its driver sees it: storage, data, the Ray cluster, the workers, and the report.

Separation of concerns: worker.py is what each worker does; this module is what happens once for each run, in one process. That
process holds the lease on the run's name, prepares the images, lets Ray Train run the workers, listens to their events, serves the
metrics and writes the report. The workers may die and be restarted any number of times within one `launch`; the driver itself
may be started again under the same run name.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer import UserError, config
from trainer.data.class_weights import check_class_weights
from trainer.data.pack import images_of
from trainer.data.sources import open_sources
from trainer.engine.facts import inspect
from trainer.formatting import one_line, size
from trainer.metrics import Exporter, MetricsError
from trainer.model.module import Module
from trainer.report.load import load
from trainer.report.write import write
from trainer.run import divergence, ray_cluster
from trainer.run.console import Console, RunLog
from trainer.run.events import Requests, Started, WorkerEvent
from trainer.run.mailbox import listen, start_mailbox
from trainer.run.monitoring import Monitoring
from trainer.run.preparation import Prepared, check_output, check_resumable, complete, prepare
from trainer.run.proving import Interrupted, Prover
from trainer.run.ray_train import WorkerGroup
from trainer.run.signals import stop_signals
from trainer.run.status import RunStatus
from trainer.run.task import Task
from trainer.storage import Store, StoreError, open_store, results
from trainer.storage.checkpoint import Checkpoints
from trainer.storage.lease import Lease, WaitStopped

END_SECONDS = 60.0
"""Longest wait for Ray Train to notice that a run has failed for good."""
HOUR, DAY = 3600.0, 86400.0


class LaunchError(UserError):
    """The run cannot continue."""


class Stopped(Exception):  # noqa: N818 - not an error
    """A stop was requested before there was anything to save."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: str
    outcome: str
    """completed, stopped early, interrupted, or failed: why."""
    folder: Path
    """Local folder of the report."""
    failed: bool = False
    transient: bool = False
    """Whether a failed run may succeed later, for example when storage answers again."""

    @property
    def succeeded(self) -> bool:
        return self.outcome in ("completed", "stopped early")


def launch(settings: config.Settings, name: str, console: Console, module: Module | None) -> Outcome:
    """Runs the job to its end, resuming the run of that name if there is one. `module`: that of the user's own network.

    Call it in the main thread. Raises UserError for what a user can correct: the configuration (ConfigError), the network
    (NetworkError), the images (DataError, PackError), storage (StoreError), a name in use (RunInUse), the cluster (ClusterError),
    run.output (OutputError).
    """
    storage = open_store(settings.run.storage, settings.s3)
    exporter = Exporter()
    log = RunLog(console, name, settings.training.epochs)
    monitoring = Monitoring(exporter, settings.training.batch_size, settings.metrics.linger)
    try:
        _serve_metrics(exporter, settings.metrics, log)
        exporter.describe_run(
            run=name,
            model=settings.model.network,
            precision=settings.model.precision,
            epochs=settings.training.epochs,
            workers=settings.launch.workers,
        )
        with stop_signals() as stop, _lease(storage, name, settings.checkpoint.lease_seconds, stop) as lease:
            if lease is None:
                return Outcome(name, "interrupted", Path(settings.run.output, name))
            run = _Run(name, settings, module, storage, log, monitoring, stop, lease)
            try:
                outcome = run.execute()
            except Stopped:
                outcome = Outcome(name, "interrupted", run.folder)
            except SystemExit:  # a second Ctrl-C
                raise
            except BaseException:
                exporter.enter("failed")
                monitoring.wait_for_last_scrape(trained=run.trained)
                raise
        log.phase("waiting for Prometheus to read the last values (metrics.linger)")
        interrupted = outcome.outcome == "interrupted"
        exporter.enter("completed" if outcome.succeeded else "interrupted" if interrupted else "failed")
        monitoring.wait_for_last_scrape(trained=run.trained, interrupted=interrupted)
        return outcome
    finally:
        exporter.close()


@contextmanager
def _lease(storage: Store, name: str, seconds: float, stop: threading.Event) -> Iterator[Lease | None]:
    """The lease on the run's name; None if a stop was requested while it waited for another job's."""
    with ExitStack() as stack:
        try:
            lease = stack.enter_context(Lease(storage, name, seconds, stop))
        except WaitStopped:
            lease = None
        yield lease


def _serve_metrics(exporter: Exporter, metrics: config.Metrics, log: RunLog) -> None:
    try:
        log.metrics_served(metrics.host, exporter.serve(metrics.host, metrics.port))
    except MetricsError as error:  # failed monitoring must not end training
        log.warn(f"no metrics: {error}")


@dataclass
class _Run:
    """One launch of a run."""

    name: str
    settings: config.Settings
    module: Module | None
    storage: Store
    log: RunLog
    monitoring: Monitoring
    stop: threading.Event
    lease: Lease
    packed: int = 0
    """Images packed so far."""
    status: RunStatus = field(init=False)
    folder: Path = field(init=False)
    """Local folder of the report."""
    roll_backs: list[dict[str, Any]] = field(default_factory=list)
    """The divergences from which the run went back, as divergence.roll_back describes them."""
    start_seconds: float = 0.0
    """How long the last start of the workers took."""

    def __post_init__(self) -> None:
        self.status = RunStatus(self.settings.training.epochs)
        self.folder = Path(self.settings.run.output, self.name)
        self.records = self.storage.guarded(self.lease.fence.check)
        """The storage, for what only the holder of the lease may write."""

    @property
    def trained(self) -> bool:
        """Whether workers have started to train."""
        return self.status.starts > 0

    def execute(self) -> Outcome:
        self.roll_backs = results.get_roll_backs(self.storage, self.name)
        self.settings = divergence.with_roll_backs(self.settings, self.roll_backs)
        settings, exporter = self.settings, self.monitoring.exporter
        self._sweep()
        exporter.update_roll_backs(len(self.roll_backs))
        previous = results.get_run(self.storage, self.name)
        check_resumable(previous, settings, self.module, self.name)
        if previous and (line := complete(previous, self.storage, settings, self.name)):
            self.log.complete(line)
            return Outcome(self.name, previous["outcome"], self.folder)
        sources = open_sources(settings.data, settings.s3).interruptible(self._check_stop)
        self.log.phase("listing the images")
        images = images_of(self.name, sources, self.storage, settings.data, previous, settings.local_folders)
        for name, store in sources.images.items():
            self.monitoring.count_requests(f"data.{name}", Requests.of(store))
        check_class_weights(settings.training.class_weights, images.classes)
        check_output(settings.run.output)
        self.log.phase("starting Ray and building the network")
        with ThreadPoolExecutor(1) as pool, ray_cluster.connect(settings.launch) as logs:
            inspected = pool.submit(inspect, settings, len(images.classes), self.module)  # about as long as Ray takes to start
            cores = ray_cluster.cores_for_a_worker(settings.launch)
            network = inspected.result()
            self.log.network(settings.model.network, network)
            exporter.enter("packing")
            self.log.phase("preparing the images")
            data = prepare(
                images,
                sources,
                self.storage.interruptible(self._check_stop),
                settings.data,
                cache_dir=Path(settings.pipeline.cache_dir),
                cache_max_bytes=settings.pipeline.cache_max_bytes,
                batch_size=settings.training.batch_size,
                log=self.log,
                progress=self._packing,
            )
            environment = ray_cluster.environment(settings.launch)
            facts: dict[str, Any] = {
                "config": settings.as_dict(),
                "manifest": data.pack.digest,
                "environment": environment,
                "network": {"name": settings.model.network, **network.as_dict()},
            }
            if self.module:
                facts["module"] = self.module.facts
            results.put_run(self.records, self.name, facts)
            exporter.describe_data(
                train=len(data.split.training),
                validation=len(data.split.validation),
                quarantined=len(data.pack.quarantined),
                test=len(data.split.test),
            )
            exporter.enter("training")
            self.log.phase("starting the workers, which import TensorFlow")
            while True:
                self._train(data, cores, logs)
                if not self._goes_back():
                    break
                facts["config"] = self.settings.as_dict()
                results.put_run(self.records, self.name, facts)
            self._prove(data)
        return self._close(data, facts)

    def _sweep(self) -> None:
        """Removes what killed jobs left. Only the holder of the lease writes the run's checkpoints; jobs.replay, with leases of its
        own, writes beside them, and other jobs write shards: there, what is new may still be written."""
        try:
            self.records.sweep(f"runs/{self.name}/checkpoints/", 0)
            self.records.sweep(f"runs/{self.name}/", HOUR)
            self.records.sweep("shards/", DAY)
        except StoreError as error:
            self.log.warn(f"unfinished uploads of killed jobs were not removed: {error}")

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def _packing(self, done: int, total: int) -> None:
        self._check_stop()
        self.log.packing(done, total)
        self.monitoring.count_requests("images", Requests({"get": done}, 0, 0))
        if done > self.packed:
            self.packed = done
            self.monitoring.exporter.note_progress()

    def _train(self, data: Prepared, cores: int, logs: Path) -> None:
        """Listens to the workers until they have ended or have failed for good; passes on a request to stop."""
        mailbox = start_mailbox(self.lease)
        task = Task(self.name, self.settings.as_dict(), data.pack, data.split, mailbox, cores, self.lease.fence.number, self.module)
        began = time.monotonic()
        workers = WorkerGroup(task, self.settings.launch, Path(self.settings.run.output, ".ray"))
        asked = False
        for events in listen(mailbox, workers):
            self._hear(events, began)
            if self.status.failure:
                break
            if self.lease.lost.is_set():
                raise LaunchError(
                    f"Another job has taken over run {self.name}, so this one ends and writes nothing more. Fix: start only one "
                    "job for each run.name."
                )
            if self.stop.is_set() and not asked:
                if not self.trained:
                    raise Stopped
                asked = True
                self.log.stop_requested()
                self.monitoring.exporter.enter("interrupted")  # now, because a drained node may leave no time for it later
                mailbox.request_stop.remote()
        if self.status.failure:
            workers.wait(END_SECONDS)  # Ray Train must end before its cluster does
        elif workers.failure:
            self.status.fail(workers.failure)
        elif not self.status.finished and not self.status.diverged:
            self.status.fail(
                f"The workers exited without reporting an error. Their logs are in {logs} on each node. Fix: correct what the logs "
                "show and run again under this name to resume."
            )

    def _hear(self, events: list[WorkerEvent], began: float) -> None:
        """`began`: when the workers were started, as time.monotonic()."""
        for event in events:
            if isinstance(event, Started):
                self.start_seconds = time.monotonic() - began
            self.status.update(event)
            self.log.hear(event, self.status)
            self.monitoring.hear(event, self.status)
        self.monitoring.count_requests("driver", Requests.of(self.storage))

    def _goes_back(self) -> bool:
        """After a divergence, goes back to the checkpoint before it with other settings, unless it did so too often already.
        Returns whether to train again. Raises StoreError."""
        status, most = self.status, self.settings.diagnosis.max_roll_backs
        if status.failure or status.diverged is None:
            return False
        if len(self.roll_backs) >= most:
            again = f"It went back diagnosis.max_roll_backs = {most} times. "
            status.fail(again + divergence.fix(status.diverged, self.settings.optimizer.learning_rate))
            return False
        checkpoints = Checkpoints(self.records, self.name, self.settings.checkpoint.keep_last, self.lease.fence.number)
        back = divergence.roll_back(status.diverged, status.history, checkpoints.steps(), self.settings)
        checkpoints.go_back(back["to_step"])
        self.roll_backs.append(back)
        results.put_roll_backs(self.records, self.name, self.roll_backs)
        self.settings = divergence.with_roll_backs(self.settings, [back])
        status.forget()
        self.log.warn(divergence.line(back, len(self.roll_backs), most))
        self.monitoring.exporter.update_roll_backs(len(self.roll_backs))
        return True

    def _prove(self, data: Prepared) -> None:
        """Tries the remedies of the worst spikes within the time that diagnosis.prove allows. A failure to do so is only logged."""
        finished, budget = self.status.finished, self.settings.diagnosis.prove * self._trained_seconds()
        if not budget or not finished or finished.outcome == "interrupted":
            return
        self.monitoring.exporter.enter("proving")
        groups = [data.rows.groups[row] for row in data.split.validation]
        folder = Path(self.settings.run.output, ".ray")
        prover = Prover(
            self.name, self.storage, data.pack, data.split, groups, self.module, folder, self.lease, self.log, stop=self.stop
        )
        prover.hear, prover.start_seconds = self._hear_replay, self.start_seconds
        try:
            prover.prove_worst(self.status.diagnoses, self._trained_seconds() / len(self.status.history), budget)
        except Interrupted:
            self.log.say("stop requested: no further remedy is tried")
        except Exception as error:  # whatever the error, the run is complete
            self.log.warn(f"no remedy is proven: {one_line(error) if isinstance(error, UserError) else repr(error)}")

    def _trained_seconds(self) -> float:
        return sum(report.seconds for report in self.status.history)

    def _hear_replay(self, event: WorkerEvent) -> None:  # noqa: ARG002
        self.monitoring.exporter.note_progress()

    def _close(self, data: Prepared, facts: dict[str, Any]) -> Outcome:
        """Stores how the run ended and writes the report. A failure to do so does not change the outcome."""
        finished, failure = self.status.finished, self.status.failure
        outcome = finished.outcome if finished else f"failed: {failure.message if failure else ''}"
        facts = facts | {"outcome": outcome}
        if self.status.peak_memory is not None:
            facts["environment"] = facts["environment"] | {"peak memory of a worker": size(self.status.peak_memory)}
        if finished and outcome != "interrupted":
            facts["epoch"] = finished.epoch
        self.log.phase("storing the results and writing the report")
        try:
            results.put_run(self.records, self.name, facts)
            if self.status.history:
                self._report(data, with_model=finished is not None and outcome != "interrupted")
        except Exception as error:  # whatever the error, the outcome of the run stands
            self.log.report_incomplete(one_line(error) if isinstance(error, UserError | OSError) else repr(error))
        transient = failure is not None and failure.transient
        return Outcome(self.name, outcome, self.folder, failed=finished is None, transient=transient)

    def _report(self, data: Prepared, *, with_model: bool) -> None:
        """Writes the report and stores it beside the checkpoints."""
        write(load(self.name, self.storage, data.pack, data.rows, data.split), self.folder)
        self.log.report_written(self.folder / "report.html")
        if with_model:
            for name in ("model.keras", "model.json"):
                self.storage.download(f"runs/{self.name}/{name}", self.folder / name)
        for name in ("report.html", "report.json", "loss.png"):
            self.records.upload(f"runs/{self.name}/{name}", self.folder / name)
        self.log.results_stored(f"{self.storage.url}/runs/{self.name}", with_model=with_model)
