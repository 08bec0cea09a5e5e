"""The batches of one worker: which images, in which order, from memory or from the local disk.

The order of an epoch is a function of (seed, epoch) alone, and each worker takes a contiguous part of every global batch. The
global batches are therefore the same for any number of workers. Each epoch drops its last incomplete batch, a different set of
images each time.

Shapes: N packed images, n training images, B images of a global batch, b of one worker's part, H W C one image.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from trainer import config
from trainer.data.augmentation import draw
from trainer.data.order import epoch_generator, epoch_order
from trainer.data.shards import PackedRows

EVALUATION_BATCH = 128
"""Images of one evaluation batch of a worker, if they are not compiled."""
READ_AHEAD = 2
"""Batches read from disk in advance."""
COPY_BYTES = 2**25
"""Most bytes of pixels that are read at once into memory."""
ALIGNMENT = 64
"""Bytes at whose multiples TensorFlow expects a tensor to begin."""


class Batch(NamedTuple):
    """This worker's part of a global batch."""

    images: tf.Tensor
    """Pixels uint8 [b, H, W, C], or row numbers int64 [b] if the images are resident."""
    labels: tf.Tensor
    """int32 [b]."""
    changes: tf.Tensor
    """int32 [b, n]: the random numbers that `augment` changes the images by; the columns are augmentation.COLUMNS."""


class Feed:
    """One worker's view of the packed images."""

    def __init__(
        self,
        rows: PackedRows,
        training: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        memory_bytes: int,
        augmentation: config.Augmentation,
        rank: int,
        size: int,
    ) -> None:
        """`training`: row numbers [n] of the training images. `batch_size`: B. `memory_bytes`: largest data set that is kept in
        memory. `rank`: number of this worker, of `size` workers."""
        self.rows = rows
        self.training = training
        self.rank, self.size = rank, size
        self.steps = len(training) // batch_size
        """Steps of an epoch."""
        self.waited = 0.0
        """Seconds that the consumer of `batches` has waited, since it was last set to 0."""
        self.resident = rows.images.nbytes <= memory_bytes
        self._batch_size, self._seed = batch_size, seed
        self._augmentation = augmentation

    def load(self) -> tf.Tensor:
        """All packed images, uint8 [N, H, W, C], on the GPU if there is one. Only for `resident` data."""
        images, count = self.rows.images, len(self.rows.labels)
        memory = np.empty(images.nbytes + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        pixels = memory[start : start + images.nbytes].reshape(images.shape)
        step = max(COPY_BYTES * count // images.nbytes, 1)
        for begin in range(0, count, step):
            pixels[begin : begin + step] = images.take(np.arange(begin, min(begin + step, count)))
        tensor = tf.experimental.dlpack.from_dlpack(pixels.__dlpack__())  # shares the memory, which tf.constant would copy
        if tf.config.list_logical_devices("GPU"):
            with tf.device("GPU:0"):
                return tf.identity(tensor)
        return tensor

    def labels(self, epoch: int) -> np.ndarray:
        """Class numbers int [s, B] of the images in the epoch's global batches, those of all workers."""
        order = epoch_order(epoch_generator(self._seed, epoch), len(self.training), self._batch_size)
        return np.asarray(self.rows.labels[self.training[order]])

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This worker's part of the epoch's global batches, from batch number `start` on."""
        for batch in self.arrays(epoch, start):
            began = time.perf_counter()
            tensors = Batch(*map(tf.constant, batch))
            self.waited += time.perf_counter() - began
            yield tensors

    def arrays(self, epoch: int, start: int = 0, *, ahead: int = READ_AHEAD) -> Iterator[Batch]:
        """The same as NumPy arrays. `ahead`: batches read from disk in advance."""
        generator = epoch_generator(self._seed, epoch)
        order = epoch_order(generator, len(self.training), self._batch_size)
        changes = draw(generator, order.shape, self._augmentation)
        part = self._batch_size // self.size
        mine = slice(self.rank * part, (self.rank + 1) * part)
        indices, changes = self.training[order[start:, mine]], changes[start:, mine]
        images = indices if self.resident else self._read_ahead(indices, ahead)
        began = time.perf_counter()
        for batch in zip(images, self.rows.labels[indices], changes, strict=True):
            self.waited += time.perf_counter() - began
            yield Batch(*batch)
            began = time.perf_counter()

    def _read_ahead(self, indices: np.ndarray, ahead: int) -> Iterator[np.ndarray]:
        """Row numbers [s, b] -> pixels uint8 [b, H, W, C] of each batch, read while earlier batches are trained on."""
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
            reads: deque[Future[np.ndarray]] = deque()
            for rows in indices:
                reads.append(reader.submit(self.rows.images.take, rows))
                if len(reads) > ahead:
                    yield reads.popleft().result()
            while reads:
                yield reads.popleft().result()

    def evaluation(self, rows: np.ndarray, batch: int = EVALUATION_BATCH) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """This worker's part of `rows`, in batches of at most `batch` images: (positions within `rows`, images, labels).

        The images are pixels, or row numbers if the images are resident. All workers together cover every position once.
        """
        mine = np.arange(len(rows))[self.rank :: self.size]
        for begin in range(0, len(mine), batch):
            positions = mine[begin : begin + batch]
            images = rows[positions] if self.resident else self.rows.images.take(rows[positions])
            yield positions, images, self.rows.labels[rows[positions]]
