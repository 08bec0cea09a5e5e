"""Owns what a person reads while a job runs: progress bars on a terminal, plain lines elsewhere. It decides nothing about the
run."""

import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from spikewise import describe, describe_curve
from spikewise.diagnose import News
from trainer.data.dataset import Manifest, Quarantined
from trainer.engine.facts import NetworkFacts
from trainer.epoch import EpochReport
from trainer.formatting import duration, printable, size
from trainer.run import events
from trainer.run.status import RunStatus

PLAIN_SECONDS = 10.0
"""Shortest time between two plain progress lines, and longest silence."""


class Console:
    """Writes to standard output. A context manager: it removes the progress bars at the end."""

    def __init__(self) -> None:
        self._out = RichConsole(highlight=False, emoji=False, soft_wrap=True)  # emoji=False keeps `:name:` in a key unchanged
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=self._out, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._last_line = self._phase_began = time.monotonic()
        self._phase = ""
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._break_silence, daemon=True, name="console").start()
        if self._out.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        if self._out.is_terminal:  # elsewhere this would print an empty line
            self._bars.stop()

    def say(self, line: str) -> None:
        self._last_line = time.monotonic()
        self._out.print(printable(line), markup=False)

    def warn(self, line: str) -> None:
        self._last_line = time.monotonic()
        self._out.print(printable(f"warning: {line}"), markup=False, style="yellow")

    def phase(self, what: str) -> None:
        """What is going on from now on; empty if other lines tell. It is printed with its duration after each PLAIN_SECONDS of
        silence."""
        self._phase, self._phase_began = what, time.monotonic()

    def _break_silence(self) -> None:
        while not self._ended.wait(PLAIN_SECONDS / 10):
            now, what, began = time.monotonic(), self._phase, self._phase_began
            if what and now - max(self._last_line, began) >= PLAIN_SECONDS:
                self.say(f"{what} ({now - began:.0f} s so far)")

    def progress(self, what: str, done: int, total: int) -> None:
        """Shows that `done` of `total` units of `what` are done, as a bar or as a line every PLAIN_SECONDS."""
        if self._out.is_terminal:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[what], completed=done, total=total)
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self.say(f"{what}: {done:,} of {total:,}")

    def done(self, what: str) -> None:
        """Removes the bar of `what`."""
        if (task := self._tasks.pop(what, None)) is not None:
            self._bars.remove_task(task)


EVERYWHERE = ("0.0.0.0", "::")
"""Hosts that mean all addresses of this machine."""


