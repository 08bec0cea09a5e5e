"""Counterfactuals: the network is evaluated again with one thing changed, and each says how much of the rise that removes.

Every probe compares two rises: that of the validation loss from the reference (the last ordinary epoch) to now, and the same
with the condition changed at both ends. So what the condition always does (averaged weights are always a little better) does
not count, only what it does to the rise. A probe is a function of the `Scene`; it needs no more than `Network` says, which a
worker of a distributed run and a plain Keras model both provide. At most three passes over the validation images each.

Shapes: n validation images, s steps of the epoch, b images of a batch, k batches, C channels, r resamples.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from spikewise import steps as records
from spikewise.detect import FEW, Resampler
from spikewise.records import Event, Probe, Spike

Weights = list[np.ndarray]
"""Every variable that inference depends on: trainable ones and BatchNormalization's moving statistics."""

IMAGES = 1000
"""Training images (about) that moving statistics are estimated on."""
COMPARED = 12
"""Batches that a suspect is compared with."""


class Network(Protocol):
    """What the probes may do with a network. On several workers all call the same methods in the same order, and all get the
    same answers."""

    @property
    def statistics(self) -> Sequence[int]:
        """Which of the Weights are moving statistics; empty without BatchNormalization."""

    @property
    def drops(self) -> bool:
        """Has dropout."""

    def untouched(self) -> AbstractContextManager[None]:
        """Inside, anything may be done; afterwards weights, statistics, optimizer and random state are what they were."""

    def evaluate(self) -> np.ndarray:
        """Loss of each validation image [n], inference mode, as the run itself evaluates."""

    def weights(self) -> Weights:
        """A copy."""

    def assign(self, weights: Weights) -> None: ...

    def moments(self, batches: Sequence[int], *, dropout: bool) -> list[np.ndarray]:
        """What these batches of the epoch would add to each of `statistics` with the weights as they are: [k, C] each."""

    def batch_losses(self, batch: int) -> np.ndarray:
        """Losses [b] of one of the epoch's batches, as it was trained on, in inference mode."""


@dataclass
class Scene:
    """All that a probe may look at. Losses are as the run evaluated them."""

    network: Network
    spike: Spike
    resampler: Resampler
    losses: np.ndarray
    """[n] now."""
    reference_losses: np.ndarray
    """[n] at the reference epoch."""
    reference: Weights
    """At the end of the reference epoch."""
    path: list[tuple[int, Weights]]
    """Weights after so many steps of this epoch, in order; the last are those now. It begins with step 0 if the reference is the
    epoch before."""
    reference_average: Weights | None
    """Mean over the path of the reference epoch."""
    steps: np.ndarray
    """[s, 7] StepStats of this epoch."""
    earlier: np.ndarray
    """[e, 7] of ordinary epochs before."""
    batch_size: int

    @property
    def now(self) -> Weights:
        return self.path[-1][1]

    @cached_property
    def rise(self) -> np.ndarray:
        """[n], from the reference epoch to now."""
        return self.losses.astype(float) - self.reference_losses

    @cached_property
    def batches(self) -> tuple[list[int], list[int]]:
        """Two disjoint sets of this epoch's batches for moving statistics."""
        return halves(len(self.steps), self.batch_size)

    def raw(self, weights: Weights) -> np.ndarray:
        """Losses [n] of `weights`, their own statistics included."""
        self.network.assign(weights)
        return np.asarray(self.network.evaluate(), float)

    def cleaned(self, weights: Weights, part: int = 0, *, dropout: bool = True) -> np.ndarray:
        """Losses [n] of `weights` with moving statistics estimated on one of the two sets of batches."""
        return self.raw(reestimated(self.network, weights, self.batches[part], dropout=dropout))

    @cached_property
    def again(self) -> tuple[np.ndarray, np.ndarray]:
        """Losses [n] of the weights now and of the reference's, statistics included, evaluated today."""
        return self.raw(self.now), self.raw(self.reference)

    @cached_property
    def clean_now(self) -> tuple[np.ndarray, np.ndarray]:
        """Losses [n] now with re-estimated statistics, on each of the two sets of batches."""
        if not self.network.statistics:
            return self.again[0], self.again[0]
        return self.cleaned(self.now, 0), self.cleaned(self.now, 1)

    @cached_property
    def clean_reference(self) -> np.ndarray:
        return self.cleaned(self.reference, 0) if self.network.statistics else self.again[1]

    @cached_property
    def noise(self) -> float:
        """Standard deviation of a share, from which batches and dropout masks re-estimation happened to draw."""
        a, b = self.clean_now
        return float(abs(a.mean() - b.mean()) / abs(self.rise.mean())) if self.network.statistics else 0.0

    def probe(self, name: str, left: np.ndarray, *, noise: float = 0.0, passes: int = 0, **facts: Any) -> Probe:
        """`left` [n]: the rise of each image under the changed condition."""
        rise, remains = self.resampler.means(self.rise), self.resampler.means(left)
        fraction = 1 - float(left.mean() / self.rise.mean())
        draws = 1 - remains / np.where(np.abs(rise) < 1e-9, 1e-9, rise)
        spread = np.quantile(draws, [0.025, 0.975]) - np.median(draws)
        low, high = fraction + np.sign(spread) * np.sqrt(spread**2 + (1.96 * noise) ** 2)
        return Probe(name, fraction, float(min(low, fraction)), float(max(high, fraction)), noise, passes, facts)


