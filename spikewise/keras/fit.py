"""Watches `model.fit`: sees each step before and after, evaluates each epoch, and passes both to a Diagnostician.

Owns what lasts from one `fit` to the next. tap.py leads here, recorder.py measures the steps, loss.py evaluates as Keras does.

Shapes: n validation examples, b examples of a batch, s steps of an epoch.
"""

import logging
import sys
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import keras
import numpy as np

from spikewise import describe, describe_curve
from spikewise.curve import shares
from spikewise.diagnose import Diagnostician
from spikewise.errors import UserError
from spikewise.findings import Findings
from spikewise.keras.data import Examples, labelled, predicted
from spikewise.keras.loss import CompiledNetwork, Evaluation, Losses
from spikewise.keras.recorder import EpochBatches, StepRecorder, raises, size_of
from spikewise.keras.replaced import ReplacedWeights
from spikewise.keras.setup import Setup, check, setup_of
from spikewise.keras.tap import BatchTap, take_off, tap_on
from spikewise.keras.unwatched import same, skip
from spikewise.probes import Network
from spikewise.records import Diagnosis, Event

log = logging.getLogger(__name__)

SAMPLE = 500
"""Number of training examples whose loss in inference mode is followed: the first ones of the first epoch."""
TRACE_BYTES = 2**28
"""The statistics of BatchNormalization after every step of an epoch are kept if they take at most this many bytes."""
ONLY_FIT = "Fix: train with model.fit; train_on_batch and training loops of your own are not watched."
SAMPLED = 4
"""The sample takes at most one part in SAMPLED of the memory."""


