"""Runs the job as a user does, in a process of its own, and reads its output and its report."""

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

DEADLINE = 240.0
"""Seconds before a wait fails. On an idle machine the same wait takes about 20 s."""


class Job:
    """A running `python -m jobs.train`."""

    deadline = DEADLINE

    def __init__(self, configuration: Path, name: str, *overrides: str) -> None:
        settings = [argument for override in (f"run.name={name}", *overrides) for argument in ("--set", override)]
        self._start([sys.executable, "-m", "jobs.train", "--config", str(configuration), *settings])

    def _start(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def output(self) -> str:
        """Standard output and standard error so far."""
        return "\n".join(self.lines)

    def await_line(self, pattern: str) -> re.Match[str]:
        """Waits until a line of the output matches. Raises AssertionError if the job exits first, or at the deadline."""
        end = time.monotonic() + self.deadline
        while time.monotonic() < end:
            for line in list(self.lines):
                if match := re.search(pattern, line):
                    return match
            assert self.process.poll() is None, f"exited with {self.process.returncode} before {pattern!r}:\n{self.output}"
            time.sleep(0.05)
        raise AssertionError(f"no line {pattern!r} within {self.deadline} s:\n{self.output}")

    def wait(self) -> int:
        """Waits for the job to exit and returns its exit code. At the deadline, kills the job and raises AssertionError."""
        try:
            code = self.process.wait(self.deadline)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {self.deadline} s:\n{self.output}") from None
        self._reader.join()
        return code

    def succeed(self) -> None:
        """Waits for the job to exit. Raises AssertionError unless its exit code is 0."""
        assert self.wait() == 0, self.output

    def workers(self) -> list[psutil.Process]:
        """The processes of the Ray Train workers."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]

    def kill(self) -> None:
        """Kills the driver and all of its descendants at once, as a power cut would."""
        processes = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes)


def read_report(output: Path, name: str) -> dict:
    """The report.json of run `name`, where `output` is the job's `run.output`."""
    return json.loads((output / name / "report.json").read_text(encoding="utf-8"))
