"""Counterfactuals: evaluate the network again with one condition changed, and measure how much of the rise that removes.

Every probe compares two rises of the validation loss from the reference (the last ordinary epoch) to now: the rise as it was, and
the rise with the condition changed at both ends. A constant effect of the condition (averaged weights are always a little better)
therefore cancels out. A probe is a function of the `Scene` and uses the network only through the `Network` protocol, which a
worker of a distributed run and a plain Keras model both implement. Each probe takes at most three passes over the validation
images.

Shapes: n validation images, s steps of the epoch, e steps of ordinary epochs before, b images of a batch, k batches, C channels.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from spikewise import steps as analysis
from spikewise.detect import FEW, Resampler
from spikewise.moments import alternatives, batch_moments, movers
from spikewise.records import Event, Probe, Spike

Weights = list[np.ndarray]
"""All variables that inference depends on: trainable weights and BatchNormalization's moving statistics."""

IMAGES = 1000
"""Approximate number of training images that moving statistics are re-estimated on."""
MOVERS, CHANNELS = 5, 8
"""Number of batches listed that moved the statistics, and of units listed for each."""

TITLES = {
    "few_examples": "without the images that rose most",
    "repetition": "evaluated a second time",
    "earlier_weights": "the earlier weights, evaluated again",
    "path": "within the steepest stretch of steps",
    "before_event": "with the weights from before the event",
    "statistics": "BatchNorm statistics re-estimated",
    "variance_shift": "without dropout's effect on the statistics",
    "lower_momentum": "with a lower momentum of BatchNorm",
    "higher_momentum": "with a higher momentum of BatchNorm",
    "line": "with steps of the usual length",
    "averaged": "weights averaged over the epoch",
    "bad_batches": "without the batches that stand out",
    "precision": "evaluated in float32",
    "temperature": "with the outputs at one temperature",
    "training_data": "with the weights from before the training data changed",
}
"""The name of each probe for people."""


def title(name: str) -> str:
    """The name of a probe for people. A probe of another version, which has no title here, keeps its identifier."""
    return TITLES.get(name, name.replace("_", " "))