def halves(steps: int, batch_size: int) -> tuple[list[int], list[int]]:
    """Two sets of an epoch's batches, disjoint where there are two, spread over the epoch; about IMAGES in each."""
    count = min(steps, 2 * max(IMAGES // batch_size, 1))
    chosen = [int(i) for i in np.linspace(0, steps - 1, count)]
    return chosen[::2], chosen[1::2] or chosen[::2]


def reestimated(network: Network, weights: Weights, batches: Sequence[int], *, dropout: bool = True) -> Weights:
    """The same weights with moving statistics estimated on these batches, strange ones left out."""
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
    """Mean loss of half of the epoch's batches in inference mode, with moving statistics estimated on the other half."""
    some, others = halves(steps, batch_size)
    network.assign(reestimated(network, network.weights(), some))
    return float(np.mean([network.batch_losses(number).mean() for number in others]))


def strange(moments: list[np.ndarray]) -> np.ndarray:
    """Which of the k batches [k] have moments far from those of the others."""
    distances = np.zeros(len(moments[0]))
    for values in moments:
        middle = np.median(values, 0)
        deviation = 1.4826 * np.median(np.abs(values - middle), 0) + 1e-3 * np.abs(middle) + 1e-9
        distances = np.maximum(distances, np.median(np.abs(values - middle) / deviation, -1))
    return distances > 10 if len(distances) > 4 else np.zeros(len(distances), bool)


def evaluation(scene: Scene) -> list[Probe]:
    """Evaluates the same weights a second time, and the reference's weights today. Two passes."""
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


def few_examples(scene: Scene) -> Probe | None:
    """Leaves out the k images that rose most, k <= 2 %: so many that no alarm is left, or that most of what can go is gone. The
    share allows for as many that fell most, since chance makes both; the interval runs from it to the share without this
    allowance. No pass. None where 2 % are less than an image."""
    n = len(scene.rise)
    most = int(FEW * n)
    if not most:
        return None
    order = np.argsort(-np.nan_to_num(scene.rise, nan=np.inf))
    finite = np.nan_to_num(scene.rise[order], nan=1e3, posinf=1e3)
    up, down = np.cumsum(finite[:most]), np.cumsum(np.maximum(-finite[::-1][:most], 0))
    fractions = (up - down) / finite.sum()
    enough = fractions >= 0.8 * fractions[-1]
    calm = enough & (finite.sum() - up <= scene.spike.threshold * (n - np.arange(1, most + 1)))
    k = int(np.argmax(calm if calm.any() else enough)) + 1
    left = float(finite[k:].mean())
    images = [{"image": int(i), "before": float(scene.reference_losses[i]), "now": float(scene.losses[i])} for i in order[:k]]
    high = float(up[k - 1] / finite.sum())
    fraction = float(fractions[k - 1])
    return Probe(
        "few_examples", fraction, min(fraction, high), max(fraction, high), facts={"images": images, "left": left, "of": n}
    )


def path(scene: Scene) -> Probe | None:
    """Finds by bisection in which stretch of this epoch's steps the loss, statistics included, came past half of the rise; the
    share is that of the rise within the stretch. Three passes at most."""
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
    """BatchNormalization's statistics estimated anew on training batches, dropout as in training. Three passes."""
    if not scene.network.statistics:
        return None
    a, b = scene.clean_now
    left = (a + b) / 2 - scene.clean_reference
    return scene.probe(
        "statistics", left, noise=scene.noise, passes=3, now=float((a + b).mean() / 2), before=float(scene.clean_reference.mean())
    )


def variance_shift(scene: Scene) -> Probe | None:
    """By how much dropout spoils the statistics: those estimated with it against those without it, now, less what it did at the
    reference epoch under the dropout of then, which the run's own statistics saw. Two passes."""
    if not scene.network.statistics or not scene.network.drops:
        return None
    now, before = scene.cleaned(scene.now, dropout=False), scene.cleaned(scene.reference, dropout=False)
    spoiled = scene.clean_now[0] - now - (scene.reference_losses - before)
    means = {"without": float(now.mean()), "with_dropout": float(scene.clean_now[0].mean()), "before": float(before.mean())}
    return scene.probe("variance_shift", scene.rise - spoiled, noise=2**0.5 * scene.noise, passes=2, **means)


def line(scene: Scene) -> Probe:
    """Losses along the line from the reference's weights to these, statistics re-estimated: had the steps been as long as usual,
    or a quarter or half as long. Three passes."""
    q = float(np.max(records.unexplained_lengths(scene.steps, scene.earlier), initial=1.0))
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
    """The mean of the weights over this epoch against that over the reference epoch, statistics re-estimated. Two passes."""
    if scene.reference_average is None or len(scene.path) < 3:
        return None
    now, before = scene.cleaned(average(scene.path[1:])), scene.cleaned(scene.reference_average)
    return scene.probe("averaged", now - before, noise=scene.noise, passes=2, now=float(now.mean()), before=float(before.mean()))


def bad_batches(scene: Scene, first: int, last: int) -> Probe | None:
    """Looks for batches that stand out among those that can have made the rise between steps `first` and `last`, by their loss,
    gradient or activations. They count if they stand out with the reference's weights as well, before any harm was done. The
    share is what undoing the stretch of steps from them on removes. One pass."""
    network = scene.network
    window = list(range(max(0, first - records.TAIL), last))
    flagged = np.any([records.outliers(scene.steps[:, k], scene.earlier[:, k]) for k in (records.LOSS, records.GRADIENT)], 0)
    suspects = {i for i in window if flagged[i]}
    network.assign(scene.reference)
    others = [int(i) for i in np.linspace(0, len(scene.steps) - 1, 4 * COMPARED) if not flagged[int(i)]]
    looked = sorted({*window[-max(IMAGES // scene.batch_size, 4) :], *others[::4]})
    odd: set[int] = set()
    if network.statistics:
        odd = {looked[i] for i in np.flatnonzero(strange(network.moments(looked, dropout=False)))} & set(window)
        network.assign(scene.reference)
    chosen = sorted(odd) + sorted(suspects - odd, key=lambda i: -scene.steps[i, records.LOSS])
    if not chosen:
        return None
    usual = [float(network.batch_losses(i).mean()) for i in dict.fromkeys(others) if i not in odd | suspects][:COMPARED]
    each = {i: network.batch_losses(i) for i in chosen[:6]}
    losses = {i: float(values.mean()) for i, values in each.items()}
    limit = max(2 * max(usual, default=np.inf), np.quantile(scene.earlier[:, records.LOSS], 0.99))
    bad = sorted(i for i in losses if i in odd or losses[i] > limit)
    if not bad:
        return None
    before = [weights for step, weights in scene.path if step <= bad[0]] or [scene.reference]
    after = next((weights for step, weights in scene.path if step >= bad[-1] + 10), scene.now)
    undone = scene.cleaned([now - (b - a) for now, a, b in zip(scene.now, before[-1], after, strict=True)])
    facts = {"batches": bad, "losses": [losses[i] for i in bad], "usual": float(np.median(usual or [np.nan])), "odd": sorted(odd)}
    facts["each"] = [each[i].tolist() for i in bad]
    return scene.probe("bad_batches", undone - scene.clean_reference, noise=scene.noise, passes=1, **facts)


def before_event(scene: Scene, event: Event) -> Probe | None:
    """The weights just before the event: the share of the rise that came after it. One pass."""
    earlier = [weights for step, weights in scene.path if step <= event.step]
    if not earlier:
        return None
    there = scene.raw(earlier[-1]) if event.step else scene.reference_losses
    return scene.probe("before_event", there - scene.reference_losses, passes=int(event.step > 0), **event.as_dict())


def average(path: Sequence[tuple[int, Weights]]) -> Weights:
    """The mean weights over a path."""
    return [np.asarray(np.mean(values, 0, dtype=np.float32)) for values in zip(*(weights for _, weights in path), strict=True)]
