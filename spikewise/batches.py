"""Probes of an epoch's training batches: which of them differ from the others, or from those of earlier epochs.

The batches are looked at with the reference weights, from before any harm was done.

Shapes: n validation images, s steps of the epoch, e steps of ordinary epochs before, k batches, C channels.
"""

from typing import Any

import numpy as np

from spikewise import steps as analysis
from spikewise.moments import deviation
from spikewise.probes import IMAGES, HoldsSomeBatches, KnowsClasses, Network, Scene, strange
from spikewise.records import Probe

COMPARED = 12
"""Number of batches that a suspicious batch is compared with."""
LOOKED = 24
"""Number of batches whose losses and moments are measured."""
MOST = 0.8
"""Fraction of the batches from some batch on that must differ, so that the training data changed there."""
SHIFT = 0.4
"""Standard deviations, or logarithms of a variance's factor, by which unchanged images do not move the first layer's moments."""
CLUSTERED = 4.0
"""Batches in random order differ from each other less than this many times as much as chance makes batches of their size differ:
the variance of their moments, or of the fractions of their classes."""


def bad_batches(scene: Scene, first: int, last: int) -> Probe | None:
    """Looks for batches whose loss, gradient or activations stand out. A batch counts if it also stands out under the reference
    weights. The fraction is what undoing the steps from the first of those on removes that can have caused a rise between steps
    `first` and `last`. One pass; None if none of these stands out."""
    network = scene.network
    window = range(max(0, first - analysis.TAIL), last)
    flagged = _flagged(scene)
    suspects = {i for i in np.flatnonzero(flagged).tolist() if _held(network, i)}
    network.assign(scene.reference)
    others = [int(i) for i in np.linspace(0, len(scene.steps) - 1, 4 * COMPARED) if not flagged[int(i)]]
    looked = sorted({*(i for i in window[-max(IMAGES // scene.batch_size, 4) :] if _held(network, i)), *others[::4]})
    odd: set[int] = set()
    if network.statistics:
        odd = {looked[i] for i in np.flatnonzero(strange(network.moments(looked, dropout=False)))}
        network.assign(scene.reference)
    chosen = sorted(odd | suspects, key=lambda i: (i not in window, i not in odd, -scene.steps["loss"][i]))
    if not odd | suspects or chosen[0] not in window:
        return None
    usual = [float(network.batch_losses(i).mean()) for i in dict.fromkeys(others) if i not in odd | suspects][:COMPARED]
    each = {i: network.batch_losses(i) for i in chosen[: max(LOOKED, len(scene.losses) // scene.batch_size)]}
    losses = {i: float(values.mean()) for i, values in each.items()}
    limit = max(2 * max(usual, default=np.inf), np.quantile(scene.earlier["loss"], 0.99))
    bad = sorted(i for i in losses if i in odd or losses[i] > limit)
    harmful = [i for i in bad if i in window]
    if not harmful:
        return None
    before = [weights for step, weights in scene.path if step <= harmful[0]] or [scene.reference]
    after = next((weights for step, weights in scene.path if step >= harmful[-1] + 10), scene.now)
    undone = scene.cleaned([now - (b - a) for now, a, b in zip(scene.now, before[-1], after, strict=True)])
    facts: dict[str, Any] = {"now": float(undone.mean()), "before": float(scene.clean_reference.mean())}
    facts |= {"batches": bad, "losses": [losses[i] for i in bad], "usual": float(np.median(usual or [np.nan])), "odd": sorted(odd)}
    facts["each"] = [each[i].tolist() for i in bad]
    return scene.probe("bad_batches", undone - scene.clean_reference, noise=scene.noise, passes=1, **facts)


def training_data(scene: Scene) -> Probe | None:
    """Whether the batches from some batch on differ from those of earlier epochs: their loss is higher, they move the first layer's
    moments, or they are sorted. The fraction is the part of the rise that came after that batch. At most one pass; None if they
    do not differ."""
    network, count = scene.network, len(scene.steps)
    chosen = sorted({int(i) for i in np.linspace(0, count - 1, min(count, LOOKED))})
    network.assign(scene.reference)
    each = [network.batch_losses(i) for i in chosen]
    losses = np.array([values.mean() for values in each])
    usual = float(np.median(scene.earlier["loss"]))
    limit = max(2 * usual, 2 * np.nan_to_num(scene.sampled), float(np.quantile(scene.earlier["loss"], 0.99)))
    moments = network.moments(chosen, dropout=True) if network.statistics else []
    stored = [scene.reference[i] for i in network.statistics]
    spreads = None
    if scene.usual is not None:  # the moving statistics may not have settled yet
        stored, spreads = (np.split(values, np.cumsum([values.size for values in stored])[:-1]) for values in scene.usual)
    shifts = np.array([np.abs(_shift([values[k] for values in moments], stored)).max() for k in range(len(chosen))])
    start = _since((losses > limit) | (shifts > SHIFT), [count - number for number in chosen])
    clustering = _clustering(moments, len(each[0]), spreads[-2] if spreads else None)
    sorting_now = sorting(network, count)

    def since(start: int) -> tuple[float, float, float]:
        """Loss, distance of the means and logarithm of the variances' factor of the batches from `start` on, all together."""
        return float(losses[start:].mean()), *_shift(_together([values[start:] for values in moments[:2]]), stored)

    loss, deviations, factor = since(start or 0)
    if start is None or (loss <= limit and max(deviations, abs(factor)) <= SHIFT):  # each differs in its own way, as small ones do
        calm = ~_flagged(scene)  # a single bad batch makes losses differ as well
        apart = clustering >= CLUSTERED and analysis.spread(scene.steps[calm], scene.earlier) >= analysis.WIDER
        always = scene.sorted_before >= CLUSTERED
        if always or not (apart or (sorting_now >= CLUSTERED > scene.sorted_before)) or _repeats(each):
            return None
        start = 0
        loss, deviations, factor = since(start)
    first = chosen[start]
    before = [weights for step, weights in scene.path if 0 < step <= first]
    there = scene.raw(before[-1]) if before else scene.again[1]
    return scene.probe(
        "training_data",
        there - scene.reference_losses,
        passes=int(bool(before)),
        there=float(there.mean()),
        first=first,
        loss=loss,
        usual_loss=usual,
        loss_limit=limit,
        shift=deviations,
        factor=float(np.exp(factor)),
        shifted=max(deviations, abs(factor)) > SHIFT,
        clustering=clustering,
        sorting=sorting_now,
    )


def _since(differ: np.ndarray, left: list[int]) -> int | None:
    """The first of the k batches from which on most of them differ, up to the end; None if there is none, or if it comes so late
    that the batches are rather single bad ones. `differ` bool [k]; `left` [k]: steps of the epoch from each of them on."""
    gains = np.cumsum((differ - MOST)[::-1])[::-1]  # the later start wins, unless most of those between differ too
    start = int(np.argmax(gains))
    if not differ[start] or differ[start:].mean() < MOST or left[start] < max(left[0] / 4, 3):
        return None
    return start


def _together(moments: list[np.ndarray]) -> list[np.ndarray]:
    """Mean and variance [C] of the images of all batches together. `moments` [k, C] each, or none."""
    if not moments:
        return []
    means, variances = moments
    return [means.mean(0), variances.mean(0) + means.var(0)]


def _shift(moments: list[np.ndarray], stored: list[np.ndarray]) -> tuple[float, float]:
    """How far the first layer's moments [C] lie from the stored ones: the median distance of the means in standard deviations, and
    the median logarithm of the factor between the variances."""
    if not moments:
        return 0.0, 0.0
    (mean, variance), (usual_mean, usual_variance) = moments[:2], stored[:2]
    alive = usual_variance > 1e-3 * usual_variance.max()
    if not alive.any():
        return 0.0, 0.0
    deviations = np.abs(mean - usual_mean)[alive] / np.sqrt(usual_variance[alive])
    return float(np.median(deviations)), float(np.median(np.log((variance[alive] + 1e-12) / usual_variance[alive])))


def _repeats(each: list[np.ndarray]) -> bool:
    """Whether most batches hold the same images several times, with the same losses. They differ more, but are not sorted."""
    found = []
    for losses in each:
        known = losses[losses > 1e-5]  # those of images that the network is sure of are all about 0
        found.append(len(np.unique(np.round(np.log(known), 3))) / len(known) if len(known) > 3 else 1.0)
    return bool(np.median(found) <= 0.5)


def _held(network: Network, batch: int) -> bool:
    """Whether the network holds this batch itself: what stands in for it says nothing about it."""
    return not isinstance(network, HoldsSomeBatches) or network.held(batch) == batch


def sorting(network: Network, steps: int) -> float:
    """How many times as much the fractions of the classes vary from batch to batch as those of images in random order (variance,
    as the statistic of a chi-squared test over its degrees of freedom). About 1 or less if they are shuffled; 0 if the classes are
    unknown or there are fewer than 8 batches."""
    chosen = sorted({int(i) for i in np.linspace(0, steps - 1, min(steps, LOOKED))})
    known = network.batch_classes(chosen) if isinstance(network, KnowsClasses) and chosen else None
    return _sorting(known) if known is not None else 0.0


def _sorting(batches: list[np.ndarray]) -> float:
    """`sorting` of batches with class numbers [b] each."""
    if len(batches) < 8:
        return 0.0
    count = max(int(classes.max()) for classes in batches) + 1
    counts = np.array([np.bincount(classes, minlength=count) for classes in batches])
    sizes = counts.sum(1, keepdims=True)
    mean = counts.sum(0) / sizes.sum()
    by_chance = (len(counts) - 1) * float(np.sum(mean * (1 - mean)))
    return float(np.sum(sizes * (counts / sizes - mean) ** 2)) / by_chance if by_chance > 0 else 0.0


def _flagged(scene: Scene) -> np.ndarray:
    """The steps [s] whose loss or gradient stands out: bool."""
    return np.asarray(np.any([analysis.outliers(scene.steps[name], scene.earlier[name]) for name in ("loss", "gradient_norm")], 0))


def _clustering(moments: list[np.ndarray], images: int, usual: np.ndarray | None) -> float:
    """Variance of the means of k batches, as a multiple of that of shuffled batches: of the `usual` deviation [C], or, if that is
    unknown, of what independent images give (too much for a layer that averages over positions). About 1 or less if they are
    shuffled. `moments` [k, C] each; of the last layer, which separates the classes best. `images` of a batch."""
    if not moments or len(moments[0]) < 8:
        return 0.0
    means, variances = moments[-2:]
    expected = variances.mean(0) / images if usual is None else usual**2
    alive = (variances.mean(0) > 1e-3 * variances.mean(0).max()) & (expected > 0)
    if not alive.any():
        return 0.0
    return float(np.median(deviation(means)[alive] ** 2 / expected[alive]))
