"""What a person sees while a job runs: progress bars on a terminal, plain lines elsewhere. Nothing here decides anything."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainer.epoch import EpochReport
from trainer.formatting import duration

PLAIN_SECONDS = 10.0
"""Between two plain progress lines."""


class Console:
    """Speaks on standard output; a context, so that the bars are taken down."""

    def __init__(self) -> None:
        self._out = RichConsole(highlight=False, emoji=False, soft_wrap=True)  # `:name:` in a key stays as it is
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=self._out, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._spoken = time.monotonic()

    def __enter__(self) -> Self:
        if self._out.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._out.is_terminal:  # elsewhere this would print an empty line
            self._bars.stop()

    def say(self, line: str) -> None:
        self._out.print(line, markup=False)

    def warn(self, line: str) -> None:
        self._out.print(f"warning: {line}", markup=False, style="yellow")

    def progress(self, what: str, done: int, total: int) -> None:
        """`what` is `done` of `total`."""
        if self._out.is_terminal:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[what], completed=done, total=total)
        elif time.monotonic() - self._spoken >= PLAIN_SECONDS:
            self._spoken = time.monotonic()
            self.say(f"{what}: {done:,} of {total:,}")

    def done(self, what: str) -> None:
        """Takes the bar of `what` away."""
        if (task := self._tasks.pop(what, None)) is not None:
            self._bars.remove_task(task)

    def epoch(self, report: EpochReport, epochs: int, best: EpochReport | None) -> None:
        self._spoken = time.monotonic()
        star = "  best" if best is not None and best.epoch == report.epoch else ""
        number = f"{report.epoch:>{len(str(epochs))}}/{epochs}"
        self.say(
            f"epoch {number}  loss {report.train_loss:.4f}  accuracy {report.train_accuracy:.3f}  "
            f"val_loss {report.validation_loss:.4f}  val_accuracy {report.validation_accuracy:.3f}  "
            f"{report.images_per_second:.0f} images/s  {duration(report.seconds)}  "
            f"left {duration((epochs - report.epoch) * report.seconds)}{star}"
        )
