"""The benchmark's list of tasks, and how a worker process performs one of them."""

import importlib.util
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEALTHY_EPOCHS = 100
OVERFITTING_EPOCHS = 60
SMALL: dict[str, Any] = {"training": 512, "validation": 200, "sample": 100}
HEALTHY: tuple[dict[str, Any], ...] = (SMALL, {**SMALL, "learning_rate": 1e-4, "settled": 1.0})
"""Config of healthy runs with even seeds (the learning rates of the injected runs) and odd seeds (the question's, constant)."""
OTHERS: dict[str, tuple[tuple[str, Any], ...]] = {
    "cosine from 1e-3": (("schedule", "cosine"),),
    "warm-up to 1e-3": (("schedule", "warm-up"),),
    "frozen convolutions": (("frozen", True),),
    "8 steps an epoch": (("training", 256),),
}
"""Further settings of healthy runs: what differs from SMALL, by name."""
ENOUGH = {"photographs": 2400, "letters": 2400}
"""Training images of injected runs on hard data. From 800 images the networks learn too little there for a fault to do harm."""
PAST = 18
"""Healthy epochs before an injection. The seed adds 0 to 3 more."""


@dataclass(frozen=True)
class Plan:
    """A set of runs: each seed is run on each data set with each architecture."""

    data: tuple[str, ...]
    architectures: tuple[str, ...]
    seeds: tuple[int, ...]
    """Seeds of injected runs."""
    healthy: tuple[int, ...]
    """Seeds of healthy runs with HEALTHY."""
    others: tuple[int, ...]
    """Seeds of healthy runs with each of OTHERS."""
    strengths: str
    """Which strengths of an injection to use: "tune" or "report"."""


BOTH = ("question", "residual")
PLANS = {
    "tune": Plan(("textures", "shapes", "digits"), BOTH, (0, 1), (100, 101), (), "tune"),
    "report": Plan(("photographs", "letters"), BOTH, (40, 41), tuple(range(400, 410)), (410, 411), "report"),
    "quick": Plan(("digits",), BOTH, (20,), (), (), "report"),
}


@dataclass(frozen=True)
class Task:
    """One unit of work. All fields are JSON types."""

    kind: str
    """"injection", "healthy" or "overfitting"."""
    data: str
    architecture: str
    seed: int
    strengths: str
    needs: tuple[tuple[str, Any], ...] = ()
    injections: tuple[str, ...] = ()
    """Names of Injection classes."""
    file: str | None = None
    """The file that defines them, if not the benchmark's own."""

    @property
    def name(self) -> str:
        own = f"-{Path(self.file).stem}" if self.file else ""
        needs = "".join(f"-{key}-{value}" for key, value in self.needs)
        return f"{self.kind}-{self.strengths}-{self.data}-{self.architecture}-{self.seed}{needs}{own}"


