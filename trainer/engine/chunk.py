"""The steps of an epoch: a call a step, or many steps in one call that XLA has compiled.

Both train the same steps (Learner.step) and leave the same records. On a GPU, launching the hundreds of kernels of a step takes
longer than their arithmetic, so there many steps are one call. On a CPU, XLA's kernels are the slower ones. `engine` decides.

Shapes: s steps trained since `begin`, c steps of the longest call, b images of this worker's part of a batch, m moving statistics.
"""

import itertools
import logging
import re
import time
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from trainer.data.loader import READ_AHEAD, Batch, Feed
from trainer.engine import devices
from trainer.engine.step import STEP_RECORD, Learner, Signals, StepStats, records
from trainer.formatting import one_line

log = logging.getLogger(__name__)

SIGNAL_LAG = 4
"""Steps after which the signals of a call a step are read. Reading them earlier would make the worker wait for the GPU."""
MOST_STEPS = 512
"""Most steps of one compiled call."""
MOST_BYTES = 2**25
"""Most bytes of pixels that one compiled call is fed with, if the images are not resident."""
CALL_SECONDS = 1.0
"""A compiled call takes about this long at most: nothing can interrupt it."""
FIRST_STEPS = 32
"""Most steps of a compiled call before it is known how long a step takes."""


class Engine(Protocol):
    """Trains the steps of one epoch after the other."""

    done: int
    """Steps of the current epoch that are trained."""

    def begin(self, epoch: int, start: int) -> None:
        """Begins with step number `start` of an epoch. Keeps the moving statistics from here on."""

    def train(self, end: int, *, stop: bool, save: bool) -> Signals:
        """Trains at least one step, and none beyond step number `end`. `stop` and `save` raise this worker's signals.

        All workers must call it together. Returns how many workers have raised the signals, as far as it is known without waiting.
        """

    def records(self) -> np.ndarray:
        """STEP_RECORD [s]. Waits for the steps."""

    def trace(self) -> np.ndarray | None:
        """The moving statistics before the first and after each step, float32 [s + 1, m]; None if they are not kept or there are
        none. Waits for the steps."""


def engine(learner: Learner, feed: Feed, *, trace_bytes: int) -> Engine:
    """The engine that is faster on this worker's device. It keeps moving statistics that take at most `trace_bytes` an epoch.

    Several workers make a call a step: TensorFlow compiles sums over workers for GPUs only, where they are not tested.
    """
    traced = 4 * learner.moving_size * (feed.steps + 1) <= trace_bytes
    if learner.group.size > 1 and devices.has_gpu() and learner.group.rank == 0:
        log.warning(
            "%d workers make each training step a call of its own. One worker compiles many steps into a call, which is faster for "
            "small networks and batches.",
            learner.group.size,
        )
    if learner.group.size == 1 and devices.has_gpu():
        for attempt in range(2):
            try:
                chunks = Chunks(learner, feed, traced=traced)
                learner.compile_evaluation()
                return chunks
            except Exception as error:  # of any type; one of a user's layer comes again with the first step
                if attempt == 0 and devices.forget_programs(error):
                    continue
                log.warning("XLA does not compile %s. Each training step is a call of its own, which is slower.", _refused(error))
                break
    return Steps(learner, feed, traced=traced)


class Steps:
    """An Engine that makes a call a step."""

    def __init__(self, learner: Learner, feed: Feed, *, traced: bool) -> None:
        """`traced`: whether to keep the moving statistics."""
        self._learner, self._feed = learner, feed
        self._traced = traced and bool(learner.moving)
        self.done = 0

    def begin(self, epoch: int, start: int) -> None:
        self.done = start
        self._batches = self._feed.batches(epoch, start)
        self._stats: list[StepStats] = []
        self._signals: list[Signals] = []
        self._values: list[Any] = [self._learner.moving_values()] if self._traced else []

    def train(self, end: int, *, stop: bool, save: bool) -> Signals:  # noqa: ARG002
        stats, raised = self._learner.train(next(self._batches), stop=stop, save=save)
        self.done += 1
        self._stats.append(stats)
        self._signals.append(raised)
        if self._traced:
            self._values.append(self._learner.moving_values())
        return self._signals[max(len(self._signals) - SIGNAL_LAG, 0)]

    def records(self) -> np.ndarray:
        return records(self._stats)

    def trace(self) -> np.ndarray | None:
        return np.array([np.asarray(row) for row in self._values], np.float32) if self._traced else None


