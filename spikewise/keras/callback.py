"""Explains each spike of the validation loss of a plain `model.fit`.

    spikes = SpikeDiagnosis((x_validation, y_validation))
    model.fit(x, y, epochs=100, callbacks=[spikes])
    print(spikes.summary)

docs/callback.md is the manual, docs/diagnosis.md explains the causes. This module is the public interface; fit.py does the work. It
does not import TensorFlow, so that the constructor can refuse another Keras backend first.
"""

import os
from collections.abc import Collection, Hashable, Sequence
from numbers import Real
from typing import Any

import keras
import numpy as np

from spikewise.curve import BUDGET, Parts
from spikewise.errors import UserError
from spikewise.keras.backend import require_tensorflow
from spikewise.records import Diagnosis
from spikewise.standing import Standing


class SpikeDiagnosis(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """A callback for `model.fit`. Epochs have the numbers of Keras' progress bar, `initial_epoch` included. If a later `fit` counts
    from 1 again, the numbers continue. A copy (copy.deepcopy, as tuners make) has the same arguments and has watched nothing."""

    def __init__(
        self,
        validation_data: Any,
        *,
        keys: Sequence[str] | None = None,
        groups: Sequence[Hashable] | None = None,
        sensitivity: float = 1.0,
        budget: float = BUDGET,
        batch_size: int = 32,
        memory: int = 2**31,
        epochs: Collection[int] = (),
    ) -> None:
        """Shapes: n validation examples.

        `validation_data`: arrays (x, y) or (x, y, sample_weight), a batched tf.data.Dataset or a keras.utils.PyDataset, in the same
        order each time.
        `keys`, `groups` [n]: name and source of each example; examples from one source count as one in intervals.
        `sensitivity`: 0.1 to 10; with 2, half the rise is an alarm.
        `budget`: fraction of the training time that measuring what the loss is made of, and probes of smaller rises that turn out
        to be no spikes, may take together, 0 to 1.
        `batch_size`: in which validation arrays are evaluated; datasets have their own. 32, as in `model.evaluate`.
        `memory`: bytes that the batches of the running epoch and the sample of training examples may take.
        `epochs`: numbers of epochs to diagnose whether they raise an alarm or not; see `epochs` and `requested`.

        Raises UserError, here or at the start of training, if Keras does not run on TensorFlow or cannot use the data or the model.
        """
        super().__init__()
        require_tensorflow("SpikeDiagnosis")
        options: dict[str, Any] = {"sensitivity": sensitivity, "budget": budget, "batch_size": batch_size, "memory": memory}
        limits = {"sensitivity": (0.1, 10), "budget": (0, 1), "batch_size": (1, np.inf), "memory": (0, np.inf)}
        for name, (least, most) in limits.items():
            if not isinstance(options[name], Real) or not least <= options[name] <= most:
                bounds = f"of at least {least}" if most == np.inf else f"from {least} to {most}"
                raise UserError(f"{name}={options[name]!r} is not a number {bounds}. Fix: pass one.")
        from spikewise.keras.fit import Watch  # imports TensorFlow

        self._validation_data = validation_data
        self._options = options | {"epochs": tuple(epochs)}
        self._names: dict[str, Any] = {
            name: list(values) for name, values in (("keys", keys), ("groups", groups)) if values is not None
        }
        self._watch = Watch(
            validation_data,
            self._names,
            sensitivity=sensitivity,
            budget=budget,
            batch_size=int(batch_size),
            memory=int(memory),
            epochs=epochs,
        )

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """One for each spike so far."""
        return self._watch.diagnoses

    @property
    def parts(self) -> list[Parts]:
        """What the validation loss is made of, for each epoch in which that was measured."""
        return list(self._watch.findings.parts)

    @property
    def standing(self) -> list[Standing]:
        """Causes without a spike: one part of the loss that stays high."""
        return list(self._watch.findings.standing)

    @property
    def epochs(self) -> set[int]:
        """Numbers of the epochs to diagnose whether they raise an alarm or not. Others may be added while training runs."""
        return self._watch.epochs

    @property
    def requested(self) -> dict[int, Diagnosis]:
        """For those of `epochs` in which the loss rose above the expected one: why."""
        return self._watch.requested

    @property
    def bad_batches(self) -> dict[int, dict[int, tuple[np.ndarray, np.ndarray]]]:
        """For each epoch whose verdict is `bad_batch`: examples and labels of the batches that stood out, by number from 0."""
        return self._watch.bad_batches

    @property
    def summary(self) -> str:
        """What happened to the validation loss, in plain words."""
        return self._watch.summary

    def as_dict(self) -> dict[str, Any]:
        """The results as JSON types: `summary`, `spikes`, `overfitting`, `parts`, `shares` and `standing`, as in report.json
        (docs/report.md)."""
        return self._watch.as_dict()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves to a file what a resumed training needs to continue, but not the model. Raises UserError before the end of the
        first epoch."""
        from spikewise.keras import state

        state.write(path, *self._watch.state())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Restores what `save` saved, before `fit` continues with `initial_epoch=`. Raises UserError if the file is another."""
        from spikewise.keras import state

        self._watch.restore(*state.read(path))

    def __deepcopy__(self, memo: dict[int, Any]) -> "SpikeDiagnosis":
        return type(self)(self._validation_data, **self._names, **self._options)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        self._watch.begin(self.model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        self._watch.begin_epoch(epoch, (self.params or {}).get("steps"))

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        self._watch.expect_step()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets `val_loss` and the other metrics in `logs`, unless `fit` did, so that callbacks after this one can use them."""
        self._watch.close_epoch({} if logs is None else logs, final=epoch + 1 == (self.params or {}).get("epochs"))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        self._watch.end()
