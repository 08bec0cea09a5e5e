"""What the validation losses of earlier epochs predict for the next one, and the rise above that which is a spike. Pure NumPy.

The trend is a robust line that follows overfitting upwards but does not extrapolate an improvement. The noise scale is the smaller
of two: what the loss varies by around a straight trend, and how far it rose so far. The second is what a short run with a steep or
restless start can be judged by. Both start from a prior, so the second epoch can already be judged.

Shapes: k epochs; "..." stands for any number of runs at once.
"""

import numpy as np

MULTIPLE = 9.0
"""A rise above this many noise scales is a spike. With it, at most 5 % of healthy runs of 100 epochs raise an alarm, including runs
with autocorrelated noise, an overfitting trend and occasional excursions (benchmarks/false_alarms.py)."""
SMALLEST_FRACTION = 0.1
"""A rise below this fraction of the expected loss does not matter."""
SMALLEST_RISE = 0.01
"""A rise below this many nats does not matter: one image at p = 1e-7 adds this much to the mean of 1,600."""
WINDOW = 8
"""Number of epochs that the trend is fitted to."""
MEMORY = 30
"""Number of differences that the noise scale is measured on."""
PRIOR = 0.06
"""The noise scale assumed before any is measured, as a fraction of the loss."""
EARLY = 0.12
"""What is added to PRIOR in the second epoch; BatchNormalization's statistics and the first long steps make the first epochs
noisier than all others."""
SETTLING = 4.0
"""Epochs in which this falls to a third."""
FLOOR = 0.05
"""Nats added to a loss before its logarithm is taken: near 0, single images decide, and a loss varies by more than its size."""
PRIOR_WEIGHT = 3.0
"""Number of measured differences that the prior counts for."""
QUIET = 2.0
"""With WINDOW differences or more, the prior is at most this many times what was measured: a quiet run needs no large rise."""
FIRST, FIRST_WEIGHT = 3, 0.3
"""Rises in the epochs up to FIRST count only so much."""
RISES = 0.66
"""Factor of the noise scale that is measured on rises, so that MULTIPLE suits it. With k > WINDOW epochs it grows as k / WINDOW."""

Values = np.ndarray | float


def forecast(epochs: np.ndarray, losses: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """What the mean losses [..., k] of earlier `epochs` [k], k >= 1, predict for `epoch`: baseline and noise scale, both [...].

    Both are found on a logarithmic scale: a loss varies in proportion to its size."""
    x, y, k = np.asarray(epochs, float), np.log(losses + FLOOR), losses.shape[-1]
    slope, level = line(x[-WINDOW:], y[..., -WINDOW:])
    expected = y.mean(-1)
    if k > 2:
        # A line through a fall that flattens ends too low: the last epochs count as well.
        expected = np.maximum(level + np.maximum(slope, 0) * (epoch - x[-1]), (np.median(y[..., -3:], -1) + y[..., -1]) / 2)
    baseline = np.maximum(np.exp(expected) - FLOOR, 0)
    prior = PRIOR + EARLY * np.exp((2 - epoch) / SETTLING)
    variance = np.full(baseline.shape, prior**2)
    if k > 1:
        variance = np.minimum(_variance_of_rises(x, y, prior), _variance_around_trend(y, prior))
    return baseline, np.sqrt(variance) * (baseline + FLOOR)


def _variance_of_rises(x: np.ndarray, y: np.ndarray, prior: float) -> np.ndarray:
    """Variance [...] of log losses y [..., k], k > 1, at epochs x [k], from their rises alone: a fall is no noise, however uneven.
    A rise is measured from the median of the three epochs before it. The first epochs are noisier than those that follow and count
    less. With many epochs, single large rises would decide, so it is weighted up and the other estimate is the smaller one."""
    last = [np.concatenate([np.repeat(y[..., :1], lag, -1), y[..., : -1 - lag]], -1)[..., : y.shape[-1] - 1] for lag in range(3)]
    rises = np.maximum(y[..., 1:] - np.median(last, 0), 0)[..., -MEMORY:]
    weights = np.where(x[1:] <= FIRST, FIRST_WEIGHT, 1.0)[-MEMORY:]
    factor = RISES * max(1.0, y.shape[-1] / WINDOW)
    # Half of the differences of symmetric noise are rises: hence 2.
    return np.asarray((PRIOR_WEIGHT * prior**2 + factor**2 * 2 * (weights * rises**2).sum(-1)) / (PRIOR_WEIGHT + weights.sum()))


def _variance_around_trend(y: np.ndarray, prior: float) -> np.ndarray:
    """Variance [...] of log losses y [..., k] around a straight trend, from second differences."""
    k = min(y.shape[-1] - 2, MEMORY)
    if k < 1:
        return np.full(y.shape[:-1], np.inf)
    # If the last epochs are calmer than those before, only they count, so that a wild start is soon forgotten.
    whole = _noise_scale(y, MEMORY)
    noise_scale = np.minimum(whole, 1.5 * _noise_scale(y, WINDOW))
    assumed = np.minimum(prior, QUIET * whole) if k >= WINDOW else prior
    return np.asarray((PRIOR_WEIGHT * assumed**2 + k * noise_scale**2) / (PRIOR_WEIGHT + k))


def _noise_scale(y: np.ndarray, memory: int) -> np.ndarray:
    """Standard deviation [...] of values y [..., k], k > 2, around a straight trend, from the last `memory` second differences."""

    def deviation(lag: int) -> np.ndarray:
        differences = y[..., 2 * lag :] - 2 * y[..., lag:-lag] + y[..., : -2 * lag]
        return np.asarray(1.4826 * np.median(np.abs(differences[..., -memory:]), -1) / np.sqrt(6))

    # Neighbouring differences miss autocorrelated noise; distant ones mistake a fall that flattens for noise.
    return np.minimum(deviation(2), 2 * deviation(1)) if y.shape[-1] > 4 else deviation(1)


def line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The robust line (Theil-Sen) through y [..., k] at x [k]: slope and level at the last x, both [...]."""
    if len(x) < 2:
        return np.zeros(y.shape[:-1]), y[..., -1]
    i, j = np.triu_indices(len(x), 1)
    slope = np.median((y[..., j] - y[..., i]) / (x[j] - x[i]), -1)
    return slope, np.median(y + slope[..., None] * (x[-1] - x), -1)


def threshold(baseline: Values, scale: Values, multiple: float = MULTIPLE, sensitivity: float = 1.0) -> Values:
    """The rise [...] above which an epoch is a spike, given the expected loss and the noise scale [...]."""
    return np.maximum(np.maximum(multiple * scale, SMALLEST_FRACTION * baseline), SMALLEST_RISE) / sensitivity
