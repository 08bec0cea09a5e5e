"""A run from the outside: the driver. Storage, data, Ray, the workers, and what is left of the run afterwards.

Separation of concerns: loop.py is what a worker does; here is everything that happens once for each run, on the head: the lease on
the run's name, the packed data, Ray Train with its restarts, the metrics endpoint, the report. A worker group may die and come
back any number of times within one `launch`; the driver itself may be started again under the same run name.
"""

import logging
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spikewise import describe
from spikewise.diagnose import News
from spikewise.records import Diagnosis
from trainer import UserError, config
from trainer.data.dataset import Manifest, Pack, Split
from trainer.data.index import DataError, split
from trainer.data.pack import images_of, pack
from trainer.data.shards import PackedRows, open_rows
from trainer.epoch import EpochReport
from trainer.epoch import best as best_epoch
from trainer.formatting import duration, one_line, size
from trainer.metrics import Exporter, MetricsError
from trainer.report.load import load
from trainer.report.write import write
from trainer.run import ray_cluster
from trainer.run.console import Console
from trainer.run.task import Task
from trainer.storage import Store, open_store, results
from trainer.storage.checkpoint import SaveStats
from trainer.storage.lease import Lease

log = logging.getLogger(__name__)

POLL_SECONDS = 0.3
STOP_SECONDS = 20.0
"""Longest wait for a scrape of a run that was asked to stop: one of the PodMonitor's intervals, well within a pod's grace."""
END_SECONDS = 60.0
"""Longest wait for Ray Train to notice that a run has failed for good."""


class LaunchError(UserError):
    """The run cannot be started as asked; one line."""


class Stopped(Exception):  # noqa: N818 - not an error
    """Somebody asked the job to stop before there was anything to save."""


@dataclass(frozen=True)
class Outcome:
    run: str
    outcome: str
    """completed, stopped early, interrupted, or failed: why."""
    folder: Path
    """Local folder of the report."""
    transient: bool = False
    """Failed of something that may be over a while later, such as storage that does not answer."""

    @property
    def succeeded(self) -> bool:
        return self.outcome in ("completed", "stopped early")


