"""Measures training on a GPU: the engine alone, PyTorch and JAX, and the whole job. Prints one JSON object.

    python -m benchmarks.gpu [--minutes 8] [--only PART ...] [--quick] [--output FILE]

For a machine with one GPU that can install nothing: it needs the job's dependencies, and measures PyTorch and JAX where they can be
imported. Parts run one after the other, each in a process of its own with a timeout, the most important ones first. Parts for which
no time is left are named as skipped; `--only` measures them in another call. Nothing else may use the card meanwhile. --quick runs
the first parts on any machine, tiny, in a minute or two, and shows only that the benchmark works. Environment variables such as
XLA_FLAGS reach every part and are part of the result.

The network is that of trainer/model/question.py, the images are 128x128 and resident, the batch sizes 32 and 256.

    engine-B-P     images a second of training at batch size B in precision P: the engine of the job, and a call a step; evaluation;
                   and a digest of the weights in the end
    again          engine-32-bf16 once more: its digest says whether two runs are equal bit for bit
    deterministic  the same twice with TF_DETERMINISTIC_OPS=1: what that costs, and whether the two are equal
    torch-B, jax-B PyTorch (eager, CUDA graph, compile + CUDA graph) and JAX (lax.scan, Keras' fit) in bfloat16
    job            100 epochs of 8,000 images with everything switched on: seconds until the first epoch has ended, and from there
                   to the end; a whole epoch against its training. Then another run on the same data, which finds packs and caches
    cache          the same twice with TensorFlow's persistent cache of compiled programs: how long compiling takes with and without
    tests          the suite's tests of the engine and the model on this machine, with memory growth and without TF32; a line for
                   each that fails
"""

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PRECISIONS = {"bf16": "mixed_bfloat16", "float32": "float32"}
LEAST_SECONDS = 15.0
"""A part is skipped if less time is left."""


@dataclass(frozen=True)
class Part:
    """One measurement: a command that prints lines of JSON (the last one counts) or, for the tests, text."""

    name: str
    command: list[str]
    seconds: float
    """Its timeout."""
    environment: dict[str, str] = field(default_factory=dict)


def parts(*, quick: bool, gpu: bool, folder: Path) -> list[Part]:
    """All parts, the most important ones first. `gpu`: whether there is one. `folder`: an empty one, for the job."""
    size = ["--images", "320", "--size", "16", "--rounds", "1"] if quick else []
    times = 6 if quick else 1
    """By how much the timeouts of a quick run are longer: the machine may be busy."""

    def engine(name: str, batch: int, precision: str, **environment: str) -> Part:
        arguments = ["engine", "--batch", str(batch), "--precision", PRECISIONS[precision], *size]
        return Part(name, ["benchmarks.gpu_parts", *arguments], 120 * times, environment)

    def peer(name: str, batch: int) -> Part:
        return Part(f"{name}-{batch}", ["benchmarks.gpu_peers", name, "--batch", str(batch), *size], 100 * times)

    job = ["benchmarks.gpu_parts", "job", "--folder", str(folder), *size, *(["--gpu"] if gpu else [])]
    first = [engine("engine-32-bf16", 32, "bf16"), peer("torch", 32), peer("jax", 32), Part("job", job, 200 * times)]
    if quick:
        return first
    deterministic = {"TF_DETERMINISTIC_OPS": "1"}
    cache = {"TF_XLA_FLAGS": f"--tf_xla_persistent_cache_directory={folder / 'programs'}"}
    tests = [
        "pytest",
        "-v",
        "-rfE",
        "--tb=line",
        "-o",
        "addopts=",
        "-m",
        "not integration",
        "tests/trainer/engine",
        "tests/trainer/model",
    ]
    exact = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "NVIDIA_TF32_OVERRIDE": "0"}  # the tests compare with bounds of float32
    return [
        *first,
        engine("again", 32, "bf16"),
        engine("engine-256-bf16", 256, "bf16"),
        peer("torch", 256),
        engine("engine-32-float32", 32, "float32"),
        engine("engine-256-float32", 256, "float32"),
        engine("deterministic", 32, "bf16", **deterministic),
        engine("deterministic-again", 32, "bf16", **deterministic),
        engine("cache", 32, "bf16", **cache),
        engine("cache-again", 32, "bf16", **cache),
        peer("jax", 256),
        Part("tests", tests, 200, exact),
    ]


