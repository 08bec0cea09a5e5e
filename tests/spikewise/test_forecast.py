"""The forecast of the next epoch's loss; what follows from it is tested in test_detect.py."""

import numpy as np

from benchmarks import false_alarms
from spikewise.forecast import forecast


def test_many_runs_at_once_are_each_judged_alone():
    """Otherwise the calibration, which judges many runs at once, would not hold for a single run."""
    losses = false_alarms.simulate(false_alarms.KINDS["mixture"], 5, seed=0)[:, :30]
    baseline, scale = forecast(np.arange(1, 31), losses, 31)
    for run, b, s in zip(losses, baseline, scale, strict=True):
        assert (b, s) == forecast(np.arange(1, 31), run, 31)