@dataclass
class _Run:
    """What the driver knows of the run under way."""

    name: str
    settings: config.Settings
    storage: Store
    folder: Path
    console: Console
    exporter: Exporter
    stop: threading.Event
    history: list[EpochReport] = field(default_factory=list)
    diagnoses: list[Diagnosis] = field(default_factory=list)
    started: bool = False
    finished: dict[str, Any] | None = None
    failure: str | None = None
    transient: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    def hear(self, event: dict[str, Any]) -> None:
        """One event from a worker."""
        epochs = self.settings.training.epochs
        match event:
            case {"kind": "started"}:
                if self.started:
                    self.console.warn("a worker died: all were started again")
                self.started = True
                images = event["step"] * self.settings.training.batch_size
                self.exporter.begin(event["restarts"], steps=event["step"], images=images)
                where = "in memory" if event["resident"] else "on the local disk"
                workers = f"{event['workers']} worker{'s' * (event['workers'] > 1)}"
                self.console.say(f"training: {workers}, {event['steps']} steps an epoch, images {where}")
            case {"kind": "resumed"}:
                self.history = [results.report_from(values) for values in event["history"]]
                self.diagnoses = event["diagnoses"]
                self.exporter.update_spikes(self.diagnoses)
                self.console.say(
                    f"resumed from the checkpoint of step {event['step']}, in epoch {event['epoch']} (restart {event['restarts']})"
                )
            case {"kind": "progress"}:
                self.console.progress(f"epoch {event['epoch']}/{epochs}", event["step"], event["steps"])
                self.exporter.progress(event["epoch"], event["step"], event["steps"])
            case {"kind": "epoch"}:
                report: EpochReport = event["report"]
                self.history = [*(earlier for earlier in self.history if earlier.epoch < report.epoch), report]
                best = best_epoch(self.history)
                self.console.done(f"epoch {report.epoch}/{epochs}")
                self.console.epoch(report, epochs, best)
                self.exporter.update(
                    report,
                    best=best,
                    images=report.step * self.settings.training.batch_size,
                    input_waits=event["input_waits"],
                    overfitting=event["overfitting"],
                )
                self.exporter.update_object_store("worker 0", **event["object_store"])
                self._hear_of_spikes(event["news"])
                self._show_saves(event["checkpoint"])
                self.environment["peak memory of a worker"] = size(max(event["peak_memory"]))
            case {"kind": "saved"}:
                self.console.say(f"checkpoint of step {event['step']} saved")
                self._show_saves(event["checkpoint"])
            case {"kind": "warning"}:
                self.console.warn(event["message"])
            case {"kind": "failed"}:
                trained = self.history and self.history[-1].epoch == epochs
                way_out = "run again under this name to go on from the last checkpoint"
                but = f"all {epochs} epochs are trained, but the model is not stored ({way_out}): " if trained else ""
                if not self.failure:
                    self.failure, self.transient = but + event["message"], event["transient"]
            case {"kind": "finished"}:
                self.finished = event
                self._show_saves(event["checkpoint"])

    def _show_saves(self, saves: SaveStats) -> None:
        self.exporter.update_checkpoint(step=saves.step, committed=saves.committed, seconds=saves.seconds, failures=saves.failures)

    def _hear_of_spikes(self, news: News | None) -> None:
        if news is None:
            return
        if news.diagnosis:
            self.diagnoses.append(news.diagnosis)
            self.console.say(describe.block(news.diagnosis))
        if resolved := news.resolved:
            self.diagnoses = [resolved if known.spike.epoch == resolved.spike.epoch else known for known in self.diagnoses]
            self.console.say(
                f"spike of epoch {resolved.spike.epoch}: {resolved.spike.outcome} in epoch {resolved.spike.outcome_epoch}"
            )
        self.exporter.update_spikes(self.diagnoses)


def launch(settings: config.Settings, name: str, console: Console) -> Outcome:
    """Runs the job to its end, resuming the run of that name if there is one.

    Raises what its parts raise for a user's mistake: ConfigError, DataError, StoreError, RunInUse, LaunchError.
    """
    storage = open_store(settings.run.storage, settings.s3)
    folder = Path(settings.run.output, name)
    exporter = Exporter()
    try:
        port = exporter.serve(settings.metrics.host, settings.metrics.port)
        console.say(f"run {name}: metrics at http://{settings.metrics.host}:{port}/metrics")
    except MetricsError as error:
        console.warn(f"no metrics: {error}")
    try:
        exporter.describe_run(
            run=name,
            model="cnn",
            precision=settings.model.precision,
            epochs=settings.training.epochs,
            workers=settings.launch.workers,
        )
        with _signals() as stop, Lease(storage, name, settings.checkpoint.lease_seconds) as lease:
            run = _Run(name, settings, storage, folder, console, exporter, stop, environment=ray_cluster.environment(settings))
            try:
                outcome = _run(run, lease)
            except Stopped:
                outcome = Outcome(name, "interrupted", folder)
            except SystemExit:  # the second Ctrl-C
                raise
            except BaseException:
                exporter.enter("failed")
                exporter.wait_for_scrape(settings.metrics.linger if run.started else 0.0)
                raise
        exporter.enter("completed" if outcome.succeeded else "interrupted" if outcome.outcome == "interrupted" else "failed")
        linger = settings.metrics.linger if run.started else 0.0
        if outcome.outcome == "interrupted":  # who never scraped misses nothing, and somebody sits at the terminal
            linger = min(linger, STOP_SECONDS) if exporter.scraped else 0.0
        with suppress(KeyboardInterrupt):  # ends the wait
            exporter.wait_for_scrape(linger)
        return outcome
    finally:
        exporter.close()


