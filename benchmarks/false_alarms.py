"""Measures how often the detector raises an alarm in a healthy run, on simulated loss curves. Prints JSON.

    python -m benchmarks.false_alarms [--runs 4000] [--seed 1]

Takes a few minutes. This is where spikewise.forecast.MULTIPLE comes from: it is the smallest multiple, rounded up to halves, at
which at most 5 % of the runs of every kind below raise an alarm. A simulated curve is a trend (a fall to a floor, then possibly
overfitting) plus autocorrelated noise. The kind "photographs" imitates real runs on photographs: standard deviation 0.05,
lag-1 autocorrelation 0.5-0.6, and a few excursions of 3 to 6 MAD while the loss climbs from 0.7 to 1.4-1.7. The multiple was
chosen with --seed 0 and is reported with --seed 1.

Shapes: S runs, T epochs.
"""

import argparse
import json
import time
from dataclasses import dataclass

import numpy as np

from spikewise import detect, forecast

EPOCHS = 100


@dataclass(frozen=True)
class Kind:
    """A kind of healthy run. Each run draws its own value from each pair (low, high)."""

    autocorrelation: tuple[float, float]
    deviation: tuple[float, float]
    """Standard deviation of the noise, in nats."""
    excursions: float
    """Largest fraction of epochs with an excursion of 3 to 6 MAD, up or down."""
    climb: tuple[float, float]
    """Total rise of the loss through overfitting, in nats."""
    grows: bool = False
    """Whether the noise is proportional to the loss."""


KINDS = {
    "photographs": Kind((0.5, 0.6), (0.05, 0.05), 0.05, (0.7, 1.0)),
    "photographs, growing": Kind((0.5, 0.6), (0.04, 0.06), 0.05, (0.7, 1.0), grows=True),
    "independent noise": Kind((0.0, 0.0), (0.01, 0.08), 0.0, (0.0, 1.0)),
    "independent, excursions": Kind((0.0, 0.2), (0.01, 0.08), 0.05, (0.0, 1.0)),
    "slow noise": Kind((0.6, 0.8), (0.01, 0.08), 0.03, (0.0, 1.0)),
    "small noise": Kind((0.3, 0.6), (0.002, 0.01), 0.03, (0.0, 0.5)),
    "mixture": Kind((0.0, 0.7), (0.005, 0.08), 0.03, (0.0, 1.2), grows=True),
}


def simulate(kind: Kind, runs: int, seed: int) -> np.ndarray:
    """Validation losses [S, T] of healthy runs."""
    r = np.random.default_rng(seed)
    t = np.arange(EPOCHS)[None]

    def draw(low: float, high: float) -> np.ndarray:
        return r.uniform(low, high, (runs, 1))

    start = draw(0.6, 2.3)
    floor = np.minimum(start, np.where(r.random((runs, 1)) < 0.5, draw(0.1, 1.0), 0.7))
    trend = floor + (start - floor) * np.exp(-t / np.exp(draw(np.log(0.7), np.log(15))))
    late = np.clip(t - draw(2, 40), 0, None)
    length = draw(20, 100)
    trend = trend + draw(*kind.climb) * np.where(r.random((runs, 1)) < 0.5, late / EPOCHS, 1 - np.exp(-late / length))
    rho = draw(*kind.autocorrelation)
    shocks = r.normal(size=(runs, EPOCHS)) * np.sqrt(1 - rho**2)
    sign = np.where(r.random((runs, EPOCHS)) < 0.7, 1, -1)
    shocks += (r.random((runs, EPOCHS)) < draw(0, kind.excursions)) * sign * r.uniform(3, 6, (runs, EPOCHS)) * 0.6745
    noise = np.zeros((runs, EPOCHS))
    noise[:, 0] = r.normal(size=runs)
    for epoch in range(1, EPOCHS):
        noise[:, epoch] = rho[:, 0] * noise[:, epoch - 1] + shocks[:, epoch]
    return np.maximum(trend + draw(*kind.deviation) * (trend if kind.grows else 1) * noise, 0.001)