class Network(Protocol):
    """What the probes need from a network. With several workers, all of them call the same methods in the same order and get the
    same results."""

    @property
    def statistics(self) -> Sequence[int]:
        """Indices of the moving statistics among the Weights; empty without BatchNormalization."""

    @property
    def kept(self) -> Sequence[float]:
        """The fraction of each of the m single moving statistics that a training step keeps (the momentum), in the order of
        `statistics`."""

    @property
    def drops(self) -> bool:
        """Whether the network has dropout."""

    def untouched(self) -> AbstractContextManager[None]:
        """Restores weights, statistics, optimizer and random state on exit, whatever was changed inside."""

    def evaluate(self) -> np.ndarray:
        """Loss of each validation image [n] in inference mode, exactly as the run itself evaluates."""

    def evaluate_part(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions [v] of about `most` validation images, the same ones each time, and their losses [v], as `evaluate` does."""

    def sample_part(self, most: int) -> np.ndarray:
        """Losses [t] of about `most` training images in inference mode, the same ones each time."""

    def weights(self) -> Weights:
        """A copy of the weights."""

    def assign(self, weights: Weights) -> None:
        """Sets the weights."""

    def moments(self, batches: Sequence[int], *, dropout: bool) -> list[np.ndarray]:
        """Moments of these k batches under the current weights, one array [k, C] for each of `statistics`; with or without
        dropout."""

    def batch_losses(self, batch: int) -> np.ndarray:
        """Losses [b] of one of the epoch's batches in inference mode, with the images as they were trained on."""


@runtime_checkable
class WeighsTraining(Protocol):
    """What a network may offer in addition if its training loss has weights that its validation loss lacks."""

    def unweighted_losses(self, batch: int) -> np.ndarray:
        """As `batch_losses`, but computed as those of validation images are."""


@runtime_checkable
class NamesLayers(Protocol):
    """What a network may offer in addition if its layers have names."""

    @property
    def layers(self) -> Sequence[str]:
        """The name of the layer of each of `statistics`."""


@runtime_checkable
class ShowsInputs(Protocol):
    """What a network may offer in addition if its inputs can be looked at."""

    def inputs(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs [v, ...] of about `most` validation images and [t, ...] of about `most` training images, those that
        `evaluate_part` and `sample_part` evaluate."""

    def evaluate_changed(self, most: int, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """As the losses [v] of `evaluate_part`, with the inputs [b, ...] of each batch changed first."""

    def agreed(self, value: float) -> float:
        """The first worker's value on all of them. What they compute for themselves may differ in the last bits, and a decision on
        it must not."""


@runtime_checkable
class KnowsClasses(Protocol):
    """What a network that classifies may offer in addition."""

    def batch_classes(self, batches: Sequence[int]) -> list[np.ndarray] | None:
        """Class number of each image [b] of these batches of the epoch, of each one that is held once; None if the labels are no
        classes."""


@runtime_checkable
class HoldsSomeBatches(Protocol):
    """What a network may offer in addition if it may not hold all batches of the epoch."""

    def held(self, batch: int) -> int:
        """The number of the batch that stands in for this one; its own if it is held."""


def unweighted_losses(network: Network, batch: int) -> np.ndarray:
    """Losses [b] of one of the epoch's batches in inference mode, which compare with those of validation images."""
    return network.unweighted_losses(batch) if isinstance(network, WeighsTraining) else network.batch_losses(batch)


@dataclass
class Scene:
    """Everything a probe may look at. Losses are those of the run's own evaluations."""

    network: Network
    spike: Spike
    resampler: Resampler
    losses: np.ndarray
    """[n], now."""
    reference_losses: np.ndarray
    """[n], at the reference epoch."""
    reference: Weights
    """Weights at the end of the reference epoch."""
    path: list[tuple[int, Weights]]
    """Snapshots of this epoch as (steps done, weights), in order; the last one holds the weights now. The first has step 0 if the
    reference is the epoch before."""
    reference_average: Weights | None
    """Mean of the weights over the path of the reference epoch."""
    steps: np.ndarray
    """[s], dtype records.STEP: the steps of this epoch."""
    earlier: np.ndarray
    """[e], the steps of ordinary epochs before."""
    batch_size: int
    """Images of a global batch."""
    rate_before: float = np.nan
    """Learning rate of the last step before this epoch; NaN if unknown."""
    trace: np.ndarray | None = None
    """Moving statistics [s + 1, m] before the first and after each step of this epoch; None if unknown."""
    alternatives: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
    """Moving statistics [2, m] with a lower and a higher momentum, now and at the reference epoch (moments.Counterfactuals)."""
    followed: int = 0
    """Number of steps that these have followed."""
    usual: np.ndarray | None = None
    """Mean and deviation [2, m] of the moments of the reference epoch's batches; None if unknown."""
    sampled: float = np.nan
    """Mean loss of the sampled training images at the reference epoch."""
    sorted_before: float = np.nan
    """What batches.sorting found in the reference epoch; NaN if that is unknown."""
    labels: np.ndarray | None = None
    """[n], class numbers of the validation images; None if unknown."""

    @cached_property
    def lengths(self) -> np.ndarray:
        """How many times longer each step [s] was than its gradients and a smooth schedule of the learning rate explain."""
        return analysis.unexplained_lengths(self.steps, self.earlier, self.rate_before)

    @property
    def now(self) -> Weights:
        """The current weights."""
        return self.path[-1][1]

    @cached_property
    def rise(self) -> np.ndarray:
        """Rise [n] of each image's loss from the reference epoch to now."""
        return np.asarray(self.losses.astype(float) - self.reference_losses)

    @cached_property
    def batches(self) -> tuple[list[int], list[int]]:
        """Two disjoint sets of this epoch's batches to re-estimate moving statistics on."""
        return halves(len(self.steps), self.batch_size)

    def raw(self, weights: Weights) -> np.ndarray:
        """Losses [n] of `weights` with their own moving statistics."""
        self.network.assign(weights)
        return np.asarray(self.network.evaluate(), float)

    def cleaned(self, weights: Weights, half: int = 0, *, dropout: bool = True) -> np.ndarray:
        """Losses [n] of `weights` with moving statistics re-estimated on one of the two sets of batches."""
        return self.raw(reestimated(self.network, weights, self.batches[half], dropout=dropout))

    @cached_property
    def again(self) -> tuple[np.ndarray, np.ndarray]:
        """Losses [n] of the current and of the reference weights, with their own statistics, both evaluated today."""
        return self.raw(self.now), self.raw(self.reference)

    @cached_property
    def clean_now(self) -> tuple[np.ndarray, np.ndarray]:
        """Losses [n] of the current weights with statistics re-estimated on each of the two sets of batches."""
        if not self.network.statistics:
            return self.again[0], self.again[0]
        return self.cleaned(self.now, 0), self.cleaned(self.now, 1)

    @cached_property
    def clean_reference(self) -> np.ndarray:
        """Losses [n] of the reference weights with re-estimated statistics."""
        return self.cleaned(self.reference, 0) if self.network.statistics else self.again[1]

    @cached_property
    def noise(self) -> float:
        """Standard deviation of a fraction due to the batches and dropout masks that re-estimation happened to draw."""
        a, b = self.clean_now
        return float(abs(a.mean() - b.mean()) / abs(self.rise.mean())) if self.network.statistics else 0.0

    def probe(self, name: str, left: np.ndarray, *, noise: float = 0.0, passes: int = 0, **facts: Any) -> Probe:
        """The result of a probe. `left` [n]: the remaining rise of each image under the changed condition."""
        if not np.isfinite(self.rise.mean()):
            gone = float(np.isfinite(left).all() and left.mean() <= self.spike.threshold)
            return Probe(name, gone, gone, gone, noise, passes, facts)
        rise, remains = self.resampler.means(self.rise), self.resampler.means(left)
        fraction = 1 - float(left.mean() / self.rise.mean())
        draws = 1 - remains / np.where(np.abs(rise) < 1e-9, 1e-9, rise)
        spread = np.quantile(draws, [0.025, 0.975]) - np.median(draws)
        low, high = fraction + np.sign(spread) * np.sqrt(spread**2 + (1.96 * noise) ** 2)
        return Probe(name, fraction, float(min(low, fraction)), float(max(high, fraction)), noise, passes, facts)


def halves(steps: int, batch_size: int) -> tuple[list[int], list[int]]:
    """Two sets of batch numbers, spread over the epoch, of about IMAGES images each; disjoint unless the epoch has one batch."""
    count = min(steps, 2 * max(IMAGES // batch_size, 1))
    chosen = [int(i) for i in np.linspace(0, steps - 1, count)]
    return chosen[::2], chosen[1::2] or chosen[::2]


def reestimated(network: Network, weights: Weights, batches: Sequence[int], *, dropout: bool = True) -> Weights:
    """The same weights with moving statistics re-estimated on these batches, without batches whose moments stand out."""
    if not network.statistics:
        return weights
    network.assign(weights)
    moments = network.moments(batches, dropout=dropout)
    usual = ~strange(moments)
    weights = list(weights)
    for position, values in zip(network.statistics, moments, strict=True):
        weights[position] = values[usual].mean(0)
    return weights


def training_loss(network: Network, steps: int, batch_size: int) -> float:
    """Mean loss of one half of the epoch's batches in inference mode, with moving statistics re-estimated on the other half, which
    the network keeps."""
    some, others = halves(steps, batch_size)
    network.assign(reestimated(network, network.weights(), some))
    return float(np.mean([unweighted_losses(network, number).mean() for number in others]))


def strange(moments: list[np.ndarray]) -> np.ndarray:
    """Which of the k batches have moments far from those of the others: bool [k]. `moments`: arrays [k, C]."""
    distances = np.zeros(len(moments[0]))
    for values in moments:
        middle = np.median(values, 0)
        deviation = 1.4826 * np.median(np.abs(values - middle), 0) + 1e-3 * np.abs(middle) + 1e-9
        distances = np.maximum(distances, np.median(np.abs(values - middle) / deviation, -1))
    return distances > 10 if len(distances) > 4 else np.zeros(len(distances), bool)


def evaluation(scene: Scene) -> list[Probe]:
    """Evaluates the current weights a second time, and the reference weights today. Two passes."""
    again, before = scene.again
    difference = float(np.mean(np.abs(again - scene.losses)))
    moved = before - scene.reference_losses
    return [
        scene.probe("repetition", again - scene.reference_losses, passes=1, difference=difference),
        scene.probe(
            "earlier_weights",
            scene.rise - moved,
            passes=1,
            recorded=float(scene.reference_losses.mean()),
            today=float(before.mean()),
        ),
    ]


def few_examples(spike: Spike, losses: np.ndarray, reference_losses: np.ndarray) -> Probe | None:
    """Leaves out the k images that rose most, at most 2 % of all: just enough to end the alarm, or else to remove most of what 2 %
    can remove. The fraction subtracts the k images that fell most, because chance produces both; the interval reaches from it to
    the fraction without this correction. Needs no network. None if 2 % is less than one image. Losses: [n]."""
    n, rise = len(losses), np.asarray(losses, float) - reference_losses
    most = int(FEW * n)
    if not most:
        return None
    order = np.argsort(-np.nan_to_num(rise, nan=np.inf))
    finite = np.nan_to_num(rise[order], nan=1e3, posinf=1e3)
    up, down = np.cumsum(finite[:most]), np.cumsum(np.maximum(-finite[::-1][:most], 0))
    fractions = (up - down) / finite.sum()
    enough = fractions >= 0.8 * fractions[-1]
    calm = enough & (finite.sum() - up <= spike.threshold * (n - np.arange(1, most + 1)))
    k = int(np.argmax(calm if calm.any() else enough)) + 1
    left = float(finite[k:].mean())
    images = [{"image": int(i), "before": float(reference_losses[i]), "now": float(losses[i])} for i in order[:k]]
    high = float(up[k - 1] / finite.sum())
    fraction = float(fractions[k - 1])
    return Probe(
        "few_examples", fraction, min(fraction, high), max(fraction, high), facts={"images": images, "left": left, "of": n}
    )


def path(scene: Scene) -> Probe | None:
    """Finds by bisection the stretch of this epoch's steps in which the loss crossed half of the rise. The fraction is the part of
    the rise within that stretch. At most three passes."""
    points = scene.path
    if len(points) < 3 or points[0][0] != 0:
        return None
    means = {0: float(scene.reference_losses.mean()), len(points) - 1: float(scene.losses.mean())}
    half = (means[0] + means[len(points) - 1]) / 2
    low, high, passes = 0, len(points) - 1, 0
    while high - low > 1 and passes < 3:
        middle = (low + high) // 2
        means[middle] = float(scene.raw(points[middle][1]).mean())
        passes += 1
        low, high = (low, middle) if means[middle] > half else (middle, high)
    fraction = (means[high] - means[low]) / float(scene.rise.mean())
    losses = {points[i][0]: mean for i, mean in sorted(means.items())}
    return Probe(
        "path",
        fraction,
        fraction,
        fraction,
        passes=passes,
        facts={"first": points[low][0], "last": points[high][0], "losses": losses},
    )


def statistics(scene: Scene) -> Probe | None:
    """Re-estimates BatchNormalization's statistics on training batches, with dropout as in training. Three passes."""
    if not scene.network.statistics:
        return None
    a, b = scene.clean_now
    left = (a + b) / 2 - scene.clean_reference
    return scene.probe(
        "statistics", left, noise=scene.noise, passes=3, now=float((a + b).mean() / 2), before=float(scene.clean_reference.mean())
    )


def momentum(scene: Scene) -> list[Probe]:
    """Evaluates the weights with the moving statistics that training with a lower and with a higher momentum would have given them:
    exactly, because training in batch mode never reads them. Two passes each."""
    now, before = scene.alternatives
    if scene.trace is None or now is None or before is None or now.shape != before.shape:
        return []
    current = np.concatenate([scene.now[i].ravel() for i in scene.network.statistics])
    if not np.allclose(current, scene.trace[-1], rtol=1e-3, atol=1e-6):  # something other than training wrote them
        return []
    kept = np.asarray(scene.network.kept, float)
    variances = np.concatenate([np.full(scene.now[i].size, bool(at % 2)) for at, i in enumerate(scene.network.statistics)])
    moments = batch_moments(scene.trace, kept)
    if (moments[:, variances] < -1e-3 * np.abs(scene.trace[-1][variances]).max()).any():  # no batch has a negative variance
        return []
    batches = movers(moments, kept, scene.trace[-1], variances)[:MOVERS]
    moved = [{"step": one.step, "units": len(one.units), "channels": _channels(scene, one.units)} for one in batches]
    found = []
    for name, tried, with_, was in zip(("lower_momentum", "higher_momentum"), alternatives(kept), now, before, strict=True):
        if np.allclose(tried, kept) or scene.followed * (1 - tried.max()) < 1:
            continue  # nothing new, or statistics that still consist of those that the run began with
        there = scene.raw(with_statistics(scene.network, scene.now, with_))
        then = scene.raw(with_statistics(scene.network, scene.reference, was))
        single = float(tried[0]) if np.ptp(tried) == 0 else None
        facts: dict[str, Any] = {"momentum": single, "now": float(there.mean()), "before": float(then.mean()), "movers": moved}
        found.append(scene.probe(name, there - then, passes=2, **facts))
    return found


def _channels(scene: Scene, units: np.ndarray) -> dict[str, list[int]]:
    """Numbers among the m statistics, at most CHANNELS of them, as the names of their layers and their channels there."""
    if not isinstance(scene.network, NamesLayers):
        return {}
    ends = np.cumsum([scene.now[i].size for i in scene.network.statistics])
    found: dict[str, list[int]] = {}
    for unit in units[:CHANNELS]:
        at = int(np.searchsorted(ends, unit, side="right"))
        found.setdefault(scene.network.layers[at], []).append(int(unit - (ends[at - 1] if at else 0)))
    return found


def with_statistics(network: Network, weights: Weights, values: np.ndarray) -> Weights:
    """These weights with the moving statistics `values` [m]."""
    weights, at = list(weights), 0
    for position in network.statistics:
        size = weights[position].size
        weights[position] = values[at : at + size].reshape(weights[position].shape).astype(weights[position].dtype)
        at += size
    return weights


def variance_shift(scene: Scene) -> Probe | None:
    """How much dropout distorts the statistics: the loss with statistics estimated with dropout minus the loss with statistics
    estimated without it, now, minus the same effect at the reference epoch. Two passes."""
    if not scene.network.statistics or not scene.network.drops:
        return None
    now, before = scene.cleaned(scene.now, dropout=False), scene.cleaned(scene.reference, dropout=False)
    spoiled = scene.clean_now[0] - now - (scene.reference_losses - before)
    means = {"without": float(now.mean()), "with_dropout": float(scene.clean_now[0].mean()), "before": float(before.mean())}
    return scene.probe("variance_shift", scene.rise - spoiled, noise=2**0.5 * scene.noise, passes=2, **means)


def line(scene: Scene) -> Probe:
    """Losses on the straight line from the reference weights to the current ones, with statistics re-estimated: with steps of the
    usual length, and at two more points. Three passes."""
    q = float(np.max(scene.lengths, initial=1.0))
    usual = float(np.clip(1 / q, 1e-4, 0.75))
    losses = {0.0: float(scene.clean_reference.mean()), 1.0: float(scene.clean_now[0].mean())}
    kept = scene.rise
    for at in sorted({usual, 0.25 if usual > 0.3 else 0.5, 0.75 if usual < 0.7 else 0.5}):
        there = scene.cleaned([a + np.float32(at) * (b - a) for a, b in zip(scene.reference, scene.now, strict=True)])
        losses[at] = float(there.mean())
        if at == usual:
            kept = there - scene.clean_reference
    return scene.probe("line", kept, noise=scene.noise, passes=3, at=usual, times=q, losses=dict(sorted(losses.items())))


def averaged(scene: Scene) -> Probe | None:
    """Compares the mean weights of this epoch with those of the reference epoch, with statistics re-estimated. Two passes."""
    if scene.reference_average is None or len(scene.path) < 3:
        return None
    now, before = scene.cleaned(average(scene.path[1:])), scene.cleaned(scene.reference_average)
    return scene.probe("averaged", now - before, noise=scene.noise, passes=2, now=float(now.mean()), before=float(before.mean()))


def before_event(scene: Scene, event: Event) -> Probe | None:
    """Evaluates the weights just before the event: the fraction of the rise that came after it. At most one pass."""
    earlier = [weights for step, weights in scene.path if step <= event.step]
    if not earlier:
        return None
    there = scene.raw(earlier[-1]) if event.step else scene.reference_losses
    facts = {"there": float(there.mean()), **event.as_dict()}
    return scene.probe("before_event", there - scene.reference_losses, passes=int(event.step > 0), **facts)


def average(path: Sequence[tuple[int, Weights]]) -> Weights:
    """The mean of the weights over a path."""
    (_, first), *others = path
    totals = [np.array(values, np.float32) for values in first]
    for _, weights in others:  # a running sum; np.mean would first copy all weights of the path into one array
        for total, values in zip(totals, weights, strict=True):
            total += np.asarray(values, np.float32)
    for total in totals:
        total /= len(path)
    return totals