class RunLog:
    """The lines about one run."""

    def __init__(self, console: Console, run: str, epochs: int) -> None:
        self._console = console
        self._run = run
        self._epochs = epochs
        self._pod = os.environ.get("POD_NAME")
        """The pod in which the driver runs, in a cluster: addresses and paths of its own are useless to the reader."""
        self.warn, self.say = console.warn, console.say
        self.phase = console.phase

    def metrics_served(self, host: str, port: int) -> None:
        url = f"http://{'localhost' if self._pod or host in EVERYWHERE else f'[{host}]' if ':' in host else host}:{port}/metrics"
        if self._pod:
            namespace = os.environ.get("POD_NAMESPACE", "default")
            url = f"{url} after: kubectl port-forward -n {namespace} pod/{self._pod} {port}"
        self._console.say(f"run {self._run}: metrics at {url}")

    def network(self, name: str, facts: NetworkFacts) -> None:
        frozen = facts.parameters - facts.trainable
        self._console.say(
            f"network: {name}, {facts.parameters:,} parameters" + (f" ({frozen:,} of them not trained)" if frozen else "")
        )

    def packing(self, done: int, total: int) -> None:
        self.phase("")
        self._console.progress("packing", done, total)

    def packed(self, manifest: Manifest, quarantined: Sequence[Quarantined], seconds: float | None) -> None:
        """`seconds`: what packing took; None if the images were packed before."""
        self._console.done("packing")
        self.phase("reading the packed images and splitting them")
        how = "already packed: no image was read" if seconds is None else f"packed in {duration(seconds)}"
        counts = Counter(image.source for image in manifest.images)
        more = "".join(f", {counts[name]:,} in data.{name}" for name in ("validation", "test") if counts[name])
        self._console.say(f"data: {counts['source']:,} images at {manifest.source}{more} ({how})")
        if manifest.ignored:
            self.warn(f"{manifest.ignored:,} objects at {manifest.source} belong to no class and are ignored")
        if manifest.junk:
            others = "other file is no image" if manifest.junk == 1 else "other files are no images"
            self._console.say(f"data: {manifest.junk:,} {others} (hidden files, Thumbs.db, a run's own files ...)")
        if quarantined:
            first = quarantined[0]
            which = (
                "1 image cannot be decoded and is"
                if len(quarantined) == 1
                else f"{len(quarantined)} images cannot be decoded and are"
            )
            self.warn(f"{which} skipped, such as {first.key!r} ({first.reason}); quarantine.json lists all of them")

    def split(
        self,
        training: int,
        validation: int,
        classes: Sequence[str],
        pixels: int,
        *,
        dropped: int,
        test: int = 0,
        groups: int | None = None,
    ) -> None:
        """`training`, `validation`, `test`: numbers of images. `pixels`: bytes of all. `dropped`: images that fill no batch.
        `groups`: number of groups, None if the images have none."""
        self._console.say(
            f"split: {training:,} training{',' if test else ' and'} {validation:,} validation {f'and {test:,} test ' * bool(test)}"
            f"images of {len(classes)} classes ({', '.join(classes)})"
            + (f" in {groups:,} groups" if groups is not None else "")
            + f"; {size(pixels)} of pixels"
        )
        if dropped:
            self._console.say(
                f"Each epoch drops its last incomplete batch ({dropped} of {training:,} images, a different set each time)."
            )

    def hear(self, event: events.WorkerEvent, status: RunStatus) -> None:
        """`status`: after this event."""
        match event:
            case events.Started():
                self._started(event, worker_died=status.worker_died)
            case events.Resumed():
                self._console.say(
                    f"resumed from the checkpoint of step {event.step}, in epoch {event.epoch} (restart {event.restarts})"
                )
            case events.Progress():
                self._console.progress(self._bar(event.epoch), event.step, event.steps)
            case events.EpochFinished():
                self._console.done(self._bar(event.report.epoch))
                self._epoch(event.report, best=status.best is event.report)
                if event.news is not None:
                    self._news(event.news)
            case events.CheckpointSaved():
                self._console.say(f"checkpoint of step {event.step} saved")
            case events.Warned():
                self.warn(event.message)
            case events.Finished(tested=events.Tested() as tested):
                self._console.say(f"test: loss {tested.loss:.4f}  accuracy {tested.accuracy:.3f}  ({tested.images:,} images)")
            case events.Failed() | events.Finished() | events.Diverged():  # the run's outcome is printed at its end
                pass

    def hear_replay(self, event: events.WorkerEvent) -> None:
        """An event of workers that train epochs of the run again."""
        match event:
            case events.Started():
                self.phase("")
            case events.Progress():
                self._console.progress(f"epoch {event.epoch}", event.step, event.steps)
            case events.EpochFinished():
                self._console.done(f"epoch {event.report.epoch}")
                self._console.say(f"epoch {event.report.epoch}: validation loss {event.report.validation_loss:.4f}")
            case events.Warned():
                self.warn(event.message)

    def not_proven(self, epoch: int, needs: float, budget: float, storage: str) -> None:
        """Says why the remedy of the spike in `epoch` is not tried at the end of the run, and how to try it. `needs`, `budget`: in
        seconds. `storage`: its URL."""
        how = (
            ". Fix: raise it for the next run. These pods end with their run, and on other machines a replay usually proves nothing"
            if self._pod
            else f"; python -m jobs.replay --run {self._run} --storage {storage} --spike {epoch} does it"
        )
        need = f"training the spike of epoch {epoch} again needs about {needs:.0f} s"
        self._console.say(f"not proven: {need}, diagnosis.prove allows {budget:.0f} s{how}.")

    def stop_requested(self) -> None:
        self._console.say("stop requested: saving a checkpoint")

    def report_written(self, page: Path) -> None:
        if not self._pod:
            self._console.say(f"report: {page}")

    def results_stored(self, url: str, *, with_model: bool) -> None:
        """`url`: of the run in storage."""
        self._console.say(f"stored: {url}/report.html" + (f" and {url}/model.keras" if with_model else ""))

    def complete(self, line: str) -> None:
        self._console.say(line)

    def report_incomplete(self, reason: str) -> None:
        self.warn(f"the report is incomplete (python -m jobs.report --config FILE --run {self._run} rebuilds it): {reason}")

    def _started(self, event: events.Started, *, worker_died: bool) -> None:
        self.phase("")
        if worker_died:
            self.warn("a worker died; all workers were restarted")
        where = "in memory" if event.resident else "on the local disk"
        workers = f"{event.workers} worker{'s' * (event.workers > 1)}"
        self._console.say(f"training: {workers}, {event.steps_per_epoch} steps per epoch, images {where}")

    def _bar(self, epoch: int) -> str:
        return f"epoch {epoch}/{self._epochs}"

    def _epoch(self, report: EpochReport, *, best: bool) -> None:
        added = f" + {report.regularization:.4f}" if report.regularization else ""
        number = f"{report.epoch:>{len(str(self._epochs))}}/{self._epochs}"
        self._console.say(
            f"epoch {number}  loss {report.train_loss:.4f}{added}  accuracy {report.train_accuracy:.3f}  "
            f"val_loss {report.validation_loss:.4f}  val_accuracy {report.validation_accuracy:.3f}  "
            f"{report.images_per_second:.0f} images/s  {duration(report.seconds)}  "
            f"left {duration((self._epochs - report.epoch) * report.seconds)}{'  best' if best else ''}"
        )

    def _news(self, news: News) -> None:
        for one in news.standing:
            self._console.say(describe_curve.block(one, options=True))
        if news.diagnosis:
            self._console.say(describe.block(news.diagnosis, options=True))
        for resolved in news.resolved:
            spike = resolved.spike
            self._console.say(f"spike of epoch {spike.epoch}: {spike.outcome} in epoch {spike.outcome_epoch}")