class Watch:
    """Connects the training of one model with a Diagnostician. The callback calls its methods in the order of `fit`."""

    def __init__(
        self,
        validation_data: Any,
        names: Mapping[str, Sequence[Any]],
        *,
        sensitivity: float,
        budget: float,
        batch_size: int,
        memory: int,
        epochs: Collection[int],
    ) -> None:
        """`names`: `keys` and `groups` [n], if known; the rest as for SpikeDiagnosis. Raises UserError."""
        self.epochs = set(epochs)
        """To be diagnosed whether they raise an alarm or not."""
        self.requested: dict[int, Diagnosis] = {}
        """What was found in those of them in which the loss rose."""
        self.bad_batches: dict[int, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
        """Examples and labels of bad batches, by epoch and number."""
        self._examples = Examples(validation_data, "validation_data", batch_size)
        self._names = names
        self._sensitivity, self._budget = sensitivity, budget
        self._memory = memory
        self._batches = EpochBatches(memory)
        self._sample: list[tuple[Any, Any, Any]] = []
        self._model: keras.Model | None = None
        self._diagnostician: Diagnostician | None = None
        self._recorder: StepRecorder | None = None
        self._tap: BatchTap | None = None
        self._function: Any = None
        """The training function that the recorder and the network were made for."""
        self._setup: Setup | None = None
        """How the model was compiled in the last epoch."""
        self._events: list[Event] = []
        self._last: np.ndarray | None = None
        """Losses [n] at the end of the last epoch."""
        self._trace: list[Any] | None = None
        """Statistics of BatchNormalization before the first and after each step of the epoch; None if they are not kept."""
        self._order = (b"", b"")
        self._classes: np.ndarray | None = None
        self._cross_entropy = False
        """Whether the loss is the cross-entropy of the classes."""
        self._first = self._ready = False
        """Whether the next step is the first of this `fit`, and whether the epoch has begun."""
        self._offset: int | None = None
        """What is added to Keras' number of an epoch; None before the first epoch of a `fit`."""
        self._number = 0
        """The running epoch, from 1."""
        self._watched = 0
        """Number of epochs that were finished."""
        self._steps = self._planned = 0
        """Number of steps of the last epoch, and what is known about the running one."""
        self._snapshots: frozenset[int] = frozenset()
        """The numbers of steps after which the weights are copied."""
        self._rate = np.nan
        """Learning rate of the last step."""
        self._replaced = ReplacedWeights()
        self._lines: list[str] = []
        """Lines to print between two epochs."""

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """One for each spike so far."""
        return self._diagnostician.diagnoses if self._diagnostician else []

    @property
    def summary(self) -> str:
        """What happened to the validation loss, in plain words."""
        if self._diagnostician is None or not self._watched:
            return "No epoch was finished."
        return " ".join(describe_curve.explained(self.findings, self._watched, self._diagnostician.course))

    @property
    def findings(self) -> Findings:
        """Everything found so far."""
        return self._diagnostician.findings if self._diagnostician else Findings()

    def as_dict(self) -> dict[str, Any]:
        """The results as JSON types."""
        spikes = [{**d.as_dict(), "name": describe.name(d), "headline": describe.headline(d.spike)} for d in self.diagnoses]
        return {**self.findings.as_dict(), "summary": self.summary, "spikes": spikes, "shares": shares(self.findings.parts)}

    def begin(self, model: keras.Model) -> None:
        """Begins a `fit`. Raises UserError if the model, the data or their names do not fit."""
        check(model)
        if model.train_function is None:
            raise UserError(f"SpikeDiagnosis watches model.fit alone. {ONLY_FIT}")
        take_off(model)
        self._connect(model)
        found = self._losses.evaluate(self._examples)
        if self._model is None:
            self._examples.check_order(found.order)
        if self._last is not None and len(found.losses) != len(self._last):
            raise UserError(
                f"This SpikeDiagnosis has watched {len(self._last)} validation examples, and validation_data has "
                f"{len(found.losses)}. Fix: pass the same examples, or create a new SpikeDiagnosis."
            )
        if self._model not in (None, model) and self._last is not None and not same(found.losses, self._last):
            raise UserError("This SpikeDiagnosis watches another model. Fix: create a new SpikeDiagnosis for this model.")
        for name, values in self._names.items():
            if len(values) != len(found.losses):
                raise UserError(
                    f"{name} has {len(values)} entries for {len(found.losses)} validation examples. Fix: pass one for each."
                )
        self._model, self._classes, self._order = model, found.classes, found.order
        self._cross_entropy = found.cross_entropy
        self._offset, self._first = None, True

    def begin_epoch(self, epoch: int, steps: int | None) -> None:
        """Forgets what an interrupted epoch left behind, and prints what is due. `epoch`: Keras' number, from 0; `steps`: those of
        an epoch, None if unknown."""
        self._print()
        seen = self._diagnostician.detector.epoch if self._diagnostician else 0
        if self._offset is None:  # epochs go on where this callback has seen more of them than this fit counts
            self._offset = max(seen - epoch, 0)
        self._number = epoch + 1 + self._offset
        self._batches = EpochBatches(self._memory - self._memory // SAMPLED)
        self._ready = False
        self._planned = steps or self._steps
        if self._recorder:
            self._recorder.clear()
        if self._diagnostician:
            self._diagnostician.discard_epoch()
        if not self._watched:
            self._sample = []

    def expect_step(self) -> None:
        """Puts the tap on for the next step."""
        self._tap = tap_on(cast(keras.Model, self._model), self._tap)
        self._tap.put_on(self)

    def step(self, data: Any, train: Callable[[], dict[str, Any]], iterator: Any) -> dict[str, Any]:
        """Runs and records one training step on the batch `data`."""
        x, y, weights = labelled(data, "training data")
        if not self._ready:
            self._prepare(len(x))
            self._snapshots = cast(Diagnostician, self._diagnostician).snapshots(self._planned)
            weakref.finalize(iterator, self._batches.clear)  # an interrupted fit must not hold this memory
        self._keep(x, y, weights)
        recorder, diagnostician = cast(StepRecorder, self._recorder), cast(Diagnostician, self._diagnostician)
        if not recorder.count:
            self._trace = []
            self._trace_statistics()
        logs = recorder.record(train)
        self._trace_statistics()
        if (done := recorder.count) in self._snapshots:
            diagnostician.snapshot(done)
        return logs

    def interrupted(self) -> None:
        """Frees the memory of an epoch that will not be finished."""
        self._batches.clear()

    def close_epoch(self, logs: dict[str, Any], *, final: bool = False) -> None:
        """Evaluates and diagnoses the epoch, and adds `val_loss` and the other metrics to `logs` unless `fit` did. Nothing that
        fails here ends the training. `final`: `fit` ends with it."""
        steps = self._recorder.steps() if self._recorder else np.zeros(0)
        if self._diagnostician is None or not len(steps):
            self._lines.append(f"warning: SpikeDiagnosis saw no training step in epoch {self._number}. {ONLY_FIT}")
            return
        self._steps = len(steps)
        try:
            found = self._losses.evaluate(self._examples, metrics="val_loss" not in logs)
            sample, mean = self._sample_losses(), float(found.losses.mean())
            recorder = cast(StepRecorder, self._recorder)
            losses, averages = (logs.get("val_loss", mean), mean), bool(recorder.optimizer.use_ema)
            if warning := self._replaced.warning(self._number, recorder.weights, losses, averages=averages):
                self._lines.append(f"warning: {warning}")
            for name, value in {"loss": mean, **found.logs}.items():
                logs.setdefault(f"val_{name}", value)
            self._diagnose(self._diagnostician, found, sample, steps, final=final)
        except Exception as error:
            log.exception("The diagnosis of epoch %d failed.", self._number)
            self._lines.append(
                f"warning: the diagnosis of epoch {self._number} failed, and training goes on: {error!r}. "
                "Fix: report it with the traceback, which Python's logging has."
            )
        self._batches.clear()
        if self._recorder:
            self._recorder.clear()

    def end(self) -> None:
        """Ends a `fit`: prints the summary."""
        self._lines.append(self.summary)
        self._print()
        self._batches.clear()

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state after the last epoch as JSON types and arrays. Raises UserError before the first epoch was trained."""
        if self._diagnostician is None or self._setup is None:
            raise UserError("There is nothing to save: no epoch was finished. Fix: save after an epoch.")
        facts, arrays = self._diagnostician.state()
        named = {f"diagnostician/{name}": values for name, values in arrays.items()}
        named |= {} if self._last is None else {"last": self._last}
        for i, (x, y, weights) in enumerate(self._sample):
            named |= {f"sample/{i}/x": x, f"sample/{i}/y": y, **({} if weights is None else {f"sample/{i}/weights": weights})}
        for epoch, batches in self.bad_batches.items():
            for number, (x, y) in batches.items():
                named |= {f"bad/{epoch}/{number}/x": x, f"bad/{epoch}/{number}/y": y}
        mine = {
            "diagnostician": facts,
            "setup": asdict(self._setup),
            "watched": self._watched,
            "steps": self._steps,
            "rate": self._rate if np.isfinite(self._rate) else None,
        }
        return mine, named

    def restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Restores a `state`. The next `fit` continues from there."""
        self._setup, self._last = Setup(**facts["setup"]), arrays.get("last")
        self._watched, self._steps = facts["watched"], facts["steps"]
        self._rate = np.nan if facts["rate"] is None else facts["rate"]
        self._sample, self.bad_batches = [], {}
        while f"{(name := f'sample/{len(self._sample)}')}/x" in arrays:
            self._sample.append((arrays[f"{name}/x"], arrays[f"{name}/y"], arrays.get(f"{name}/weights")))
        for name in (name.removesuffix("/x") for name in arrays if name.startswith("bad/") and name.endswith("/x")):
            _, epoch, number = name.split("/")
            self.bad_batches.setdefault(int(epoch), {})[int(number)] = (arrays[f"{name}/x"], arrays[f"{name}/y"])
        self._diagnostician = self._new_diagnostician(None, self._setup.batch_size)
        prefix = "diagnostician/"
        known = {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
        self._diagnostician.restore(facts["diagnostician"], known, at_epoch_end=False)
        self._model = self._function = None

    def _connect(self, model: keras.Model) -> None:
        """Looks at the model anew if it was compiled again."""
        if model.train_function is not self._function:
            self._losses = Losses(model)
            self._recorder = None
            self._function = model.train_function

    def _prepare(self, batch_size: int) -> None:
        """Before the first step of an epoch: looks for what has changed since the last one."""
        model = cast(keras.Model, self._model)
        self._connect(model)
        compiled, first = self._recorder is None, self._first
        self._ready, self._first, self._events = True, False, []
        if self._recorder is None:  # the model has been built, at the latest by its first evaluation
            self._network = CompiledNetwork(
                model,
                self._losses,
                self._examples,
                lambda number: self._batches(number),
                self._sample_losses,
                lambda number: self._batches.held(number),
                self._sampled,
            )
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            self._recorder = StepRecorder(model)
        missed = self._number - 1 - (self._diagnostician.detector.epoch if self._diagnostician else 0)
        if not compiled and not missed and self._setup and not (first and batch_size != self._setup.batch_size):
            return
        now, losses = setup_of(model, batch_size), None
        if self._last is not None or missed:
            losses = self._losses.evaluate(self._examples).losses
        unchanged = losses is not None and self._last is not None and same(losses, self._last)
        if self._setup is not None:  # losses that are the same for every example come from the same loss function
            self._events = [e for e in now.events(self._setup, self._number) if not (unchanged and e.kind == "loss")]
        elif missed and not now.iterations:
            self._events = [Event("optimizer_reset", self._number, detail="the optimizer has not made a step yet")]
        state = self._diagnostician.state() if self._diagnostician else None
        self._diagnostician = self._new_diagnostician(self._network, batch_size)
        facts, arrays = state or self._diagnostician.state()
        begins = missed > 0 and skip(facts, arrays, missed, losses)
        self._diagnostician.restore(facts, arrays, at_epoch_end=unchanged or begins)
        self._setup = now

    def _diagnose(
        self, diagnostician: Diagnostician, found: Evaluation, sample: np.ndarray, steps: np.ndarray, *, final: bool
    ) -> None:
        """Passes the epoch to the Diagnostician."""
        recorder = cast(StepRecorder, self._recorder)
        before, self._rate = self._rate, float(steps["learning_rate"][-1])
        if found.order != self._order:
            self._lines.append(
                f"warning: validation_data came in another order in epoch {self._number}, which was not diagnosed. "
                "Fix: add .cache() to the dataset."
            )
            return
        scheduled, asked = recorder.scheduled, self._number in self.epochs
        self._network.also_restore(self._tap.variables if self._tap else [])
        news = diagnostician.close_epoch(
            found.losses,
            sample,
            steps,
            learning_rate=np.nan if scheduled else self._rate,
            events=[*self._events, *([] if scheduled else raises(before, steps["learning_rate"], self._number))],
            predict=lambda numbers: predicted(self._classes, self._losses.predictions(self._examples, list(numbers))),
            trace=None if self._trace is None else self._network.select(np.array([np.asarray(row) for row in self._trace])),
            asked=asked,
            final=final,
        )
        self._watched, self._last = self._watched + 1, found.losses
        if self._setup:
            self._setup = replace(self._setup, iterations=int(recorder.optimizer.iterations))
        if asked:
            self._lines.append(describe.requested(news.diagnosis, self._number))
        elif news.diagnosis:
            self._lines.append(describe.block(news.diagnosis))
        if news.diagnosis:
            self._keep_bad_batches(news.diagnosis)
        if asked and news.diagnosis:
            self.requested[self._number] = news.diagnosis
            if news.diagnosis.spike.rise <= news.diagnosis.spike.threshold:
                diagnostician.diagnoses.pop()  # no spike, but asked for
        self._lines += [describe.headline(resolved.spike) for resolved in news.resolved]
        self._lines += [describe_curve.block(one) for one in news.standing]

    def _sample_losses(self, most: float = np.inf) -> np.ndarray:
        """Losses [m] of the sample of training examples, or of its first batches with about `most` examples."""
        found = [self._losses.as_validated(x, y, w, self._examples) for x, y, w in self._first_batches(most)]
        return np.concatenate(found) if found else np.zeros(0)

    def _sampled(self, most: int) -> np.ndarray:
        """Inputs [m, ...] of the examples of `_sample_losses`."""
        found = [np.asarray(x) for x, _, _ in self._first_batches(most)]
        return np.concatenate(found) if found else np.zeros(0)

    def _first_batches(self, most: float) -> Iterator[tuple[Any, Any, Any]]:
        """Those of the sample, with about `most` examples together."""
        count = 0
        for batch in self._sample:
            if count < most:
                yield batch
                count += len(batch[1])

    def _trace_statistics(self) -> None:
        """Keeps a copy of BatchNormalization's statistics, as long as that takes little memory."""
        values = None if self._trace is None else self._network.norm_values()
        if values is None or self._trace is None or 4 * len(values) * (len(self._trace) + 1) > TRACE_BYTES:
            self._trace = None
        else:
            self._trace.append(values)

    def _new_diagnostician(self, network: CompiledNetwork | None, batch_size: int) -> Diagnostician:
        """`network`: None if nothing will be asked of it."""
        return Diagnostician(
            cast(Network, network),
            batch_size=batch_size,
            labels=self._classes,
            cross_entropy=self._cross_entropy,
            momentum=network.momentum if network else np.nan,
            dropout=network.dropout if network else np.nan,
            sensitivity=self._sensitivity,
            budget=self._budget,
            keys=self._names.get("keys"),
            groups=self._names.get("groups"),
        )

    def _keep(self, x: Any, y: Any, weights: Any) -> None:
        """Keeps a batch for the probes, and the first ones as the sample."""
        steps = cast(StepRecorder, self._recorder).count
        few = len(self._sample) == steps and sum(len(labels) for _, labels, _ in self._sample) < SAMPLE
        taken = sum(size_of(*batch) for batch in self._sample) + size_of(x, y, weights)
        if not self._watched and few and (taken <= self._memory // SAMPLED or not self._sample):
            self._sample.append((x, y, weights))
        self._batches.add(x, y, weights)

    def _keep_bad_batches(self, diagnosis: Diagnosis) -> None:
        if diagnosis.verdict.name == "bad_batch":
            numbers = next(probe.facts["batches"] for probe in diagnosis.probes if probe.name == "bad_batches")
            batches = {number: self._batches(number)[:2] for number in numbers}
            self.bad_batches[diagnosis.spike.epoch] = {number: (np.asarray(x), np.asarray(y)) for number, (x, y) in batches.items()}

    def _print(self) -> None:
        """Prints between two epochs, so as not to break a progress bar."""
        if self._lines:
            sys.stdout.write("\n".join([*self._lines, ""]))
            sys.stdout.flush()
        self._lines = []
