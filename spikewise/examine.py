"""What is measured at a spike: all probes that the scene allows, and what was unusual about the epoch's steps.

Shapes: as in probes.py.
"""

from collections.abc import Sequence

import numpy as np

from spikewise import batches, outputs, probes
from spikewise import steps as analysis
from spikewise.curve import FORWARD
from spikewise.probes import IMAGES, Scene
from spikewise.records import Event, Probe, Training
from spikewise.suspects import HALF

PASSES = 25
"""About how many passes over the validation images all probes take, and half as many estimates of the statistics."""


class Credit:
    """Bounds what is spent on suspicions, rises that may be no spikes: a fraction of the training time, counted in training images
    as `curve.Budget` does. A screening is `promising`, which may be followed by all probes."""

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction
        self.saved: float | None = None
        """In training images; None before the first epoch."""
        self.screening = self.probes = np.inf
        """What a screening and all probes cost."""

    def earn(self, images: int, steps: int, batch_size: int) -> None:
        """Credits an epoch with so many validation images and steps."""
        epoch, looked = steps * batch_size, batches.LOOKED * batch_size
        # Losses and moments of batches, the latter in training mode.
        self.screening = FORWARD * min(3 * IMAGES + 4 * looked, 4 * epoch)
        self.probes = FORWARD * PASSES * (images + min(IMAGES, epoch) / 2)
        most = 3 * self.screening + self.probes  # a suspicion that comes to nothing must not use up what the next one needs
        self.saved = most if self.saved is None else min(self.saved + self.fraction * epoch, most)

    def screen(self) -> bool:
        """Whether to screen a suspicion, because all probes would be affordable as well. If so, takes what that costs."""
        if self.fraction <= 0 or self.saved is None or self.saved < self.screening + self.probes:
            return False
        self.saved -= self.screening
        return True

    def charge(self) -> None:
        """Takes what all probes cost: they confirmed nothing."""
        self.saved = (self.saved or 0.0) - self.probes


def promising(scene: Scene, events: Sequence[Event], training: Training) -> bool:
    """Whether probes may show that something happened in this epoch: an event, foreign or long steps, bad batches or other data.
    Costs little where nothing did. Leaves the network unchanged."""
    if events or training.foreign is not None or training.length >= analysis.LONGER or not (scene.reference and scene.path):
        return bool(scene.reference and scene.path)
    with scene.network.untouched():
        found = (batches.training_data(scene), batches.bad_batches(scene, 0, len(scene.steps)))
        return any(probe is not None and probe.fraction >= HALF for probe in found)


def probe(scene: Scene, events: Sequence[Event]) -> dict[str, Probe]:
    """The results of all probes that are possible, by name. Leaves the network unchanged. Without a rise since the reference epoch
    there are none: an epoch that was asked for may lie above the trend, but not above the epoch before it."""
    if scene.rise.mean() <= 0:
        return {}
    found: list[Probe | None] = [probes.few_examples(scene.spike, scene.losses, scene.reference_losses)]
    if scene.reference and scene.path:
        with scene.network.untouched():
            found += _finite(scene, events) if np.isfinite(scene.spike.loss) else [outputs.precision(scene)]
    return {one.name: one for one in found if one is not None}


def _finite(scene: Scene, events: Sequence[Event]) -> list[Probe | None]:
    """The probes that compare a finite loss with that of the epoch before."""
    found: list[Probe | None] = [*probes.evaluation(scene)]
    where = probes.path(scene)
    first = sorted(events, key=lambda event: not (event.raises_rate and event.epoch == scene.spike.epoch))[:1]
    found += [probes.before_event(scene, event) for event in first]
    found += [
        where,
        probes.statistics(scene),
        *probes.momentum(scene),
        probes.variance_shift(scene),
        probes.line(scene),
        probes.averaged(scene),
        outputs.precision(scene),
        outputs.temperature(scene),
        batches.training_data(scene),
    ]
    begin, end = (where.facts["first"], where.facts["last"]) if where else (0, len(scene.steps))
    return [*found, batches.bad_batches(scene, begin, end)]


def about_steps(scene: Scene, events: Sequence[Event], *, known: bool, adam: bool) -> Training:
    """What was unusual about the steps of the epoch. `known`: whether the scene's earlier steps are those of ordinary epochs.
    `adam`: whether the optimizer divides by second moments, as Adam does."""
    if not len(scene.steps) or not len(scene.earlier):
        return Training()
    lengths, norms = scene.lengths, scene.earlier["gradient_norm"]
    trainable = [i for i in range(len(scene.now)) if i not in set(scene.network.statistics)]
    weights = sum(scene.now[i].size for i in trainable)
    strides, usual = (analysis.strides(values, weights) for values in (scene.steps, scene.earlier))
    return Training(
        length=float(lengths.max()),
        length_at=int(lengths.argmax()),
        raised=float(analysis.raised(scene.steps["learning_rate"], scene.rate_before)[lengths.argmax()]),
        length_after=tuple(float(lengths[event.step :].max(initial=1.0)) if known else np.nan for event in events),
        jumps=tuple(analysis.jump(scene.path, event.step, scene.network.statistics) for event in events),
        astray=analysis.astray(scene.steps, scene.earlier),
        gradient=analysis.gradient_ratio(scene.steps[: len(scene.steps) // 2 + 1], scene.earlier),
        ordinary_gradient=float(np.quantile(norms, 0.95)) if np.ptp(norms) else np.nan,  # all equal: they are unknown
        straightness=analysis.straightness(scene.path, trainable),
        foreign=analysis.foreign(scene.path, scene.steps, trainable),
        stride=float(strides.max()) if adam else np.nan,
        usual_stride=float(np.median(usual)) if adam else np.nan,
        stride_at=int(strides.argmax()),
    )
