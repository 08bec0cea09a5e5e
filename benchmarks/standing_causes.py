"""Measures how often a standing cause is named that was put into a run from its first epoch on. Prints JSON.

    python -m benchmarks.standing_causes [--set report|tune] [--processes 2] [--cache FOLDER]

A standing cause is a part of the validation loss that stays high without a spike (docs/diagnosis.md). Each cause is put into runs
of two networks, with several seeds, and must be named within EPOCHS epochs, or LONGER with few images, within the default budget.
What else is named in these runs is counted too, and what is named in healthy ones. The tuning set and the reporting set share
neither data nor seeds.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter

from benchmarks.support.resumable import circumstances, finished, perform_all

EPOCHS, LONGER = 20, 60
SETS = {"tune": ("shapes", (0, 1)), "report": ("letters", (800, 801, 802, 803))}
"""For each set: the data, and the seeds."""
ENOUGH = {"training": 2400, "settled": 1.0}
"""Images and a learning rate with which the networks learn the data. What a cause does to one that knows nothing is small."""
SETTINGS: dict[str, dict[str, Any]] = {
    "statistics": {**ENOUGH, "momentum": 0.999},
    "generalization": {**ENOUGH, "training": 160, "momentum": 0.5},  # else statistics lag behind 5 steps an epoch
    "fit": {**ENOUGH, "learning_rate": 1e-6},
    "preparation": ENOUGH,
    "healthy": ENOUGH,
}
"""What differs from spike_causes.runs.Config, by the cause that is put in; `prepare` does the rest."""
PREPARATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "darker": lambda pixels: 0.3 * pixels,
    "less contrast": lambda pixels: 128 + 0.4 * (pixels - 128.0),
    "color cast": lambda pixels: np.clip(pixels + np.array([50.0, 0, -50]), 0, 255),
    "blurred": lambda pixels: uniform_filter(pixels.astype(float), (0, 3, 3, 0)),
}
"""What validation images [n, H, W, C] get in addition, by name; the seeds take turns."""


@dataclass(frozen=True)
class Task:
    data: str
    architecture: str
    seed: int
    cause: str

    @property
    def name(self) -> str:
        settings = "".join(f"-{name}-{value}" for name, value in SETTINGS[self.cause].items())
        return f"{self.cause}-{self.data}-{self.architecture}-{self.seed}{settings}"


def prepare(run: Any, name: str) -> None:
    """Gives the validation images of a new run another preparation than the training images."""
    pixels, labels = run.validation
    run.validation = PREPARATIONS[name](pixels).astype(pixels.dtype), labels


def perform(task: Task) -> list[dict[str, Any]]:
    """The epoch in which each standing cause was first named. Limits TensorFlow to one thread, so it needs a process of its own."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from benchmarks.spike_causes.runs import Config, Run

    run = Run(Config(task.data, task.architecture, task.seed, **SETTINGS[task.cause]))
    preparation = list(PREPARATIONS)[task.seed % len(PREPARATIONS)] if task.cause == "preparation" else None
    if preparation:
        prepare(run, preparation)
    named: dict[str, int] = {}
    last = LONGER if task.cause == "generalization" else EPOCHS
    for epoch in range(1, last + 1):
        for one in run.train_epoch(final=epoch == last).standing:
            named.setdefault(one.name, epoch)
    losses = [round(float(epoch.mean()), 3) for epoch in run.history]
    about = {"cause": task.cause, "preparation": preparation, "architecture": task.architecture, "seed": task.seed}
    return [{**about, "named": named, "losses": losses}]


def named(one: dict[str, Any]) -> list[int]:
    """The epochs in which the cause that was put in was named: under either of its names, if it is another preparation."""
    names = ("appearance", "preparation") if one["cause"] == "preparation" else (one["cause"],)
    return [epoch for name, epoch in one["named"].items() if name in names]


def score(results: list[dict[str, Any]]) -> dict[str, Any]:
    """How often each cause was named, and when; what else was named; and the same for healthy runs."""
    from benchmarks.spike_causes.scoring import by, fraction

    injected = [one for one in results if one["cause"] != "healthy"]

    def found(one: dict[str, Any]) -> bool:
        return bool(named(one))

    return {
        "named": {"all": fraction(injected, found), **by(injected, "cause", found)},
        "epoch_of_the_name": {
            cause: sorted(min(named(one)) for one in injected if one["cause"] == cause and found(one)) for cause in SETTINGS
        },
        "named_besides": {
            cause: dict(Counter(name for one in results if one["cause"] == cause for name in one["named"] if name != cause))
            for cause in SETTINGS
        },
        "healthy_runs": sum(one["cause"] == "healthy" for one in results),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=sorted(SETS), default="report")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", type=Path, default=Path(".cache/standing_causes"), help="folder of finished runs")
    arguments = parser.parse_args()
    data, seeds = SETS[arguments.set]
    tasks = [Task(data, network, seed, cause) for seed in seeds for network in ("question", "residual") for cause in SETTINGS]
    results, waiting = finished(tasks, arguments.cache)
    results += perform_all(waiting, perform, arguments.cache, arguments.processes)
    about = {**circumstances("benchmarks.standing_causes"), "epochs": EPOCHS, "epochs_with_few_images": LONGER}
    print(json.dumps({**about, **score(results), "each": results}, indent=1))


if __name__ == "__main__":
    main()
