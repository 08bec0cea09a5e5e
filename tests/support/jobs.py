"""Runs jobs the way a user does, as processes, and looks at what they say and store."""

import io
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from trainer import config
from trainer.epoch import EpochReport
from trainer.storage import open_store, results

DEADLINE = 240.0
"""Seconds after which something that takes 20 on an idle machine counts as broken."""

CONFIG = """
[run]
storage = "{storage}/storage"
output = "{folder}/runs"
[data]
source = "{storage}/images"
classes = {{ authentic = "authentic/", fake = "fake/" }}
image_size = [32, 32]
validation_fraction = 0.3
[s3]
path_style = true
[pipeline]
cache_dir = "{folder}/cache"
flip = true
shift = 2
[training]
epochs = 4
train_sample = 50
[launch]
workers = {workers}
object_store_bytes = 100_000_000
[checkpoint]
lease_seconds = 2.0
[metrics]
host = "127.0.0.1"
port = 0
linger = 0.0
"""


def put_images(storage: str, images: int = 480, seed: int = 0) -> None:
    """Puts JPEGs of two classes below `storage`/images: smooth noise, the forged ones with a square pasted in."""
    store, generator = open_store(f"{storage}/images", config.S3(path_style=True)), np.random.default_rng(seed)
    for number in range(images):
        pixels = np.kron(generator.normal(120, 30, (8, 8, 3)), np.ones((6, 6, 1))) + generator.normal(0, 10, (48, 48, 3))
        if forged := number % 2:
            pixels[10:30, 10:30] += generator.normal(40, 10)
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
        store.put(f"{'fake' if forged else 'authentic'}/{number:05d}.jpg", buffer.getvalue())


def write_config(folder: Path, storage: str, workers: int = 1) -> Path:
    path = folder / "job.toml"
    path.write_text(CONFIG.format(storage=storage, folder=folder, workers=workers))
    return path


class Job:
    """`python -m jobs.train`, running."""

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
        return "\n".join(self.lines)

    def await_line(self, pattern: str) -> re.Match[str]:
        """Waits until a line matches, and returns the match."""
        end = time.monotonic() + self.deadline
        while time.monotonic() < end:
            for line in list(self.lines):
                if match := re.search(pattern, line):
                    return match
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {pattern!r}:\n{self.output}"
            time.sleep(0.05)
        raise AssertionError(f"no line {pattern!r} within {self.deadline} s:\n{self.output}")

    def wait(self) -> int:
        try:
            code = self.process.wait(self.deadline)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end within {self.deadline} s:\n{self.output}") from None
        self._reader.join()
        return code

    def succeed(self) -> None:
        assert self.wait() == 0, self.output

    def workers(self) -> list[psutil.Process]:
        """The processes of the Ray Train workers."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]

    def kill(self) -> None:
        """As the kernel or a power cut would: driver and everything that it started, at once."""
        processes = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes)


def history(storage: str, name: str) -> list[EpochReport]:
    return results.get_history(open_store(f"{storage}/storage", config.S3(path_style=True)), name)


def curves(storage: str, name: str) -> np.ndarray:
    """[E, 3]: training loss, training loss in inference mode and validation loss of each epoch."""
    return np.array([[r.train_loss, r.train_loss_inference, r.validation_loss] for r in history(storage, name)])


def report(folder: Path, name: str) -> dict:
    return json.loads((folder / "runs" / name / "report.json").read_text())
