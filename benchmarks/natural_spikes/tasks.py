"""The benchmark's list of tasks, and how a worker process performs one: a whole run, then the experiments on each of its spikes."""

import os
from dataclasses import dataclass
from typing import Any

Sizes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Plan:
    """A set of runs."""

    data: tuple[str, ...]
    seeds: tuple[int, ...]
    epochs: int = 60


ALL = ("sparse marks", "studios", "rare letters", "photographs")
PLANS = {
    "tune": Plan(ALL, tuple(range(6))),
    "report": Plan(ALL, tuple(range(700, 706))),
    "quick": Plan(("sparse marks",), (90,), 30),
}


@dataclass(frozen=True)
class Task:
    """One run. All fields are JSON types."""

    data: str
    seed: int
    epochs: int
    sizes: Sizes = ()
    """Numbers of images that differ from those of NaturalRun, by its arguments."""

    @property
    def name(self) -> str:
        return f"{self.data.replace(' ', '-')}-{self.seed}-{self.epochs}"


def tasks(plan: Plan) -> list[Task]:
    """All tasks of a plan, in rounds that each cover every data set, so that a partial result is balanced."""
    return [Task(data, seed, plan.epochs) for seed in plan.seeds for data in plan.data]


def perform(task: Task) -> list[dict[str, Any]]:
    """Performs one task and returns its result. Limits TensorFlow to one thread, so it needs a process of its own."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from benchmarks.natural_spikes.runs import NaturalRun
    from benchmarks.natural_spikes.spikes import investigate

    run = NaturalRun(task.data, task.seed, **dict(task.sizes))
    before, cases, standing = {}, {}, []
    for epoch in range(1, task.epochs + 1):
        state = run.save()
        news = run.train_epoch()
        if news.diagnosis and run.diagnostician.case:
            before[epoch], cases[epoch] = state, run.diagnostician.case.as_dict()
        if news.standing and news.parts:
            exact = run.parts(news.parts.training)
            standing += [{"name": one.name, "since": one.since, "exact": exact.as_dict()} for one in news.standing]
    history, guess = list(run.history), run.guess
    diagnoses = list(run.diagnostician.diagnoses)
    return [
        {
            "data": task.data,
            "seed": task.seed,
            "epochs": task.epochs,
            "losses": [round(float(epoch.mean()), 4) for epoch in history],
            "guess": guess,
            "standing": standing,
            "spikes": [
                {
                    "diagnosis": one.as_dict(),
                    "case": cases[one.spike.epoch],
                    **investigate(run, before[one.spike.epoch], one, history),
                }
                for one in diagnoses
            ],
        }
    ]
