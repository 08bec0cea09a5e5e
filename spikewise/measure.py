"""Measures what the validation loss of an epoch is made of, with the network as it is. Each function leaves the network changed:
call it inside `network.untouched()`.

Shapes: s steps of the epoch, v validation images, t training images, m moving statistics of all layers, one layer after the other.
"""

from collections.abc import Sequence

import numpy as np

from spikewise import curve, probes
from spikewise.curve import Parts, Sizes
from spikewise.moments import Counterfactuals, alternatives
from spikewise.probes import Network, Weights
from spikewise.standing import Tried, Unseen

Path = Sequence[tuple[int, Weights]]


def parts(
    network: Network, epoch: int, losses: np.ndarray, path: Path, training: float, batch_size: int, sizes: Sizes
) -> tuple[Parts, Tried]:
    """The parts of the epoch whose validation images have `losses` [n], and what clean statistics alone give. `path`: snapshots of
    the epoch, the last one with the weights now. `training`: mean loss of the epoch's batches. Three passes over the subsets."""
    steps, now = path[-1]
    batches = spread(0, steps, sizes.statistics // batch_size)
    network.assign(_clean(network, now, batches))
    positions, clean = network.evaluate_part(sizes.losses)
    averaged = clean
    if len(path) > 2:
        network.assign(_clean(network, probes.average(path[1:]), batches))
        _, averaged = network.evaluate_part(sizes.losses)
    sample = network.sample_part(sizes.losses)
    raw = np.asarray(losses, float)[positions]
    found = curve.parts(epoch, float(np.mean(losses)), raw, clean, averaged, sample, training)
    return found, Tried(float(raw.mean()), float(np.mean(clean)))


def momenta(network: Network, now: Weights, counterfactuals: Counterfactuals, sizes: Sizes) -> dict[float, float]:
    """Loss of the subset of validation images with each of the other momenta; empty if they are unknown, or the layers differ in
    theirs."""
    kept = np.asarray(network.kept, float)
    if counterfactuals.now is None or np.ptp(kept):
        return {}
    found = {}
    for values, momentum in zip(counterfactuals.now, alternatives(kept), strict=True):
        if not counterfactuals.settled(momentum):
            continue
        network.assign(probes.with_statistics(network, now, values))
        found[float(momentum[0])] = float(np.mean(network.evaluate_part(sizes.losses)[1]))
    return found


def unseen(network: Network, path: Path, batch_size: int, sizes: Sizes) -> Unseen | None:
    """Compares validation images with training images that the network has not seen: call it in the first epoch. None without a
    snapshot in it."""
    if len(path) < 2:
        return None
    (step, weights), (steps, _) = path[-2:]
    network.assign(_clean(network, weights, spread(0, step, sizes.statistics // batch_size)))
    _, validation = network.evaluate_part(sizes.losses)
    training = np.concatenate([network.batch_losses(i) for i in spread(step, steps, sizes.losses // batch_size)])
    error = float(np.hypot(*(np.std(values) / np.sqrt(len(values)) for values in (validation, training))))
    return Unseen(step, float(np.mean(training)), float(np.mean(validation)), error)


def spread(first: int, last: int, count: int) -> list[int]:
    """At least one and at most `count` numbers from `first` to `last` - 1, evenly spread."""
    return sorted({int(i) for i in np.linspace(first, last - 1, max(min(count, last - first), 1))})


def _clean(network: Network, weights: Weights, batches: Sequence[int]) -> Weights:
    """These weights with statistics estimated anew, without dropout, as model.statistics = "precise" does."""
    return probes.reestimated(network, weights, batches, dropout=False)
