"""Measures how often a standing cause is named that was put into a run from its first epoch on. Prints JSON.

    python -m benchmarks.standing_causes [--set report|tune] [--processes 2]

Takes a few minutes on two cores. A standing cause is a part of the validation loss that stays high without a spike
(docs/diagnosis.md). Each cause is put into runs of two networks, with several seeds, and must be named within EPOCHS epochs, within
the default budget. What else is named in these runs is counted too, and what is named in healthy ones. The tuning set and the
reporting set share neither data nor seeds.
"""

import argparse
import json
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from benchmarks.support.resumable import circumstances

EPOCHS = 15
SETS = {"tune": ("shapes", (0, 1)), "report": ("letters", (800, 801, 802, 803))}
"""For each set: the data, and the seeds."""
SETTINGS: dict[str, dict[str, Any]] = {
    "statistics": {"momentum": 0.999},
    "generalization": {"training": 160, "settled": 1.0},
    "fit": {"learning_rate": 1e-6},
    "preparation": {},
    "healthy": {},
}
"""What differs from spike_causes.runs.Config, by the cause that is put in; `spoil` does the rest."""


@dataclass(frozen=True)
class Task:
    data: str
    architecture: str
    seed: int
    cause: str


def spoil(run: Any, cause: str) -> None:
    """Puts a cause into the images of a new run."""
    if cause == "preparation":
        pixels, labels = run.validation
        run.validation = (0.3 * pixels).astype(pixels.dtype), labels


def perform(task: Task) -> dict[str, Any]:
    """The epoch in which each standing cause was first named. Limits TensorFlow to one thread, so it needs a process of its own."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from benchmarks.spike_causes.runs import Config, Run

    run = Run(Config(task.data, task.architecture, task.seed, **SETTINGS[task.cause]))
    spoil(run, task.cause)
    named: dict[str, int] = {}
    for epoch in range(1, EPOCHS + 1):
        for one in run.train_epoch().standing:
            named.setdefault(one.name, epoch)
    losses = [round(float(epoch.mean()), 3) for epoch in run.history]
    return {"cause": task.cause, "architecture": task.architecture, "seed": task.seed, "named": named, "losses": losses}


def score(results: list[dict[str, Any]]) -> dict[str, Any]:
    """How often each cause was named, and when; what else was named; and the same for healthy runs."""
    from benchmarks.spike_causes.scoring import by, fraction

    injected = [one for one in results if one["cause"] != "healthy"]

    def found(one: dict[str, Any]) -> bool:
        return one["cause"] in one["named"]

    return {
        "named": {"all": fraction(injected, found), **by(injected, "cause", found)},
        "epoch_of_the_name": {
            cause: sorted(one["named"][cause] for one in injected if one["cause"] == cause and found(one)) for cause in SETTINGS
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
    arguments = parser.parse_args()
    data, seeds = SETS[arguments.set]
    tasks = [Task(data, network, seed, cause) for seed in seeds for network in ("question", "residual") for cause in SETTINGS]
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        results = list(pool.map(perform, tasks))
    about = {**circumstances("benchmarks.standing_causes"), "epochs": EPOCHS}
    print(json.dumps({**about, **score(results), "each": results}, indent=1))


if __name__ == "__main__":
    main()