def unsettled(runs: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Short runs with restless first epochs, as BatchNormalization with lagging statistics has them: the loss may climb before it
    falls, and its noise dies down. Healthy losses [S, 15] (NaN after a run's end, 8 to 15 epochs), the same with a fault that
    multiplies one epoch's loss by 2 to 5 and the next one's by half of that on a logarithmic scale, and the fault's epoch [S]."""
    r = np.random.default_rng([seed, 1])
    t = np.arange(15)[None]

    def draw(low: float, high: float) -> np.ndarray:
        return r.uniform(low, high, (runs, 1))

    start, fall, slowness = draw(0.7, 2.6), draw(0.2, 2.5), np.exp(draw(np.log(1.5), np.log(12)))
    floor = start * np.exp(-fall)
    hump = draw(0, 0.8) * (r.random((runs, 1)) < 0.6) * np.exp(-(((t - draw(1, 4)) / draw(1, 2.5)) ** 2))
    deviation = draw(0.1, 0.5) * np.exp(-t / draw(1, 4)) + draw(0.02, 0.08)
    rho, noise = draw(0, 0.5), r.normal(size=(runs, 15))
    for epoch in range(1, 15):
        noise[:, epoch] = rho[:, 0] * noise[:, epoch - 1] + np.sqrt(1 - rho[:, 0] ** 2) * noise[:, epoch]
    healthy = np.exp(np.log(floor + (start - floor) * np.exp(-t / slowness)) + hump + deviation * noise)
    length = r.integers(8, 16, runs)
    faults = np.array([r.integers(6, min(10, end) + 1) for end in length])
    healthy[t + 1 > length[:, None]] = np.nan
    size, broken, rows = np.exp(r.uniform(np.log(2), np.log(5), runs)), healthy.copy(), np.arange(runs)
    broken[rows, faults - 1] *= size
    broken[rows, np.minimum(faults, 14)] *= np.sqrt(size)
    return healthy, broken, faults


def alarms(curves: np.ndarray) -> list[list[int]]:
    """The epochs in which the detector raises an alarm in each of the runs [S, T] (NaN after their end)."""
    return [[spike.epoch for spike in detect.replay(curve[~np.isnan(curve)]).spikes] for curve in curves]


def short(runs: int, seed: int) -> dict[str, float]:
    """Fractions of short, restless runs with an alarm, and of their faults that are found, among those that double the loss."""
    healthy, broken, faults = unsettled(runs, seed)
    rows = np.flatnonzero(broken[np.arange(runs), faults - 1] >= 2 * broken[np.arange(runs), faults - 2])
    found = [epoch in epochs for epochs, epoch in zip(alarms(broken[rows]), faults[rows], strict=True)]
    return {"healthy_with_alarm": float(np.mean([bool(e) for e in alarms(healthy)])), "faults_found": float(np.mean(found))}


def needed(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest multiple at which each run of `losses` [S, T] raises no alarm [S], and its relative thresholds [S, T]."""
    multiples, limits = np.zeros(len(losses)), np.full(losses.shape, np.nan)
    for epoch in range(2, EPOCHS + 1):
        baseline, scale = forecast.forecast(np.arange(1, epoch), losses[:, : epoch - 1], epoch)
        rise = losses[:, epoch - 1] - baseline
        matters = rise > forecast.threshold(baseline, np.zeros_like(scale))
        multiples = np.maximum(multiples, np.where(matters, rise / scale, 0))
        limits[:, epoch - 1] = forecast.threshold(baseline, scale) / np.maximum(baseline, 1e-9)
    return multiples, limits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.perf_counter()
    kinds = {}
    shown = (2, 3, 5, 10, 20, 50, 100)
    for name, kind in KINDS.items():
        multiples, limits = needed(simulate(kind, arguments.runs, arguments.seed))
        alarms = int(np.sum(multiples > forecast.MULTIPLE))
        fraction = alarms / arguments.runs
        kinds[name] = {
            "runs_with_alarm": alarms,
            "fraction": round(fraction, 4),
            "interval_95": [round(fraction + z * np.sqrt(fraction * (1 - fraction) / arguments.runs), 4) for z in (-1.96, 1.96)],
            "multiple_for_5_percent": round(float(np.quantile(multiples, 0.95)), 2),
            "smallest_detected_rise_fraction": {str(e): round(float(np.median(limits[:, e - 1])), 3) for e in shown},
        }
    values = {"multiple": forecast.MULTIPLE, "runs": arguments.runs, "epochs": EPOCHS, "seed": arguments.seed, "kinds": kinds}
    values["short_restless_runs"] = short(arguments.runs // 4, arguments.seed)
    print(json.dumps(values | {"seconds": round(time.perf_counter() - began, 1)}, indent=1))


if __name__ == "__main__":
    main()
