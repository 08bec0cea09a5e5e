"""Lets callbacks see each batch of `model.fit` on its way to the training step. The step stays Keras' own, as do its numbers."""

from collections.abc import Callable
from typing import Any, Protocol

import keras
import tensorflow as tf


class Watcher(Protocol):
    """What a tap calls."""

    def step(self, data: Any, train: Callable[[], Any], iterator: Any) -> Any:
        """Sees one training step: calls `train` and returns its result. `data`: the batch; `iterator`: where it comes from."""

    def interrupted(self) -> None:
        """The step that was expected did not take place, or failed."""


class BatchTap:
    """Stands in for the training function of a model, for one step at a time: it is put on just before the step and comes off by
    itself. However `fit` ends, the model is an ordinary one afterwards."""

    def __init__(self, model: keras.Model) -> None:
        self.inner: Callable[[Any], Any] = model.train_function
        """Keras' own training function."""
        self._model = model
        self._watchers: list[Watcher] = []
        self._fit: Any = None
        """The History of the running `fit`: each has its own."""
        self._one: Callable[[Any], Any] | None = None
        self._spec: Any = None

    def put_on(self, watcher: Watcher) -> None:
        """Passes the next step through `watcher`."""
        if self._model.train_function is not self:
            self._watchers = []
            self._model.train_function = self
        self._fit = getattr(self._model, "history", None)
        if watcher not in self._watchers:
            self._watchers.append(watcher)

    def __call__(self, iterator: Any) -> Any:
        self._model.train_function = self.inner
        watchers, self._watchers = self._watchers, []
        if self._fit is not getattr(self._model, "history", None) or not hasattr(iterator, "element_spec"):
            for watcher in watchers:  # the step was interrupted before it began; this is another fit, or train_on_batch
                watcher.interrupted()
            return self.inner(iterator)
        try:
            data = next(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            # Keras finds the end of data of unknown length within its step, which counts an iteration and draws seeds before.
            return self.inner(iterator)
        run = self._compiled(iterator)
        train: Callable[[], Any] = lambda: run(data)  # noqa: E731
        for watcher in watchers:
            train = _through(watcher, data, train, iterator)
        try:
            return train()
        except BaseException:
            for watcher in watchers:
                watcher.interrupted()
            raise

    @property
    def variables(self) -> list[Any]:
        """The variables that a step uses, those of global random generators included; empty if the model runs eagerly or before
        the first step."""
        traced = getattr(self._one, "get_concrete_function", None)
        return list(traced().variables) if traced else []

    def _compiled(self, iterator: Any) -> Callable[[Any], Any]:
        if self._one is None or iterator.element_spec != self._spec:  # a later fit may have other data
            self._spec = iterator.element_spec
            one: Callable[[Any], Any] = lambda data: self.inner(iter([data]))  # noqa: E731
            # Compiled for the shapes that the iterator declares, as Keras does, not for those of its first batch: with a known
            # batch size TensorFlow chooses other kernels, and the last bits differ.
            compiled = tf.function(one, input_signature=[self._spec], autograph=False)
            self._one = one if self._model.run_eagerly else compiled
        return self._one


def _through(watcher: Watcher, data: Any, train: Callable[[], Any], iterator: Any) -> Callable[[], Any]:
    return lambda: watcher.step(data, train, iterator)


def tap_on(model: keras.Model, mine: BatchTap | None) -> BatchTap:
    """The tap for the next step: that of another callback of this fit, `mine`, or a new one if the training function is new."""
    current = model.train_function
    if isinstance(current, BatchTap):
        return current
    return mine if mine is not None and mine.inner is current else BatchTap(model)


def take_off(model: keras.Model) -> None:
    """Removes a tap that an interruption left between being put on and its step."""
    if isinstance(model.train_function, BatchTap):
        model.train_function = model.train_function.inner
