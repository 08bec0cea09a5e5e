"""Runs the tasks of a benchmark in worker processes. Each finished task is stored, so that an interrupted benchmark resumes."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def finished(tasks: Sequence[Any], cache: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """The results of the tasks that are stored in `cache`, and the other tasks. A task is a dataclass of JSON types with
    a `name`."""
    results: list[dict[str, Any]] = []
    waiting = []
    for task in tasks:
        path = cache / f"{task.name}.json"
        known = json.loads(path.read_text()) if path.exists() else None
        if known is not None and known["task"] == json.loads(json.dumps(asdict(task))):
            results += known["results"]
        else:
            waiting.append(task)
    print(f"{len(waiting)} tasks to do, {len(results)} results known", file=sys.stderr)
    return results, waiting


def perform_all(
    tasks: Sequence[Any], perform: Callable[[Any], list[dict[str, Any]]], cache: Path, processes: int | None
) -> list[dict[str, Any]]:
    """Performs each task in a worker process, stores its results in `cache`, and returns the results of all."""
    cache.mkdir(parents=True, exist_ok=True)
    began, results = time.perf_counter(), []
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        running = {pool.submit(perform, task): task for task in tasks}
        for number, future in enumerate(as_completed(running), 1):
            task = running[future]
            results += future.result()
            path = cache / f"{task.name}.json"
            path.with_suffix(".part").write_text(json.dumps({"task": asdict(task), "results": future.result()}))
            path.with_suffix(".part").replace(path)
            print(f"{number}/{len(tasks)} {task.name} after {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return results


def circumstances(module: str) -> dict[str, str]:
    """Command, date and machine, for the published result."""
    return {
        "command": f"python -m {module} {' '.join(sys.argv[1:])}".strip(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
    }