def _run(run: _Run, lease: Lease) -> Outcome:
    previous = results.get_run(run.storage, run.name)
    if previous:
        config.check_resumable(run.settings, previous["config"], run.name)
    source = open_store(run.settings.data.source, run.settings.s3)
    manifest = images_of(run.name, source, run.storage, run.settings.data, previous)
    _check_output(run.settings.run.output)
    with ray_cluster.connect(run.settings):
        cores = ray_cluster.cores_for_a_worker(run.settings)
        run.exporter.enter("packing")
        packed = _packed(run, manifest)
        rows = open_rows(packed, run.storage, Path(run.settings.pipeline.cache_dir))
        data = run.settings.data
        sides = split(
            *(rows.keys, rows.labels, rows.groups, rows.contents, packed.classes),
            validation_fraction=data.validation_fraction,
            min_validation=data.min_validation,
        )
        _check_data(run.settings, sides)
        _say_data(run, packed, sides)
        facts = {"config": run.settings.as_dict(), "manifest": packed.digest, "environment": run.environment}
        results.put_run(run.storage, run.name, facts)
        run.exporter.describe_data(train=len(sides.training), validation=len(sides.validation), quarantined=len(packed.quarantined))
        run.exporter.enter("training")
        _train(run, lease, packed, sides, cores)
    outcome = run.finished["outcome"] if run.finished else f"failed: {run.failure}"
    facts["outcome"] = outcome
    if run.finished and outcome != "interrupted":
        facts["epoch"] = run.finished["epoch"]  # that model.keras is of
    try:
        results.put_run(run.storage, run.name, facts)
        if run.history:
            _report(run, outcome, packed, rows, sides)
    except Exception as error:  # whatever it is, the run is what it is
        what = one_line(error) if isinstance(error, UserError | OSError) else repr(error)
        way_out = f"when that is mended, python -m jobs.report --config FILE --run {run.name} makes it"
        run.console.warn(f"the report is not complete: {what}; {way_out}")
    return Outcome(run.name, outcome, run.folder, run.transient)


def _packed(run: _Run, manifest: Manifest | Pack) -> Pack:
    if isinstance(manifest, Pack):
        return manifest
    data = run.settings.data
    source = open_store(data.source, run.settings.s3)
    began, read = time.monotonic(), 0

    def progress(done: int, total: int) -> None:
        nonlocal read
        read = done
        if run.stop.is_set():
            raise Stopped
        run.console.progress("packing", done, total)
        run.exporter.note_progress()

    packed = pack(manifest, source, run.storage, data, progress=progress)
    run.console.done("packing")
    took = f"packed in {duration(time.monotonic() - began)}" if read else "already packed: no image was read"
    run.console.say(f"data: {len(manifest.images):,} images at {manifest.source} ({took})")
    if manifest.ignored:
        run.console.warn(f"{manifest.ignored:,} objects below {manifest.source} belong to no class and are ignored")
    if packed.quarantined:
        first = packed.quarantined[0]
        run.console.warn(
            f"{len(packed.quarantined)} images cannot be decoded and are left out, such as {first.key!r} ({first.reason}); "
            "see quarantine.json"
        )
    return packed


