"""The Diagnostician: takes the results of one epoch at a time, and returns a Diagnosis when the validation loss spikes.

Owns what must be remembered between epochs: the detector, the weights and losses of the last ordinary epoch, and the snapshots
of the running epoch. With several workers, each has its own Diagnostician and passes it the same numbers, so all get the same
result.

Shapes: n validation images, m sampled training images, s steps of an epoch.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from spikewise import batches, causes, outputs, probes
from spikewise import steps as analysis
from spikewise.curve import BUDGET, Parts
from spikewise.detect import Detector, Update, course, overfitting
from spikewise.examine import Credit, about_steps, probe, promising
from spikewise.findings import Findings
from spikewise.measure import Composition
from spikewise.moments import Counterfactuals, batch_moments, typical
from spikewise.probes import Network, Scene, Weights
from spikewise.records import (
    STEP,
    Case,
    Course,
    Diagnosis,
    Event,
    Hyperparameters,
    Overfitting,
    Spike,
    Training,
    diagnosis_from,
)
from spikewise.standing import Standing
from spikewise.suspects import suspects

PARTS, SUSPICIONS = 0.6, 0.3
"""Fractions of the budget for the parts of the loss, and for smaller rises that turn out to be no spikes. Copies of weights take
the rest."""
SNAPSHOTS = 8
"""Number of parts that an epoch is divided into by copies of the weights."""
CONFIRMING = frozenset({"run_event", "training_data_changed", "bad_batch", "stale_optimizer_state", "overshoot"})
"""Verdicts that confirm a suspicion: something happened in this epoch. Other causes make small rises in every healthy run."""
RECENT = {"learning_rate": 2, "frozen_layers": 5}
"""Number of epochs for which an event of a kind remains a possible cause: its harm may come a little later."""

Predict = Callable[[Sequence[int]], dict[int, tuple[str, str, float]]]
"""Positions of validation images -> label, predicted class, and its probability, by position."""


@dataclass
class _Epoch:
    """What is remembered of an ordinary epoch."""

    losses: np.ndarray
    """[n], validation images."""
    sample: float
    """Mean loss of the sampled training images; NaN if they were not known yet."""
    steps: np.ndarray
    """[s], dtype STEP."""
    weights: Weights | None = None
    average: Weights | None = None
    alternatives: np.ndarray | None = None
    """Moving statistics with other momenta (moments.Counterfactuals)."""
    moments: np.ndarray | None = None
    """[2, m], what was typical of its batches; None if that is unknown."""
    each: np.ndarray | None = None
    """[m], losses of the sampled training images; None if they are unknown."""
    loss_scale: float = np.nan
    sorting: float = np.nan
    """What batches.sorting found in it; NaN if that is unknown."""


class News(NamedTuple):
    """What the Diagnostician found in an epoch."""

    diagnosis: Diagnosis | None
    """Diagnosis of a new spike."""
    resolved: tuple[Diagnosis, ...]
    """Diagnoses of earlier spikes whose outcome is now known. A divergence changes its verdict."""
    parts: Parts | None = None
    """What the validation loss is made of; None if that was not measured in this epoch."""
    standing: tuple[Standing, ...] = ()
    """Standing causes that are new."""


class Diagnostician:
    """Explains each spike of one run. In every epoch, call `snapshot` after the steps that `snapshots` returns, then
    `close_epoch`."""

    def __init__(
        self,
        network: Network,
        *,
        batch_size: int,
        groups: Sequence[Hashable] | None = None,
        keys: Sequence[str] | None = None,
        labels: np.ndarray | None = None,
        cross_entropy: bool = True,
        momentum: float = np.nan,
        dropout: float = np.nan,
        validation_fraction: float = np.nan,
        sensitivity: float = 1.0,
        budget: float = BUDGET,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`batch_size`: images of a global batch. `groups`, `keys`, `labels` [n]: source, name and class number of each validation
        image. `cross_entropy`: whether the loss is that of the labels; otherwise the loss of guessing is unknown.
        `momentum`, `dropout`, `validation_fraction`, `settings`: as in records.Hyperparameters, for the remedies.
        `sensitivity`: as for Detector. `budget`: fraction of the training time that measuring the parts of the loss, and the
        probes of rises that turn out to be no spikes, may take together."""
        self.network = network
        self.detector = Detector(groups, sensitivity=sensitivity)
        self.diagnoses: list[Diagnosis] = []
        self._credit = Credit(SUSPICIONS * budget)
        self.composition = Composition(PARTS * budget)
        """What the validation loss is made of, and the standing causes."""
        self._counterfactuals = Counterfactuals()
        self._hyperparameters = Hyperparameters(
            batch_size=batch_size,
            momentum=momentum,
            dropout=dropout,
            validation_fraction=validation_fraction,
            settings=settings or {},
        )
        self._labels = labels
        self.case: Case | None = None
        """What was known about the last spike; for benchmarks, which judge it again by other rules."""
        self._keys = keys
        self._guess = _guessing(labels if cross_entropy else None)
        self._samples: list[float] = []
        self._before: list[_Epoch] = []
        self._path: list[tuple[int, Weights]] = []
        self._recent: list[Event] = []
        """The reported events that remain possible causes."""
        self._rate_before = np.nan
        """Learning rate of the last step of the epoch before."""

    def snapshots(self, steps: int) -> frozenset[int]:
        """The numbers of completed steps, in an epoch of `steps`, after which to call `snapshot`."""
        return frozenset(np.linspace(0, steps, SNAPSHOTS + 1).astype(int)[1:-1].tolist())

    def snapshot(self, step: int) -> None:
        """Copies the weights after `step` steps of this epoch."""
        self._path.append((step, self.network.weights()))

    def discard_epoch(self) -> None:
        """Forgets the snapshots of an epoch that was interrupted and will not be closed."""
        self._path = []

    def close_epoch(
        self,
        losses: np.ndarray,
        sample: np.ndarray,
        steps: np.ndarray,
        *,
        learning_rate: float = np.nan,
        events: Sequence[Event] = (),
        predict: Predict | None = None,
        trace: np.ndarray | None = None,
        asked: bool = False,
        final: bool = False,
    ) -> News:
        """Judges an epoch after its evaluation. On a spike, it probes the network and leaves it unchanged. A smaller rise is a
        spike as well if something about the steps was unusual, and a probe shows that it caused the rise.

        `losses` [n] of the validation images and `sample` [m] of the sampled training images are in inference mode. `steps` [s] is
        any structured array with the fields of records.STEP. `learning_rate`: the configured one, for the remedies (NaN if it is
        unknown); with a schedule, the steps have others. `events`: what happened to the run since the last epoch ended. A schedule
        of the learning rate is no event. `trace` [s + 1, m]: the moving statistics before the first and after each step, those of
        `network.statistics` one after the other; None if they are unknown. `asked`: diagnose the epoch also if it raises no
        alarm, as long as its loss is above the expected one. `final`: the run ends with this epoch, so that the parts of its loss
        are measured in any case.
        """
        steps = steps[list(STEP.names or ())].astype(STEP)
        sampled = float(np.mean(sample)) if len(sample) else np.nan
        self._samples.append(sampled)
        trains = analysis.lost(steps, self._earlier, self._guess) is False
        lost = False if trains else self._lost(sampled, len(steps)) if self.detector.due else None
        update = self.detector.update(losses, lost=lost, asked=asked)
        if trains:
            update = self._not_lost(update)
        epoch = self.detector.epoch
        self.snapshot(len(steps))
        resolved = tuple(one for spike in update.resolved if (one := self._resolve(spike, steps)))
        self._hyperparameters = replace(self._hyperparameters, learning_rate=learning_rate, steps=len(steps))
        self._counterfactuals.update(trace, np.asarray(self.network.kept, float))
        spike, diagnosis = update.spike, None
        began = time.perf_counter()
        self._credit.earn(len(losses), len(steps), self._hyperparameters.batch_size)
        suspicion, possible = update.suspicion, events or analysis.unusual(steps, self._earlier, self._rate_before)
        if suspicion and possible and self._promising(suspicion, losses, np.asarray(sample), steps, events, trace):
            spike = suspicion
        if spike is not None:
            case = self._case(spike, losses, np.asarray(sample), steps, events, predict, trace)
            ranked = causes.attribute(case)
            if update.spike is None and ranked[0].name not in CONFIRMING:
                spike = None
                self._credit.charge()
            else:
                found = tuple(case.probes.values())
                diagnosis = Diagnosis(spike, ranked, found, case.training, time.perf_counter() - began, suspects(case))
                self.diagnoses.append(diagnosis)
                self.case = case
                if update.spike is None:
                    self.detector.confirm(spike)
        parts, new = self.composition.measure(
            self.network,
            self._counterfactuals,
            losses=losses,
            before=self.detector.means[-2] if epoch > 1 else None,
            path=self._path,
            steps=steps,
            guess=self._guess,
            hyperparameters=self._hyperparameters,
            always=spike is not None or final,
            epoch=epoch,
            settled=not self.detector.open,
        )
        latest = {event.kind: event for event in (*self._recent, *events)}.values()
        self._recent = [event for event in latest if epoch - event.epoch < RECENT.get(event.kind, 0)]
        if self.detector.ordinary[-1:] == [epoch]:
            average = probes.average(self._path) if len(self._path) > 1 else None
            weights = self._path[-1][1]
            for older in self._before:
                older.weights = older.average = older.alternatives = None
            before = _Epoch(
                np.array(losses, float),
                sampled,
                steps,
                weights,
                average,
                alternatives=self._counterfactuals.now,
                moments=self._moments_of(trace),
                each=np.array(sample, float),
                loss_scale=self._loss_scale,
                sorting=batches.sorting(self.network, len(steps)),
            )
            self._before = [*self._before[-1:], before]
        self._path = []
        self._rate_before = float(steps["learning_rate"][-1]) if len(steps) else self._rate_before
        return News(diagnosis, resolved, parts, tuple(new))

    def _promising(
        self,
        suspicion: Spike,
        losses: np.ndarray,
        sample: np.ndarray,
        steps: np.ndarray,
        events: Sequence[Event],
        trace: np.ndarray | None,
    ) -> bool:
        """Whether a suspicion is worth all probes, and they are affordable."""
        if not self._before or not self._credit.screen():
            return False
        scene, events = self._scene(suspicion, losses, sample, steps, trace), self._possible(events)
        return promising(scene, events, self._about_steps(scene, events))

    @property
    def course(self) -> Course:
        """What there is to say about the curve so far besides its spikes."""
        return course(self.detector, self._guess)

    @property
    def overfitting(self) -> Overfitting | None:
        """The overfitting trend of the ordinary epochs so far, if there is one."""
        ordinary = self.detector.ordinary
        means = [self.detector.means[epoch - 1] for epoch in ordinary]
        return overfitting(ordinary, np.array(means), np.array([self._samples[epoch - 1] for epoch in ordinary]))

    @property
    def findings(self) -> Findings:
        """Everything found so far."""
        return Findings(tuple(self.diagnoses), self.overfitting, tuple(self.composition.parts), tuple(self.composition.standing))

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The state as JSON types and plain float arrays, without weights. A resumed run that restores both continues as an
        undisturbed one would, except that a spike in its first epoch has no probe of averaged weights."""
        facts, recent = self.detector.state()
        arrays = {"recent": recent}
        for number, before in enumerate(self._before):
            arrays |= {f"{number}/losses": before.losses.astype(np.float32), f"{number}/steps": analysis.as_array(before.steps)}
            more = {"moments": before.moments, "each": before.each}
            arrays |= {f"{number}/{name}": values for name, values in more.items() if values is not None}
        kept = {
            "detector": facts,
            "samples": self._samples,
            "before": [before.sample for before in self._before],
            "loss_scales": [before.loss_scale if np.isfinite(before.loss_scale) else None for before in self._before],
            "sortings": [before.sorting if np.isfinite(before.sorting) else None for before in self._before],
            "recent": [event.as_dict() for event in self._recent],
            "credit": self._credit.saved,
            "rate_before": self._rate_before if np.isfinite(self._rate_before) else None,
            "diagnoses": [diagnosis.as_dict() for diagnosis in self.diagnoses],
            "composition": self.composition.state(),
        }
        kept["followed"], arrays["counterfactuals"] = self._counterfactuals.state()
        return kept, arrays

    def statistics_of_another_momentum(self) -> np.ndarray | None:
        """If the network has another momentum than that with which the restored epochs were trained: the moving statistics [m] that
        it would have now. See Counterfactuals.trained_with."""
        return self._counterfactuals.trained_with(np.asarray(self.network.kept, float))

    def restore(self, facts: dict[str, Any], arrays: dict[str, np.ndarray], *, at_epoch_end: bool) -> None:
        """Restores a `state`. `at_epoch_end`: the network now has the weights with which the last epoch ended."""
        self.detector.restore(facts["detector"], arrays["recent"])
        self._samples = list(facts["samples"])
        self._recent = [Event(**values) for values in facts.get("recent", ())]
        self._credit.saved = facts.get("credit")
        self._rate_before = np.nan if facts["rate_before"] is None else facts["rate_before"]
        self.diagnoses = [diagnosis_from(values) for values in facts["diagnoses"]]
        self.composition.restore(facts["composition"])
        self._counterfactuals.restore(facts["followed"], arrays["counterfactuals"])
        scales, sortings = (dict(enumerate(facts.get(name, ()))) for name in ("loss_scales", "sortings"))
        self._before = [
            _Epoch(
                arrays[f"{number}/losses"].astype(float),
                sample,
                analysis.from_array(arrays[f"{number}/steps"]),
                moments=arrays.get(f"{number}/moments"),
                each=arrays.get(f"{number}/each"),
                loss_scale=np.nan if (scale := scales.get(number)) is None else scale,
                sorting=np.nan if (sorting := sortings.get(number)) is None else sorting,
            )
            for number, sample in enumerate(facts["before"])
        ]
        if at_epoch_end and self._before and self.detector.ordinary[-1:] == [self.detector.epoch]:
            self._before[-1].weights = self.network.weights()
            self._before[-1].alternatives = self._counterfactuals.now

    def _moments_of(self, trace: np.ndarray | None) -> np.ndarray | None:
        """What was typical of the batches of an epoch, as for `moments.typical`, from its moving statistics [s + 1, m]."""
        kept = np.asarray(self.network.kept, float)
        if trace is None or trace.shape[1:] != kept.shape or len(trace) < 2:
            return None
        return typical(batch_moments(trace, kept))

    def _fits(self, moments: np.ndarray | None) -> bool:
        """Whether these are moments of the layers that keep statistics now: others may have been frozen."""
        return moments is not None and moments.shape == (2, len(self.network.kept))

    @property
    def _earlier(self) -> np.ndarray:
        """The steps [e] of ordinary epochs before."""
        return np.concatenate([epoch.steps for epoch in self._before]) if self._before else np.zeros(0, STEP)

    @property
    def _loss_scale(self) -> float:
        """The factor of the loss in float16 training; NaN without one."""
        return self.network.loss_scale if isinstance(self.network, outputs.UsesAdam) else np.nan

    def _not_lost(self, update: Update) -> Update:
        """The update of a network whose training goes on as ever: a validation loss that is not finite is then no divergence."""
        spike = update.spike
        if spike is not None and spike.outcome == "divergence":
            spike = self.detector.spikes[-1] = replace(spike, outcome="open", outcome_epoch=None)
        resolved = [replace(one, outcome="level shift") if one.outcome == "divergence" else one for one in update.resolved]
        known = {one.epoch: one for one in resolved}
        self.detector.spikes = [known.get(one.epoch, one) for one in self.detector.spikes]
        return update._replace(spike=spike, resolved=tuple(resolved))

    def _lost(self, sampled: float, steps: int) -> bool | None:
        """Whether the network has lost more than half of what it knew about its training images; None if unknown. If lagging
        statistics may be the reason, the loss is measured with re-estimated statistics."""
        if not self._before or not np.isfinite(self._guess) or np.isnan([sampled, self._before[-1].sample]).any():
            return None
        limit = (self._guess + self._before[-1].sample) / 2
        if sampled >= limit and self.network.statistics and steps > 1:
            with self.network.untouched():
                sampled = probes.training_loss(self.network, steps, self._hyperparameters.batch_size)
        return not sampled < limit

    def _resolve(self, spike: Spike, steps: np.ndarray) -> Diagnosis | None:
        """Updates the diagnosis of a spike whose outcome became known after `steps` [s]."""
        number = next((i for i, d in enumerate(self.diagnoses) if d.spike.epoch == spike.epoch), None)
        if number is None:
            return None
        diagnosis = replace(self.diagnoses[number], spike=spike)
        if spike.outcome == "divergence":
            training = replace(diagnosis.training, **self._in_training_mode(steps))
            self.case = case = Case(spike, training=training, hyperparameters=self._hyperparameters)
            first = causes.attribute(case)[0]
            diagnosis = replace(diagnosis, causes=(first, *(c for c in diagnosis.causes if c.name != first.name)))
        self.diagnoses[number] = diagnosis
        return diagnosis

    def _case(
        self,
        spike: Spike,
        losses: np.ndarray,
        sample: np.ndarray,
        steps: np.ndarray,
        events: Sequence[Event],
        predict: Predict | None,
        trace: np.ndarray | None,
    ) -> Case:
        """Everything that is known about the spike. Makes the probes."""
        events = self._possible(events)
        self._hyperparameters = replace(self._hyperparameters, beta_2=self._beta_2)
        case = Case(spike, hyperparameters=self._hyperparameters, events=events, keys=self._keys, overfitting=self.overfitting)
        case = replace(case, training=Training(**self._in_training_mode(steps)))
        if not self._before or spike.outcome == "divergence":
            return case
        scene = self._scene(spike, losses, sample, steps, trace)
        found = probe(scene, events)
        training = case.training
        if np.isfinite(spike.loss):
            training, before = self._about_steps(scene, events), self._before[-1]
            rise = float(np.mean(sample)) - before.sample if len(sample) else np.nan
            paired = before.each is not None and before.each.shape == sample.shape
            error = float(np.std(sample - before.each) / np.sqrt(len(sample))) if paired and len(sample) else np.nan
            training = replace(
                training,
                **self._in_training_mode(steps),
                train_rise=rise,
                train_loss=before.sample,
                train_error=error,
                validation_rise=float(scene.rise.mean()),
                loss_scale=(before.loss_scale, self._loss_scale) if before.loss_scale > 0 else None,
            )
        few = found.get("few_examples")
        images = [entry["image"] for entry in few.facts["images"]] if few else []
        return replace(case, probes=found, training=training, predicted=predict(images) if predict and images else {})

    def _possible(self, events: Sequence[Event]) -> list[Event]:
        """The events of this epoch, and those before that may still be its causes."""
        return [*events, *(replace(event, step=0) for event in self._recent)]

    @property
    def _beta_2(self) -> float:
        """Decay of Adam's second moments; NaN with another optimizer."""
        return self.network.beta_2 if isinstance(self.network, outputs.UsesAdam) else np.nan

    def _about_steps(self, scene: Scene, events: Sequence[Event]) -> Training:
        """What was unusual about the steps of the epoch."""
        return about_steps(scene, events, known=len(self._earlier) > 0, adam=bool(np.isfinite(self._beta_2)))

    def _scene(self, spike: Spike, losses: np.ndarray, sample: np.ndarray, steps: np.ndarray, trace: np.ndarray | None) -> Scene:
        """What the probes of this epoch may look at."""
        before = self._before[-1]
        if np.isnan(before.sample):
            self._sample_again(before, len(sample))
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
            earlier=self._earlier if len(self._earlier) else steps,  # without any, the epoch's steps are compared with each other
            batch_size=self._hyperparameters.batch_size,
            rate_before=self._rate_before,
            trace=trace,
            alternatives=(self._counterfactuals.now, before.alternatives),
            followed=self._counterfactuals.steps,
            usual=before.moments if self._fits(before.moments) else None,
            sampled=before.sample,
            sorted_before=before.sorting,
            labels=self._labels,
        )
        if before.weights is not None and spike.epoch - 1 in self.detector.ordinary[-2:]:  # a suspicion is the last of them
            scene.path = [(0, before.weights), *self._path]
        return scene

    def _sample_again(self, before: _Epoch, count: int) -> None:
        """Evaluates the `count` sampled training images with the weights of an epoch in which they were not known yet."""
        if before.weights is not None and count:
            with self.network.untouched():
                self.network.assign(before.weights)
                before.each = self.network.sample_part(count)
            before.sample = float(np.mean(before.each))

    def _in_training_mode(self, steps: np.ndarray) -> dict[str, Any]:
        """The facts about the losses of the training batches, as fields of Training."""
        earlier = self._earlier
        return {
            "batch_loss": float(np.median(analysis.last_losses(steps))) if len(steps) else np.nan,
            "usual_batch_loss": float(np.median(earlier["loss"])) if len(earlier) else np.nan,
            "lost": analysis.lost(steps, earlier, self._guess),
        }


def _guessing(labels: np.ndarray | None) -> float:
    """Loss of always predicting the class frequencies of `labels` [n]; infinite if they are unknown, or all of one class."""
    if labels is None or not len(labels):
        return np.inf
    fractions = np.bincount(np.asarray(labels, int)) / len(labels)
    fractions = fractions[fractions > 0]
    if len(fractions) == 1:
        return np.inf
    return float(-np.sum(fractions * np.log(fractions)))
