"""The parts of benchmarks.gpu that measure Spikewise. Each prints JSON; the last line counts.

    python -m benchmarks.gpu_parts engine --batch 32 --precision mixed_bfloat16 [--images N] [--size S] [--rounds R]
    python -m benchmarks.gpu_parts job --folder FOLDER [--images N] [--size S]

`engine` trains on random pixels in this process, without Ray. `job` runs the command that a user runs, on images in FOLDER.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

EPOCHS, EPOCHS_AGAIN = 100, 5
"""Of the first and of the second run of the job."""
EVALUATED = 2000
"""Images of one evaluation."""
STEPWISE_STEPS = 100
"""Steps of a round with a call each."""


class Rows:
    """Packed images that are random pixels in memory."""

    def __init__(self, count: int, size: int) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
        self.labels = (np.arange(count) % 2).astype(np.int32)
        self.images, self.shape, self.nbytes = self, self.pixels.shape, self.pixels.nbytes

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]


def engine(batch: int, precision: str, images: int, size: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Images a second: of the engine's epochs, of evaluation, and of steps with a call each; one value a round. Yields what is
    measured so far after each of the three: the next one may not come to an end."""
    import tensorflow as tf

    from benchmarks.support import training
    from trainer import config
    from trainer.engine import devices
    from trainer.engine.chunk import Chunks, Engine, Steps
    from trainer.engine.evaluate import evaluate

    devices.configure(threads=os.cpu_count() or 1, gpu=bool(tf.config.list_physical_devices("GPU")))
    settings = config.parse(
        {
            "data": {"source": "x", "classes": {"a": "a/", "b": "b/"}, "image_size": [size, size]},
            "model": {"precision": precision},
            "training": {"batch_size": batch},
            "pipeline": {"memory_bytes": 10**11},
        }
    )
    rows = np.arange(images)
    feed = training.feed(settings, Rows(images, size), rows)
    learner = training.learner(settings, (size, size, 3), steps=feed.steps)
    learner.resident = feed.load()
    began = time.perf_counter()
    chunks = Chunks(learner, feed, traced=True)
    compiled = time.perf_counter() - began
    found: dict[str, Any] = {"gpu": devices.has_gpu(), "compile_seconds": compiled}

    def measure(name: str, count: int, run: Callable[[int], Any]) -> None:
        """Adds the images a second of `run`, which takes the number of the round and handles `count` images."""
        found[name] = []
        for number in range(rounds + 1):
            began = time.perf_counter()
            run(number)
            if number:
                found[name].append(count / (time.perf_counter() - began))

    def epoch(made: Engine, number: int, end: int) -> None:
        made.begin(number + 1, 0)
        while made.done < end:
            made.train(end, stop=False, save=False)
        assert np.isfinite(made.records()["loss"]).all()

    measure("engine", feed.steps * batch, lambda number: epoch(chunks, number, feed.steps))
    found["digest"] = hashlib.sha256(b"".join(values.tobytes() for _, values in sorted(learner.state().items()))).hexdigest()
    yield found
    learner.compile_evaluation()
    measure("evaluation", len(rows[:EVALUATED]), lambda _: evaluate(learner, feed, rows[:EVALUATED]))
    yield found
    steps, last = Steps(learner, feed, traced=True), min(STEPWISE_STEPS, feed.steps)
    measure("a call a step", last * batch, lambda number: epoch(steps, number, last))
    yield found


def job(folder: Path, images: int, size: int, *, gpu: bool) -> dict[str, Any]:
    """Seconds of two runs of the job on the same images. The second has another name; it finds the packed images and the caches."""
    write_images(folder / "images", images, size)
    quick = images < 1000
    settings = {
        "run.storage": folder / "storage",
        "run.output": folder / "runs",
        "data.source": folder / "images",
        "data.image_size": [size, size],
        "pipeline.cache_dir": folder / "cache",
        "model.precision": "mixed_bfloat16",
        "launch.gpu": str(gpu).lower(),
        "metrics.host": "127.0.0.1",
        "metrics.port": 0,
        "metrics.linger": 0,
    }
    first = timed(settings | {"run.name": "first", "training.epochs": 2 if quick else EPOCHS})
    again: dict[str, Any]
    try:
        again = timed(settings | {"run.name": "again", "training.epochs": 2 if quick else EPOCHS_AGAIN})
    except RuntimeError as error:  # it must not cost the result of the first
        again = {"error": str(error)[-300:]}
    report = json.loads((folder / "runs" / "first" / "report.json").read_text(encoding="utf-8"))
    history = report["history"]
    steps = history[1]["step"] - history[0]["step"]
    return {
        "first": first,
        "again": again,
        "steps": steps,
        "epochs": len(history),
        "whole_epoch": [epoch["seconds"] for epoch in history[1:]],
        "training": [epoch["step_seconds"] * steps for epoch in history[1:]],
        "whole_epoch_to_training": statistics.median(epoch["seconds"] / (epoch["step_seconds"] * steps) for epoch in history[1:]),
        "images_per_second": statistics.median(epoch["images_per_second"] for epoch in history[1:]),
    }


def timed(settings: dict[str, Any]) -> dict[str, float]:
    """Runs the job. Returns the seconds from its start until training begins and until the first epoch has ended, and from there to
    the end. Raises RuntimeError with the job's output if it fails."""
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "jobs.train", "--config", "jobs/configs/question.toml", *overrides]
    began = time.monotonic()
    lines: list[str] = []
    seen: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            for event, start in (("to_training", "training: "), ("to_first_epoch", "epoch ")):
                if line.startswith(start):
                    seen.setdefault(event, time.monotonic() - began)
    if process.returncode:
        raise RuntimeError("".join(lines))
    return seen | {"after_first_epoch": time.monotonic() - began - seen["to_first_epoch"]}


def write_images(folder: Path, count: int, size: int) -> None:
    """JPEG files of noise in two classes; those of the second are brighter in one corner."""
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 200, (size // 8, size // 8, 3), np.uint8)
        pixels[: size // 32 + 1, : size // 32 + 1] += 50 * (number % 2)
        path = folder / ("authentic", "fake")[number % 2] / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((size, size)).save(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_parts", description="Time training with Spikewise.")
    parser.add_argument("name", choices=("engine", "job"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--gpu", action="store_true", help="the job needs a GPU")
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    if a.name == "job":
        print(json.dumps(job(a.folder, a.images, a.size, gpu=a.gpu)))
    else:
        for found in engine(a.batch, a.precision, a.images, a.size, a.rounds):
            print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
