"""Turns the results of all runs into the published numbers, each with its count and interval. Pure functions.

A result is one dict. An injection has `kind` "injection", name, cause, strength (0 weak to 2 strong), detected, verdict and more;
a run without an injection has `kind` "healthy" or "overfitting", epochs, alarms and more (see tasks.perform).
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy.stats import chi2

from trainer.report.scores import wilson

Result = dict[str, Any]
STRENGTHS = ("weak", "medium", "strong")
RATES = ("1e-3, 1e-4 from the ninth epoch on", "1e-4")
"""Setting of healthy runs with even seeds, and with odd seeds (tasks.HEALTHY); those of tasks.OTHERS have their own."""


def score(results: Iterable[Result]) -> dict[str, Any]:
    """The scores that the benchmark prints."""
    results = list(results)
    injected = [r for r in results if r["kind"] == "injection"]
    detected = [r for r in injected if r["detected"]]
    healthy = [r for r in results if r["kind"] == "healthy"]
    overfitted = [r for r in results if r["kind"] == "overfitting"]
    alarms = [alarm for r in healthy for alarm in r["alarms"]]
    epochs = sum(r["epochs"] for r in healthy)
    return {
        "verdict_right": {
            "all": fraction(detected, _right),
            **{
                f"{name} strength": fraction([r for r in detected if r["strength"] == i], _right)
                for i, name in enumerate(STRENGTHS)
            },
            "by_cause": by(detected, "cause", _right),
            "by_injection": by(detected, "name", _right),
            "by_architecture": by(detected, "architecture", _right),
            "by_data": by(detected, "data", _right),
            "among_first_two": fraction(detected, lambda r: r["cause"] in r["causes"][:2]),
        },
        "detected": {
            **{name: fraction([r for r in injected if r["strength"] == i], _found) for i, name in enumerate(STRENGTHS)},
            "strong_by_injection": by([r for r in injected if r["strength"] == 2], "name", _found),
            "rise_of_at_least": {
                f"{least:.0%}": fraction([r for r in injected if _raised(r) >= least], _found) for least in (0.1, 0.25, 0.5, 1.0)
            },
        },
        "confusion": _confusion(detected),
        "healthy": {
            "runs_with_alarm": fraction(healthy, _alarmed),
            "runs_with_alarm_by_setting": by(
                [{**r, "setting": r.get("setting") or RATES[r["seed"] % 2]} for r in healthy], "setting", _alarmed
            ),
            "alarms_per_100_epochs": _rate(len(alarms), epochs),
            "epochs": epochs,
            "verdicts_of_alarms": dict(Counter(alarm["verdict"] for alarm in alarms)),
            "extra_time": _time([r for r in healthy if not r["alarms"]]),
        },
        "overfitting": {
            "called_a_trend": fraction(overfitted, lambda r: r["trend"]),
            "runs_with_alarm": fraction(overfitted, _alarmed),
        },
        "seconds_per_diagnosis": _median([r["seconds"] for r in detected]),
        "epochs_of_training_per_diagnosis": _median([r["seconds"] / r["epoch_seconds"] for r in detected]),
    }


def _right(result: Result) -> bool:
    return result["verdict"] == result["cause"]


def _found(result: Result) -> bool:
    return result["detected"]


def _raised(result: Result) -> float:
    """By which fraction an injection raised the loss: above the expected loss if it was detected, otherwise the largest rise above
    the median of the three epochs before, in the last eight epochs."""
    if result["detected"]:
        spike = result["diagnosis"]["spike"]
        return float("inf") if spike["rise"] is None else float(spike["rise"] / spike["baseline"])
    losses = result["losses"]
    return max(float(losses[i] / np.median(losses[i - 3 : i]) - 1) for i in range(3, len(losses)))


def _alarmed(result: Result) -> bool:
    return bool(result["alarms"])


def fraction(results: list[Result], holds: Callable[[Result], bool]) -> dict[str, Any] | None:
    """The fraction of results for which `holds`, its count, and Wilson's 95 % interval. None without results."""
    n = len(results)
    if not n:
        return None
    k = sum(map(holds, results))
    return {"fraction": round(k / n, 4), "count": k, "of": n, "interval_95": [round(bound, 4) for bound in wilson(k, n)]}


def _rate(count: int, epochs: int) -> dict[str, Any] | None:
    """The rate per 100 epochs, with Garwood's 95 % interval for a Poisson count. None without epochs."""
    if not epochs:
        return None
    low, high = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0, chi2.ppf(0.975, 2 * count + 2) / 2
    return {
        "rate": round(100 * count / epochs, 4),
        "count": count,
        "interval_95": [round(100 * float(low) / epochs, 4), round(100 * float(high) / epochs, 4)],
    }


def by(results: list[Result], key: str, holds: Callable[[Result], bool]) -> dict[str, Any]:
    return {value: fraction([r for r in results if r[key] == value], holds) for value in sorted({r[key] for r in results})}


def _confusion(results: list[Result]) -> dict[str, dict[str, int]]:
    """Counts by injected cause and verdict."""
    return {
        cause: dict(Counter(r["verdict"] for r in results if r["cause"] == cause))
        for cause in sorted({r["cause"] for r in results})
    }


def _time(runs: list[Result]) -> dict[str, Any] | None:
    """Time of the diagnosis, as a fraction of the rest of the run. None without runs."""
    fractions = [r["seconds"]["diagnosis"] / r["seconds"]["rest"] for r in runs]
    return (
        {"median": round(float(np.median(fractions)), 4), "largest": round(max(fractions), 4), "runs": len(runs)}
        if fractions
        else None
    )


def _median(values: list[float]) -> float | None:
    return round(float(np.median(values)), 2) if values else None