def load(file: str | None) -> list[Any]:
    """The injections that `file` defines, or the benchmark's own. Raises SystemExit if the file has none."""
    from benchmarks.spike_causes import injections

    if file is None:
        return injections.INJECTIONS
    spec = importlib.util.spec_from_file_location("own_injections", file)
    if spec is None or spec.loader is None or not Path(file).exists():
        raise SystemExit(f"{file}: no such Python file. Fix: pass the path of a file that defines INJECTIONS.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, "INJECTIONS", None)
    if not found:
        raise SystemExit(
            f"{file}: defines no INJECTIONS. Fix: set it to a list of subclasses of benchmarks.spike_causes.injections.Injection."
        )
    return found


def tasks(plan: Plan, file: str | None, only: str | None) -> list[Task]:
    """All tasks of a plan, in rounds that each cover every data set and architecture, so that a partial result is balanced."""
    chosen = [kind for kind in load(file) if only is None or only in (kind.name, kind.cause)]
    places = [(data, architecture) for data in plan.data for architecture in plan.architectures]
    found = []
    if file is None and only is None:
        for data, architecture in places:
            found += [Task("healthy", data, architecture, seed, plan.strengths) for seed in plan.healthy]
            for needs in OTHERS.values():
                found += [Task("healthy", data, architecture, seed, plan.strengths, needs) for seed in plan.others]
            found += [Task("overfitting", data, architecture, seed, plan.strengths) for seed in plan.healthy[::4]]
    for needs in sorted({kind.needs for kind in chosen}):
        names = tuple(kind.__name__ for kind in chosen if kind.needs == needs)
        for data, architecture in places:
            found += [Task("injection", data, architecture, seed, plan.strengths, needs, names, file) for seed in plan.seeds]
    rounds = {seed: number / len(seeds) for seeds in (plan.seeds, plan.healthy, plan.others) for number, seed in enumerate(seeds)}
    return sorted(found, key=lambda task: rounds[task.seed])


def perform(task: Task) -> list[dict[str, Any]]:
    """Performs one task and returns its results. Limits TensorFlow to one thread, so it needs a process of its own."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from benchmarks.spike_causes.runs import Config, Run

    about: dict[str, Any] = {"data": task.data, "architecture": task.architecture, "seed": task.seed}
    if task.kind == "injection":
        kinds = {kind.__name__: kind for kind in load(task.file)}
        run = Run(Config(**about, training=ENOUGH.get(task.data, Config.training), **dict(task.needs)))
        for _ in range(PAST + task.seed % 4):
            run.train_epoch()
        past = run.save()
        results = []
        for name in task.injections:
            for number, strength in enumerate(getattr(kinds[name], task.strengths)):
                run.load(past)
                results.append({"kind": "injection", **about, "strength": number, **_disturb(run, kinds[name](strength))})
        return results
    overfitting = task.kind == "overfitting"
    setting = {**SMALL, **dict(task.needs)} if task.needs else HEALTHY[task.seed % 2]
    run = Run(Config(**about, **({"training": 160} if overfitting else setting)))
    epochs = OVERFITTING_EPOCHS if overfitting else HEALTHY_EPOCHS
    began = time.perf_counter()
    for _ in range(epochs):
        run.train_epoch()
    seconds = time.perf_counter() - began
    diagnoses = run.diagnostician.diagnoses
    alarms = [
        {"epoch": d.spike.epoch, "rise": d.spike.rise, "verdict": d.verdict.name, "fraction": d.verdict.fraction} for d in diagnoses
    ]
    times = {"diagnosis": run.diagnosis_seconds, "rest": seconds - run.diagnosis_seconds}
    losses = [round(float(epoch.mean()), 4) for epoch in run.history]
    trend = run.diagnostician.overfitting is not None
    about["setting"] = next((name for name, needs in OTHERS.items() if needs == task.needs), None)
    return [{"kind": task.kind, **about, "epochs": epochs, "alarms": alarms, "trend": trend, "seconds": times, "losses": losses}]


def _disturb(run: Any, injection: Any) -> dict[str, Any]:
    """Applies an injection for `injection.patience` epochs or until the first alarm, and returns the result."""
    decoy = injection.decoy and run.config.seed % 2 == 1
    diagnosis = None
    for _ in range(injection.patience):
        began, before = time.perf_counter(), run.diagnosis_seconds
        news = run.train_epoch(injection, restarted=decoy)
        epoch_seconds = time.perf_counter() - began - (run.diagnosis_seconds - before)
        if diagnosis := news.diagnosis:
            break
    about = {"name": injection.name, "cause": injection.cause, "value": injection.strength, "decoy": decoy}
    if diagnosis is None:
        return {**about, "detected": False, "losses": [round(float(epoch.mean()), 4) for epoch in run.history[-8:]]}
    for _ in range(6 if injection.cause == "divergence" and diagnosis.spike.outcome == "open" else 0):
        resolved = run.train_epoch(injection).resolved  # a second fault may be resolved before the first
        if same := [one for one in resolved if one.spike.epoch == diagnosis.spike.epoch]:
            diagnosis = same[0]
            break
    return {
        **about,
        "detected": True,
        "verdict": diagnosis.verdict.name,
        "causes": [cause.name for cause in diagnosis.causes],
        "fractions": {cause.name: round(cause.fraction, 3) for cause in diagnosis.causes},
        "seconds": diagnosis.seconds,
        "epoch_seconds": epoch_seconds,
        "diagnosis": diagnosis.as_dict(),
        "case": run.diagnostician.case.as_dict(),
    }


def judge_again(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a detected injection under the present rules, from its stored case; any other result as it is. Probes that
    were not made then are missing."""
    from spikewise.causes import attribute
    from spikewise.records import case_from

    if "case" not in result:
        return result
    ranked = attribute(case_from(result["case"]))
    fractions = {cause.name: round(cause.fraction, 3) for cause in ranked}
    return {**result, "verdict": ranked[0].name, "causes": [cause.name for cause in ranked], "fractions": fractions}