def _check_output(folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise LaunchError(
            f"run.output = {folder!r} cannot be written ({error.strerror}): name a folder for the reports that can be"
        ) from None


def _check_data(settings: config.Settings, sides: Split) -> None:
    batch = settings.training.batch_size
    if len(sides.training) < batch:
        raise DataError(
            f"training.batch_size = {batch} is larger than the training set of {len(sides.training)} images: lower it or add images"
        )


def _say_data(run: _Run, packed: Pack, sides: Split) -> None:
    memory = packed.images * int(np.prod(packed.image_shape))
    run.console.say(
        f"split: {len(sides.training):,} training, {len(sides.validation):,} validation images of {len(packed.classes)} classes "
        f"({', '.join(packed.classes)}); {size(memory)} as pixels"
    )
    batch = run.settings.training.batch_size
    if left_out := len(sides.training) % batch:
        run.console.say(f"each epoch leaves out {left_out} training images, others every time: they fill no batch of {batch}")
    for warning in sides.facts["warnings"]:
        run.console.warn(warning)


def _train(run: _Run, lease: Lease, packed: Pack, sides: Split, cores: int) -> None:
    """Lets Ray Train run the workers, and listens to them until they are done, have failed for good or were asked to stop."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    mailbox = ray_cluster.mailbox()
    task = Task(run.name, run.settings.as_dict(), packed, sides, mailbox, cores)
    trainer = DataParallelTrainer(
        _work,
        backend_config=ray_cluster.TensorFlowBackend(),
        train_loop_config={"task": task},
        scaling_config=ScalingConfig(
            num_workers=run.settings.launch.workers,
            use_gpu=run.settings.launch.gpu,
            resources_per_worker={"CPU": cores} | ({"GPU": 1} if run.settings.launch.gpu else {}),
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=str(Path(run.settings.run.output, ".ray").resolve()),
            failure_config=FailureConfig(max_failures=run.settings.launch.max_failures),
        ),
    )
    died: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # when the driver leaves before the workers, Ray is gone under its feet
            died.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    asked = False
    while True:
        alive = thread.is_alive()  # asked first: what was posted before the end is still taken
        for event in ray.get(mailbox.take.remote()):
            run.hear(event)
        storage = run.storage
        run.exporter.update_object_store("driver", requests=storage.requests, retries=storage.retries, errors=storage.errors)
        if run.failure or not alive:
            break
        if lease.lost.is_set():
            raise LaunchError(f"another job has taken run {run.name} over: this one ends without writing any more")
        if run.stop.is_set() and not asked:
            if not run.started:
                raise Stopped
            asked = True
            run.console.say("asked to stop: saving a checkpoint")
            run.exporter.enter("interrupted")  # said now: a node that goes may leave no time for it later
            mailbox.ask_to_stop.remote()
        thread.join(POLL_SECONDS)
    if run.failure:
        thread.join(END_SECONDS)  # Ray Train does not like to lose its cluster
    if died and not run.failure:
        limit = run.settings.launch.max_failures
        if isinstance(died[0], TrainingFailedError):
            run.failure = f"workers died more often than launch.max_failures = {limit} allows; the last one said: "
        else:
            run.failure = "Ray Train gave up: "
        run.failure += _last_line(died[0])
    elif not run.finished and not run.failure:
        run.failure = "the workers ended without a word; their logs are in Ray's session folder"


def _work(arguments: dict[str, Any]) -> None:
    from trainer.run.worker import work

    warnings = _Warnings(arguments["task"].mailbox)
    logging.getLogger("trainer").addHandler(warnings)
    try:
        work(arguments["task"])
    finally:
        logging.getLogger("trainer").removeHandler(warnings)


class _Warnings(logging.Handler):
    """What the library warns of in a worker (a checkpoint that could not be saved, one that is damaged), told to the driver."""

    def __init__(self, mailbox: Any) -> None:
        super().__init__(logging.WARNING)
        self._mailbox = mailbox

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._mailbox.post.remote({"kind": "warning", "message": record.getMessage()})
        except Exception:  # as any handler
            self.handleError(record)


def _report(run: _Run, outcome: str, packed: Pack, rows: PackedRows, sides: Split) -> None:
    """Writes the report and puts it beside the checkpoints."""
    write(load(run.name, run.storage, packed, rows, sides), run.folder)
    run.console.say(f"report: {run.folder / 'report.html'}")
    if outcome in ("completed", "stopped early"):
        run.storage.download(f"runs/{run.name}/model.keras", run.folder / "model.keras")
    for name in ("report.html", "report.json", "loss.png"):
        run.storage.upload(f"runs/{run.name}/{name}", run.folder / name)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; the second SIGINT ends the process at once."""
    stop = threading.Event()

    def asked(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            sys.exit(130)
        stop.set()

    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