class Chunks:
    """An Engine of one worker that makes many steps a call."""

    def __init__(self, learner: Learner, feed: Feed, *, traced: bool, compiled: bool = True) -> None:
        """Compiles the call. `traced`: whether to keep the moving statistics. `compiled`: False leaves the call to TensorFlow.

        Raises TensorFlow's errors if XLA does not compile the step.
        """
        assert learner.group.size == 1
        self._learner, self._feed = learner, feed
        self._traced = traced and bool(learner.moving)
        self._compiled = compiled
        first = next(feed.arrays(1))
        self._capacity = min(MOST_STEPS, feed.steps)
        if not feed.resident:
            self._capacity = max(min(self._capacity, MOST_BYTES // first.images.nbytes), 1)
        self._ahead = max(READ_AHEAD, self._capacity)
        self._run = tf.function(self._steps, autograph=False, jit_compile=compiled)
        self._most = FIRST_STEPS
        self.done = 0
        self._call([first], 0)

    def begin(self, epoch: int, start: int) -> None:
        self.done = start
        self._batches = self._feed.arrays(epoch, start, ahead=self._ahead)
        self._records: list[np.ndarray] = []
        self._values: list[np.ndarray] = [np.asarray(self._learner.moving_values())[None]] if self._traced else []

    def train(self, end: int, *, stop: bool, save: bool) -> Signals:
        count = min(end - self.done, self._capacity, self._most)
        batches = list(itertools.islice(self._batches, count))
        began = time.perf_counter()
        stats, *values = self._call(batches, count)
        self._records.append(stats)
        self._values += values
        self._most = max(1, int(CALL_SECONDS * count / (time.perf_counter() - began)))
        self.done += count
        return Signals(stop, save)

    def records(self) -> np.ndarray:
        rows = np.concatenate([np.zeros((0, len(StepStats._fields))), *self._records])
        return rows.view(STEP_RECORD)[:, 0]

    def trace(self) -> np.ndarray | None:
        return np.concatenate(self._values) if self._traced else None

    def _call(self, batches: list[Batch], count: int) -> list[np.ndarray]:
        """Trains `count` of the batches. Returns the values of their StepStats, float64 [count, 6], and of the moving
        statistics after each, float32 [count, m], if they are kept."""
        padding = [batches[0]] * (self._capacity - len(batches))  # one shape, hence one compilation
        columns = (np.stack(column) for column in zip(*batches, *padding, strict=True))
        return [rows.numpy()[:count] for rows in self._run(Batch(*map(tf.constant, columns)), tf.constant(count))]

    def _steps(self, batches: Batch, count: tf.Tensor) -> list[tf.Tensor]:
        """`batches`: with c batches along a new first axis. Returns what `_call` does, in c rows."""
        learner = self._learner
        widths = {tf.float64: len(StepStats._fields)} | ({tf.float32: learner.moving_size} if self._traced else {})
        empty = [tf.TensorArray(dtype, self._capacity, element_shape=(width,)) for dtype, width in widths.items()]

        def body(i: tf.Tensor, *arrays: tf.TensorArray) -> tuple[Any, ...]:
            stats, _ = learner.step(Batch(*(tf.gather(column, i) for column in batches)), tf.zeros(2))
            rows = [tf.stack([tf.cast(value, tf.float64) for value in stats])]
            if self._traced:
                rows.append(learner.moving_values())
            return i + 1, *(array.write(i, row) for array, row in zip(arrays, rows, strict=True))

        with learner.under_xla(self._compiled):
            _, *arrays = tf.while_loop(lambda i, *_: i < count, body, (tf.constant(0), *empty))
        return [array.stack() for array in arrays]


def _refused(error: Exception) -> str:
    """The operation that XLA does not compile, or the first line of the error."""
    found = re.search(r"No registered '(\w+)' OpKernel", str(error))
    return f"the operation {found[1]}" if found else one_line(error)[:200]
