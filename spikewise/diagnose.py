"""The one door: fed once an epoch, it returns a Diagnosis when the validation loss spikes.

It owns what must be remembered between epochs: the detector, the weights and losses of the last ordinary epoch, the weights along
the epoch that is running. On several workers each has one and feeds it the same numbers; then all come to the same answer.

Shapes: n validation images, m sampled training images, s steps of an epoch.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from spikewise import attribute, probes
from spikewise import steps as records
from spikewise.detect import SMALLEST_FRACTION, Detector, overfitting
from spikewise.probes import Network, Scene, Weights
from spikewise.records import Case, Cause, Diagnosis, Event, Hyperparameters, Overfitting, Probe, Spike, Suspect, Training
from spikewise.suspects import suspects

SNAPSHOTS = 8
"""Times an epoch that the weights are copied."""
RECORDS = 7
RECENT = 2
"""Epochs for which a learning rate that was raised is still told of: its harm may come a little later."""

Predict = Callable[[Sequence[int]], dict[int, tuple[str, str, float]]]
"""Numbers of validation images -> label, prediction, probability of the prediction, now."""


@dataclass
class _Epoch:
    """What is kept of an ordinary epoch."""

    losses: np.ndarray
    sample: float
    steps: np.ndarray
    weights: Weights | None = None
    average: Weights | None = None


class News(NamedTuple):
    """What an epoch brought."""

    diagnosis: Diagnosis | None
    """Of a new spike."""
    resolved: Diagnosis | None
    """An earlier one whose outcome is known now; a divergence changes its verdict."""


class Diagnostician:
    """Feed it with `mark` after the steps that `marks` names, and with `close_epoch`."""

    def __init__(
        self,
        network: Network,
        *,
        batch_size: int,
        groups: Sequence[Hashable] | None = None,
        keys: Sequence[str] | None = None,
        labels: np.ndarray | None = None,
        momentum: float = np.nan,
        smallest_fraction: float = SMALLEST_FRACTION,
    ) -> None:
        """`groups`, `keys`, `labels` [n]: source, name and class number of each validation image; `momentum`: of
        BatchNormalization, for its remedy; `smallest_fraction`: of the expected loss, below which a rise does not matter."""
        self.network = network
        self.detector = Detector(groups, smallest_fraction=smallest_fraction)
        self.diagnoses: list[Diagnosis] = []
        self._settings = Hyperparameters(batch_size=batch_size, momentum=momentum)
        self._keys = keys
        self._guess = _guessing(labels)
        self._samples: list[float] = []
        self._before: list[_Epoch] = []
        self._path: list[tuple[int, Weights]] = []
        self._rate: Event | None = None
        """The last change of the learning rate."""

    def snapshots(self, steps: int) -> frozenset[int]:
        """After how many steps of an epoch of so many `mark` wants to be called."""
        return frozenset(np.linspace(0, steps, SNAPSHOTS + 1).astype(int)[1:-1].tolist())

    def snapshot(self, step: int) -> None:
        """Remembers the weights after `step` steps of this epoch."""
        self._path.append((step, self.network.weights()))

    def close_epoch(
        self,
        losses: np.ndarray,
        sample: np.ndarray,
        steps: np.ndarray,
        *,
        learning_rate: float = np.nan,
        events: Sequence[Event] = (),
        predict: Predict | None = None,
    ) -> News:
        """After the epoch's evaluation: losses [n] of the validation images and [m] of the sampled training images, both in
        inference mode, the epoch's StepStats [s, 7], and what happened to the run since the last epoch ended."""
        sampled = float(np.mean(sample)) if len(sample) else np.nan
        self._samples.append(sampled)
        update = self.detector.update(losses, lost=self._lost(sampled, len(steps)) if self.detector.due else None)
        epoch = self.detector.epoch
        self.snapshot(len(steps))
        resolved = self._resolve(update.resolved) if update.resolved else None
        diagnosis = None
        if update.spike is not None:
            began = time.perf_counter()
            case = self._case(update.spike, losses, sampled, steps, learning_rate, events, predict)
            causes = attribute.attribute(case)
            diagnosis = Diagnosis(
                update.spike, causes, tuple(case.probes.values()), case.training, time.perf_counter() - began, suspects(case)
            )
            self.diagnoses.append(diagnosis)
        self._rate = next((event for event in reversed(events) if event.kind == "learning_rate"), self._rate)
        if self.detector.ordinary[-1:] == [epoch]:
            average = probes.average(self._path) if len(self._path) > 1 else None
            weights = self._path[-1][1]
            for older in self._before:
                older.weights = older.average = None
            self._before = [*self._before[-1:], _Epoch(np.array(losses, float), sampled, steps, weights, average)]
        self._path = []
        return News(diagnosis, resolved)

    @property
    def overfitting(self) -> Overfitting | None:
        """The trend so far."""
        ordinary = self.detector.ordinary
        means = [self.detector.means[epoch - 1] for epoch in ordinary]
        return overfitting(ordinary, np.array(means), np.array([self._samples[epoch - 1] for epoch in ordinary]))

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """JSON types, and small arrays: with both a resumed run goes on as if nothing had been. Weights are not among them."""
        facts, recent = self.detector.state()
        arrays = {"recent": recent}
        for number, before in enumerate(self._before):
            arrays |= {f"{number}/losses": before.losses.astype(np.float32), f"{number}/steps": before.steps}
        kept = {"detector": facts, "samples": self._samples, "before": [before.sample for before in self._before]}
        rate = self._rate.as_dict() if self._rate else None
        return kept | {"rate": rate, "diagnoses": [diagnosis.as_dict() for diagnosis in self.diagnoses]}, arrays

    def restore(self, facts: dict[str, Any], arrays: dict[str, np.ndarray], *, at_epoch_end: bool) -> None:
        """Takes a `state` over. `at_epoch_end`: the network's weights are those with which the last epoch ended."""
        self.detector.restore(facts["detector"], arrays["recent"])
        self._samples = list(facts["samples"])
        self._rate = Event(**facts["rate"]) if facts.get("rate") else None
        self.diagnoses = [diagnosis_from(values) for values in facts["diagnoses"]]
        self._before = [
            _Epoch(arrays[f"{number}/losses"].astype(float), sample, arrays[f"{number}/steps"])
            for number, sample in enumerate(facts["before"])
        ]
        if at_epoch_end and self._before and self.detector.ordinary[-1:] == [self.detector.epoch]:
            self._before[-1].weights = self.network.weights()

    def _lost(self, sampled: float, steps: int) -> bool | None:
        """Whether more than half of what the network knew about its training images is gone; None if that cannot be told.
        Statistics that lag may only hide it: then those estimated anew decide."""
        if not self._before or not np.isfinite(self._guess) or np.isnan(sampled):
            return None
        limit = (self._guess + self._before[-1].sample) / 2
        if sampled >= limit and self.network.statistics and steps > 1:
            with self.network.untouched():
                sampled = probes.training_loss(self.network, steps, self._settings.batch_size)
        return not sampled < limit

    def _resolve(self, spike: Spike) -> Diagnosis | None:
        """The diagnosis of a spike whose outcome became known."""
        number = next((i for i, d in enumerate(self.diagnoses) if d.spike.epoch == spike.epoch), None)
        if number is None:
            return None
        diagnosis = replace(self.diagnoses[number], spike=spike)
        if spike.outcome == "divergence":
            case = Case(spike, settings=self._settings)
            first = attribute.attribute(case)[0]
            diagnosis = replace(diagnosis, causes=(first, *(c for c in diagnosis.causes if c.name != first.name)))
        self.diagnoses[number] = diagnosis
        return diagnosis

    def _case(
        self,
        spike: Spike,
        losses: np.ndarray,
        sampled: float,
        steps: np.ndarray,
        learning_rate: float,
        events: Sequence[Event],
        predict: Predict | None,
    ) -> Case:
        """Everything that attribution is to know, probes included."""
        if self._rate and spike.epoch - self._rate.epoch <= RECENT:
            events = [*events, replace(self._rate, step=0)]
        settings = replace(self._settings, learning_rate=learning_rate, steps=len(steps))
        self._settings = settings
        case = Case(spike, settings=settings, events=events, keys=self._keys, overfitting=self.overfitting)
        if not self._before or spike.outcome == "divergence":
            return case
        before = self._before[-1]
        earlier = np.concatenate([epoch.steps for epoch in self._before])
        scene = Scene(
            network=self.network,
            spike=spike,
            resampler=self.detector.resampler(len(losses)),
            losses=np.asarray(losses, float),
            reference_losses=before.losses,
            reference=before.weights or [],
            path=self._path,
            reference_average=before.average,
            steps=steps,
            earlier=earlier,
            batch_size=self._settings.batch_size,
        )
        if before.weights is not None and self.detector.ordinary[-1] == spike.epoch - 1:
            scene.path = [(0, before.weights), *self._path]
        found = self._probe(scene, events)
        training = case.training
        if np.isfinite(spike.loss):
            training = self._training(scene, events, sampled - before.sample, before.sample)
            training = replace(training, validation_rise=float(scene.rise.mean()))
        few = found.get("few_examples")
        images = [entry["image"] for entry in few.facts["images"]] if few else []
        return replace(case, probes=found, training=training, predicted=predict(images) if predict and images else {})

    def _training(self, scene: Scene, events: Sequence[Event], rise: float, loss: float) -> Training:
        """What was unusual in how the epoch was trained."""
        if not len(scene.steps) or not len(scene.earlier):
            return Training(train_rise=rise, train_loss=loss)
        lengths = records.unexplained_lengths(scene.steps, scene.earlier)
        trainable = [i for i in range(len(scene.now)) if i not in set(self.network.statistics)]
        return Training(
            length=float(lengths.max()),
            length_at=int(lengths.argmax()),
            length_after=tuple(float(lengths[event.step :].max(initial=1.0)) for event in events),
            jumps=tuple(records.jump(scene.path, event.step, self.network.statistics) for event in events),
            astray=records.astray(scene.steps, scene.earlier),
            gradient=records.gradient_ratio(scene.steps[: len(scene.steps) // 2 + 1], scene.earlier),
            straightness=records.straightness(scene.path, trainable),
            foreign=records.foreign(scene.path, scene.steps, trainable),
            train_rise=rise,
            train_loss=loss,
        )

    def _probe(self, scene: Scene, events: Sequence[Event]) -> dict[str, Probe]:
        found: list[Probe | None] = [probes.few_examples(scene)]
        if scene.reference and scene.path and np.isfinite(scene.spike.loss):
            with self.network.untouched():
                found += probes.evaluation(scene)
                where = probes.path(scene)
                found += [probes.before_event(scene, event) for event in events[:1]]
                found += [
                    where,
                    probes.statistics(scene),
                    probes.variance_shift(scene),
                    probes.line(scene),
                    probes.averaged(scene),
                ]
                first, last = (where.facts["first"], where.facts["last"]) if where else (0, len(scene.steps))
                found.append(probes.bad_batches(scene, first, last))
        return {probe.name: probe for probe in found if probe is not None}


def diagnosis_from(values: dict[str, Any]) -> Diagnosis:
    """The reverse of Diagnosis.as_dict."""
    return Diagnosis(
        spike=Spike(**values["spike"]),
        causes=tuple(Cause(**cause) for cause in values["causes"]),
        probes=tuple(Probe(**probe) for probe in values["probes"]),
        training=Training(**values["training"]),
        seconds=values["seconds"],
        suspects=tuple(Suspect(**suspect) for suspect in values.get("suspects", ())),
    )


def _guessing(labels: np.ndarray | None) -> float:
    """Loss of always answering with the shares of the classes; infinite if labels are unknown."""
    if labels is None or not len(labels):
        return np.inf
    fractions = np.bincount(np.asarray(labels, int)) / len(labels)
    fractions = fractions[fractions > 0]
    return float(-np.sum(fractions * np.log(fractions)))