def run(part: Part, seconds: float) -> dict[str, Any]:
    """Runs a part for at most so long. Returns its result, or why there is none; and how long it took."""
    say(f"{part.name}: at most {seconds:.0f} s")
    began = time.monotonic()
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2"} | os.environ | part.environment
    command = [sys.executable, "-m", *part.command]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    error = None
    try:
        output, _ = process.communicate(timeout=seconds)
        if process.returncode:
            error = f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()  # all of it, also what came before the timeout
        error = f"not finished after {seconds:.0f} s"
    lines = output.strip().splitlines()
    found = outcomes(lines) if part.name == "tests" else last_object(lines)
    if error:
        found["error"] = error if found else f"{error}: {''.join(lines[-1:])[:200]}"
    found["seconds"] = round(time.monotonic() - began, 1)
    say(f"{part.name}: {json.dumps(found)}")
    return found


def last_object(lines: list[str]) -> dict[str, Any]:
    """The last line that is a JSON object; empty if there is none."""
    for line in reversed(lines):
        with suppress(ValueError):
            if isinstance(found := json.loads(line), dict):
                return found
    return {}


def outcomes(lines: list[str]) -> dict[str, Any]:
    """The last line of pytest, which counts the tests or, after a timeout, names the one that hung; and a line for each failure."""
    return {"summary": "".join(lines[-1:]), "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))]}


def summarize(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The numbers that the goals are about, as far as their parts have run."""

    def median(part: str, key: str) -> float:
        values = found.get(part, {}).get(key)
        return statistics.median(values) if isinstance(values, list) and values else float("nan")

    def equal(one: str, other: str) -> bool | None:
        digests = {found.get(part, {}).get("digest") for part in (one, other)}
        return None if None in digests else len(digests) == 1

    summary: dict[str, Any] = {}
    for batch in (32, 256):
        ours = median(f"engine-{batch}-bf16", "engine")
        ways = ("eager", "CUDA graph", "compile + CUDA graph")
        best = max((value for way in ways if (value := median(f"torch-{batch}", way)) > 0), default=float("nan"))
        summary[f"batch {batch}, bf16"] = {
            "images_per_second": ours,
            "times_a_call_a_step": ours / median(f"engine-{batch}-bf16", "a call a step"),
            "times_the_best_of_pytorch": ours / best,
            "times_the_scan_in_jax": ours / median(f"jax-{batch}", "scan"),
        }
    costs = median("engine-32-bf16", "engine") / median("deterministic", "engine")
    job = found.get("job", {})
    return summary | {
        "equal_bit_for_bit": equal("engine-32-bf16", "again"),
        "deterministic": {"equal_bit_for_bit": equal("deterministic", "deterministic-again"), "times_slower": costs},
        "whole_epoch_to_training": job.get("whole_epoch_to_training"),
        "seconds_after_the_first_epoch": job.get("first", {}).get("after_first_epoch"),
        "seconds_to_training_with_caches": job.get("again", {}).get("to_training"),
    }


def machine() -> dict[str, Any]:
    """The card, its driver, the processor, and what decides how they compute."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        card = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        card = "none"
    flags = {name: value for name, value in os.environ.items() if name in ("XLA_FLAGS", "TF_XLA_FLAGS", "TF_DETERMINISTIC_OPS")}
    return {
        "gpu": card,
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "flags": flags,
        "load_before": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("tensorflow", "keras", "ray", "numpy", "torch", "jax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def say(what: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {what}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measure training on a GPU.")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts together")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="only these parts")
    parser.add_argument("--quick", action="store_true", help="tiny, on any machine: shows that the benchmark works")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file, after each part")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes - LEAST_SECONDS
    found: dict[str, dict[str, Any]] = {}
    result: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "versions": versions(),
    }
    with tempfile.TemporaryDirectory(prefix="spikewise-gpu-") as folder:
        every = parts(quick=arguments.quick, gpu=result["machine"]["gpu"] != "none", folder=Path(folder))
        if unknown := set(arguments.only) - {part.name for part in every}:
            parser.error(f"no such part: {', '.join(sorted(unknown))}. Fix: use {', '.join(part.name for part in every)}.")
        for part in every:
            if arguments.only and part.name not in arguments.only:
                continue
            left = end - time.monotonic()
            found[part.name] = run(part, min(part.seconds, left)) if left > LEAST_SECONDS else {"skipped": "no time left"}
            result |= {"summary": summarize(found), "parts": found}
            text = json.dumps(_plain(result), indent=1)
            if arguments.output:
                arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if all("error" not in each for each in found.values()) else 1


def _plain(value: Any) -> Any:
    """The same with rounded numbers; null for NaN, which is what was not measured."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return round(value, 4) if value == value else None
    return value


if __name__ == "__main__":
    sys.exit(main())
