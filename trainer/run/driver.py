"""The story of a run as its driver sees it: storage, data, the Ray cluster, the workers, and the report.

Separation of concerns: worker.py is what each worker does; this module is what happens once for each run, in one process. That
process holds the lease on the run's name, prepares the images, lets Ray Train run the workers, listens to their events, serves the
metrics and writes the report. The workers may die and be restarted any number of times within one `launch`; the driver itself
may be started again under the same run name.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

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
from trainer.run import ray_cluster
from trainer.run.console import Console, RunLog
from trainer.run.events import Requests
from trainer.run.mailbox import start_mailbox
from trainer.run.monitoring import Monitoring
from trainer.run.preparation import Prepared, check_output, check_resumable, prepare
from trainer.run.ray_train import WorkerGroup
from trainer.run.signals import stop_signals
from trainer.run.status import RunStatus
from trainer.run.task import Task
from trainer.storage import Store, StoreError, open_store, results
from trainer.storage.lease import Lease, WaitStopped

POLL_SECONDS = 0.3
"""Time between two reads of the mailbox."""
END_SECONDS = 60.0
"""Longest wait for Ray Train to notice that a run has failed for good."""


DAY = 86400.0


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
    status: RunStatus = field(init=False)
    folder: Path = field(init=False)
    """Local folder of the report."""

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
        settings, exporter = self.settings, self.monitoring.exporter
        self._sweep()
        previous = results.get_run(self.storage, self.name)
        check_resumable(previous, settings, self.module, self.name)
        sources = open_sources(settings.data, settings.s3)
        images = images_of(self.name, sources, self.storage, settings.data, previous)
        check_class_weights(settings.training.class_weights, images.classes)
        check_output(settings.run.output)
        with ThreadPoolExecutor(1) as pool, ray_cluster.connect(settings.launch) as logs:
            inspected = pool.submit(inspect, settings, len(images.classes), self.module)  # about as long as Ray takes to start
            cores = ray_cluster.cores_for_a_worker(settings.launch)
            network = inspected.result()
            self.log.network(settings.model.network, network)
            exporter.enter("packing")
            data = prepare(
                images,
                sources,
                self.storage,
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
            self._train(data, cores, logs)
        return self._close(data, facts)

    def _sweep(self) -> None:
        """Removes what killed jobs left: of this run all, since no one else may write to it; of other jobs what is a day old."""
        try:
            self.storage.sweep(f"runs/{self.name}/", 0)
            self.storage.sweep("shards/", DAY)
        except StoreError as error:
            self.log.warn(f"unfinished uploads of killed jobs were not removed: {error}")

    def _packing(self, done: int, total: int) -> None:
        if self.stop.is_set():
            raise Stopped
        self.log.packing(done, total)
        self.monitoring.exporter.note_progress()

    def _train(self, data: Prepared, cores: int, logs: Path) -> None:
        """Listens to the workers until they have ended or have failed for good; passes on a request to stop."""
        mailbox = start_mailbox()
        self.lease.renewed = lambda until: mailbox.renew.remote(until)
        mailbox.renew.remote(self.lease.fence.until)
        task = Task(self.name, self.settings.as_dict(), data.pack, data.split, mailbox, cores, self.lease.fence.number, self.module)
        workers = WorkerGroup(task, self.settings.launch, Path(self.settings.run.output, ".ray"))
        asked = False
        while True:
            running = workers.running  # read before the mailbox, so that events posted before the end are still taken
            self._listen(mailbox)
            if self.status.failure or not running:
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
            workers.wait(POLL_SECONDS)
        if self.status.failure:
            workers.wait(END_SECONDS)  # Ray Train must end before its cluster does
        elif workers.failure:
            self.status.fail(workers.failure)
        elif not self.status.finished:
            self.status.fail(
                f"The workers exited without reporting an error. Their logs are in {logs} on each node. Fix: correct what the logs "
                "show and run again under this name to resume."
            )

    def _listen(self, mailbox: Any) -> None:
        for event in ray.get(mailbox.take.remote()):
            self.status.update(event)
            self.log.hear(event, self.status)
            self.monitoring.hear(event, self.status)
        self.monitoring.count_requests("driver", Requests.of(self.storage))

    def _close(self, data: Prepared, facts: dict[str, Any]) -> Outcome:
        """Stores how the run ended and writes the report. A failure to do so does not change the outcome."""
        finished, failure = self.status.finished, self.status.failure
        outcome = finished.outcome if finished else f"failed: {failure.message if failure else ''}"
        facts = facts | {"outcome": outcome}
        if self.status.peak_memory is not None:
            facts["environment"] = facts["environment"] | {"peak memory of a worker": size(self.status.peak_memory)}
        if finished and outcome != "interrupted":
            facts["epoch"] = finished.epoch
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
