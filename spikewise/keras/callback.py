"""Explains each spike of the validation loss of a plain `model.fit`.

    spikes = SpikeDiagnosis((x_validation, y_validation))
    model.fit(x, y, epochs=100, callbacks=[spikes])
    print(spikes.summary)

docs/diagnosis.md explains the causes. This module is the public interface; fit.py does the work. It does not import TensorFlow, so
that the constructor can refuse another Keras backend first.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import keras
import numpy as np

from spikewise.keras.backend import require_tensorflow
from spikewise.records import Diagnosis


class SpikeDiagnosis(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """A callback for `model.fit`. Epochs are counted from 1 and continue over several `fit` calls with the same callback."""

    def __init__(
        self,
        validation_data: Any,
        *,
        keys: Sequence[str] | None = None,
        groups: Sequence[Hashable] | None = None,
        sensitivity: float = 1.0,
        memory: int = 2**31,
    ) -> None:
        """Shapes: n validation examples.

        `validation_data`: arrays (x, y), a batched tf.data.Dataset or a keras.utils.PyDataset, in the same order each time.
        `keys`, `groups` [n]: name and source of each example; examples from one source count as one in intervals.
        `sensitivity`: 0.1 to 10; with 2, half the rise is an alarm.
        `memory`: bytes that the batches of the running epoch may take.

        Raises UserError, here or at the start of training, if Keras does not run on TensorFlow or cannot use the data or the model.
        """
        super().__init__()
        require_tensorflow("SpikeDiagnosis")
        from spikewise.keras.fit import Watch  # imports TensorFlow

        names = {name: list(values) for name, values in (("keys", keys), ("groups", groups)) if values is not None}
        self._watch = Watch(validation_data, names, sensitivity=sensitivity, memory=memory)

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """One for each spike so far."""
        return self._watch.diagnoses

    @property
    def bad_batches(self) -> dict[int, dict[int, tuple[np.ndarray, np.ndarray]]]:
        """For each epoch whose verdict is `bad_batch`: examples and labels of the batches that stood out, by number from 0."""
        return self._watch.bad_batches

    @property
    def summary(self) -> str:
        """What happened to the validation loss, in plain words."""
        return self._watch.summary

    def as_dict(self) -> dict[str, Any]:
        """The results as JSON types: `summary`, `spikes` and `overfitting`, as in report.json (docs/report.md)."""
        return self._watch.as_dict()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        self._watch.begin(self.model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        self._watch.begin_epoch()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """Sets `val_loss` in `logs`, unless `fit` did, so that callbacks after this one can use it."""
        loss = self._watch.close_epoch()
        if loss is not None and logs is not None:
            logs.setdefault("val_loss", loss)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        self._watch.end()
