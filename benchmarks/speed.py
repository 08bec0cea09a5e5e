"""Measures the speed and the memory of the job. Prints one JSON object.

    python -m benchmarks.speed [--quick]     (or: make bench)

Takes about 15 minutes on two cores; keep the machine otherwise idle. --quick takes about 5 minutes and shows only that the
benchmark works. Trains the network of trainer/model/question.py on demo photographs (64x64, batch size 32) in the local S3 server.
Machines differ and their speed drifts, so only ratios count: the programs to compare alternate within one call, ROUNDS times.

    a  the job on Ray with one worker, against the same steps on data in memory without Ray      (target: 0.95)
    b  the job against keras.Model.fit on the same network; two workers against one; a training step against the same step
       with Keras' BatchNormalization                                                            (target: 1.7)
    c  images read from the S3 server by a first run, and by a second run on the same data       (target: 0)
    d  peak memory of the driver, the workers and Ray, and what limits it

A speed is that of training alone: the median over all epochs but the first. Memory is measured in separate, untimed runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks.support.faultproxy import FaultProxy
from benchmarks.support.job import Job, read_report
from jobs.demo.s3_server import local_s3_server
from trainer import config
from trainer.storage import open_store

IMAGES, SIZE = 2000, 128
ROUNDS, EPOCHS = 3, 8
QUICK_IMAGES, QUICK_EPOCHS = 400, 3
SAMPLE_SECONDS = 0.3
MEASURES = ("resident", "unshared", "processes")
QUESTION = Path("jobs/configs/question.toml")
SOURCE, S3 = "s3://spikewise/photographs", config.S3(path_style=True)
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
BOUNDS = {
    "driver": "while packing, one shard (96 MB) regardless of the size of the data; afterwards Ray's client",
    "worker": "TensorFlow, the network's activations (training.batch_size x data.image_size), and the packed images if they fit "
    "in pipeline.memory_bytes (otherwise they stay on disk)",
    "Ray's tasks": "while packing, per core: a block of 64 images (at most 32 MB of pixels) and 256 MB of input files",
    "Ray itself": "launch.object_store_bytes of shared memory; the resident set of a process includes the part it has touched",
}


class Bench:
    """A temporary folder with the images, a copy of them in the S3 server, and runs on both."""

    def __init__(self, folder: Path, images: int) -> None:
        self.folder = folder
        self.images = folder / "images"
        size = ["--images", str(images), "--size", str(SIZE)]
        subprocess.run([sys.executable, "-m", "jobs.demo.images", *size, str(self.images)], stdout=sys.stderr, check=True)
        here, there = open_store(str(self.images), S3), open_store(SOURCE, S3)
        for entry in here.list():
            there.put(entry.key, here.get(entry.key))

    def start(self, name: str, workers: int, epochs: int) -> Job:
        return Job(
            QUESTION,
            name,
            "run.storage=s3://spikewise/benchmark",
            f"run.output={self.folder / 'runs'}",
            f"data.source={SOURCE}",
            "s3.path_style=true",
            f"pipeline.cache_dir={self.folder / 'cache'}",
            f"training.epochs={epochs}",
            f"launch.workers={workers}",
            "metrics.host=127.0.0.1",
            "metrics.port=0",
            "metrics.linger=0",
        )

    def job(self, name: str, workers: int, epochs: int) -> dict:
        """Runs the job and returns its report."""
        say(f"{name}: {workers} worker{'s' * (workers > 1)}")
        job = self.start(name, workers, epochs)
        job.process.wait()
        job.succeed()
        return read_report(self.folder / "runs", name)

    def contender(self, name: str, *arguments: str) -> dict:
        """Runs one of benchmarks.contenders and returns its result."""
        say(name)
        command = [sys.executable, "-m", "benchmarks.contenders", name, str(self.images), *arguments]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def say(what: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {what}", file=sys.stderr, flush=True)


def steady(speeds: list[float]) -> float:
    """The median of all epochs but the first, in which TensorFlow traces its functions and the data is read."""
    return statistics.median(speeds[1:])


def compare(bench: Bench, rounds: int, epochs: int) -> dict:
    """Parts a and b: speeds."""
    speeds: dict[str, list[float]] = defaultdict(list)
    whole: list[float] = []
    for number in range(rounds):
        for workers, what in ((1, "job, 1 worker"), (2, "job, 2 workers")):
            history = bench.job(f"round{number}-{workers}", workers, epochs)["history"]
            speeds[what].append(steady([epoch["images_per_second"] for epoch in history]))
            if workers == 1:
                whole.append(statistics.median(epoch["seconds"] for epoch in history[1:]))
        for what in ("memory", "fit", "fit-cached"):
            speeds[what].append(steady(bench.contender(what, "--epochs", str(epochs))["images_per_second"]))

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(speeds[one], speeds[other], strict=True))

    turns = bench.contender("step")["milliseconds"]
    ours, theirs = turns.values()
    return {
        "images_per_second": {what: {"median": statistics.median(values), "rounds": values} for what, values in speeds.items()},
        "a_job_against_memory": {
            "ratio": ratio("job, 1 worker", "memory"),
            "target": 0.95,
            "whole_epoch_seconds": statistics.median(whole),
        },
        "b_against_keras_fit": {
            "ratio": ratio("job, 1 worker", "fit"),
            "ratio_cached": ratio("job, 1 worker", "fit-cached"),
            "target": 1.7,
            "two_workers_to_one": ratio("job, 2 workers", "job, 1 worker"),
            "two_workers_to_fit": ratio("job, 2 workers", "fit"),
            "two_workers_to_fit_cached": ratio("job, 2 workers", "fit-cached"),
            "step_milliseconds": {kind: statistics.median(values) for kind, values in turns.items()},
            "step_ratio_to_keras_batch_normalization": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        },
    }


def observe(bench: Bench, endpoint_url: str, epochs: int) -> dict:
    """Parts c and d: image reads and memory of a first run, which packs, and of a second one with two workers."""
    reads, memory = {}, {}
    with FaultProxy(endpoint_url) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        for name, workers in (("first", 1), ("second", 2)):
            before = len(proxy.seen)
            memory[f"{name} run, {workers} worker{'s' * (workers > 1)}"] = watch(bench.start(name, workers, epochs))
            keys = [path.partition("?")[0] for method, path in proxy.seen[before:] if method == "GET"]
            reads[name] = sum(key.endswith(".jpg") for key in keys)
    os.environ["AWS_ENDPOINT_URL"] = endpoint_url
    return {
        "c_image_reads": {"first_run": reads["first"], "second_run": reads["second"], "target_second_run": 0},
        "d_peak_megabytes": memory | {"bounded_by": BOUNDS},
    }


def watch(job: Job) -> dict[str, dict[str, float]]:
    """Waits for a job to finish. Returns the peak of each measure by role, summed over the role's processes.

    Sizes are in MB. Memory that processes share counts once per process in `resident` and not at all in `unshared`.
    """
    peaks: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(MEASURES, 0))
    while job.process.poll() is None:
        now: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(MEASURES, 0))
        try:
            driver = psutil.Process(job.process.pid)
            processes = [driver, *driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for process in processes:
            try:
                used, title = process.memory_full_info(), " ".join(process.cmdline())
            except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                continue
            for role in (_role(title, process.pid == job.process.pid), "all"):
                for measure, value in zip(MEASURES, (used.rss / 1e6, used.uss / 1e6, 1), strict=True):
                    now[role][measure] += value
        for role, sums in now.items():
            peaks[role] = {measure: max(value, peaks[role][measure]) for measure, value in sums.items()}
        time.sleep(SAMPLE_SECONDS)
    job.succeed()
    return {role: {measure: round(value) for measure, value in sums.items()} for role, sums in peaks.items()}


def _role(title: str, is_driver: bool) -> str:
    if is_driver:
        return "driver"
    if "RayTrainWorker" in title:
        return "workers"
    return "Ray's tasks" if title.startswith("ray::") else "Ray itself"


def machine(environment: dict[str, str]) -> dict:
    """Describes this machine. `environment` is that of a run's report."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0].split()
    return {
        "processor": environment["processor"],
        "cores": int(environment["cores"]),
        "flags": {name: name in flags for name in FLAGS},
        "memory_gigabytes": round(psutil.virtual_memory().total / 1e9, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="Measure the job: speed and memory.")
    parser.add_argument("--quick", action="store_true", help="few images and one round: shows that the benchmark works")
    arguments = parser.parse_args()
    images, rounds, epochs = (QUICK_IMAGES, 1, QUICK_EPOCHS) if arguments.quick else (IMAGES, ROUNDS, EPOCHS)
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="spikewise-benchmark-") as name, local_s3_server(Path(name, "objects")) as server:
        os.environ |= server.environment
        bench = Bench(Path(name), images)
        observed = observe(bench, server.endpoint_url, 2)
        compared = compare(bench, rounds, epochs)
        environment = read_report(bench.folder / "runs", "first")["environment"]
    result = {
        "command": f"python -m benchmarks.speed{' --quick' if arguments.quick else ''}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(environment) | {"load_before": load},
        "versions": {name: environment[name] for name in ("python", "tensorflow", "keras", "ray", "numpy")},
        "setting": {"images": images, "pixels": [SIZE, SIZE], "config": str(QUESTION), "rounds": rounds, "epochs": epochs},
        **compared,
        **observed,
        "seconds": time.monotonic() - began,
    }
    print(json.dumps(json.loads(json.dumps(result), parse_float=lambda text: round(float(text), 3)), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
