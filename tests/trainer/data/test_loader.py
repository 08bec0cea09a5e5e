"""trainer.data.loader and trainer.data.order: the order of images, and each worker's part of it."""

import subprocess
import sys

import numpy as np
import pytest

from trainer.config import Augmentation
from trainer.data.loader import EVALUATION_BATCH, Feed
from trainer.data.order import epoch_generator, epoch_order

IMAGES = 300


class _Images:
    """Row numbers as images: the pixel value shows which row was read."""

    def __init__(self, rows):
        self.shape = (rows, 8, 8, 3)
        self.nbytes = int(np.prod(self.shape))

    def take(self, rows):
        return np.broadcast_to((rows % 251).astype(np.uint8)[:, None, None, None], (len(rows), *self.shape[1:])).copy()


class _Rows:
    def __init__(self, rows=IMAGES):
        self.images = _Images(rows)
        self.labels = (np.arange(rows) % 2).astype(np.int32)


def _feed(rank=0, size=1, *, rows=IMAGES, memory_bytes=10**9, **augmentation):
    options = {"batch_size": 32, "seed": 0, "memory_bytes": memory_bytes, "augmentation": Augmentation(**augmentation)}
    return Feed(_Rows(rows), np.arange(10, 290), **options, rank=rank, size=size)


def _epoch(feed, epoch, start=0):
    return [[np.asarray(part) for part in batch] for batch in feed.batches(epoch, start)]


@pytest.mark.parametrize("size", [2, 4, 8])
def test_global_batches_do_not_depend_on_the_number_of_workers(size):
    """Another number of workers would train on other batches, and the loss curve would differ."""
    whole = _epoch(_feed(shift=2, flip=True), 3)
    parts = [_epoch(_feed(rank, size, shift=2, flip=True), 3) for rank in range(size)]
    for step, batch in enumerate(whole):
        for field, values in enumerate(batch):
            np.testing.assert_array_equal(np.concatenate([part[step][field] for part in parts]), values)


def test_an_epoch_holds_each_training_image_at_most_once():
    """Images would be used twice in an epoch, or validation images would leak into training."""
    rows = np.concatenate([batch[0] for batch in _epoch(_feed(), 1)])
    assert len(rows) == len(set(rows)) == 280 // 32 * 32
    assert rows.min() >= 10
    assert rows.max() < 290


def test_the_order_is_a_function_of_seed_and_epoch():
    """A resumed run could not repeat the order, or every epoch would have the same order."""

    def order(seed, epoch):
        return epoch_order(epoch_generator(seed, epoch), IMAGES, 32)

    np.testing.assert_array_equal(order(0, 1), order(0, 1))
    for seed, epoch in ((0, 2), (1, 1)):
        assert (order(0, 1) != order(seed, epoch)).mean() > 0.9


def test_resuming_inside_an_epoch_continues_where_it_stopped():
    """After a restart inside an epoch, images would be skipped or repeated."""
    whole, rest = _epoch(_feed(), 2), _epoch(_feed(), 2, start=5)
    assert len(rest) == len(whole) - 5
    for a, b in zip(whole[5:], rest, strict=True):
        for field, resumed in zip(a, b, strict=True):
            np.testing.assert_array_equal(field, resumed)


def test_images_from_disk_equal_the_resident_images():
    """A data set larger than memory would be trained on other images than one that fits."""
    resident, mapped = _feed(), _feed(memory_bytes=1)
    assert resident.resident
    assert not mapped.resident
    pixels = resident.load().numpy()
    for a, b in zip(_epoch(resident, 1), _epoch(mapped, 1), strict=True):
        np.testing.assert_array_equal(pixels[a[0]], b[0])
        np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.integration
def test_loading_takes_the_memory_of_the_images_once():
    """A data set that fits into pipeline.memory_bytes would kill the worker for memory while it is read."""
    script = """
import re
from pathlib import Path
import tensorflow as tf
from tests.trainer.data.test_loader import _feed
def peak():  # getrusage would begin with the peak of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
tf.zeros(1)
feed = _feed(rows=1_000_000)
before = peak()
pixels = feed.load()
print((peak() - before) * 1024 / feed.rows.images.nbytes)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) < 1.5


@pytest.mark.parametrize("size", [1, 3])
def test_evaluation_holds_every_image_once(size):
    """The validation loss would cover a part of the validation set only, or count images twice."""
    rows = np.arange(5, 5 + EVALUATION_BATCH + 17)
    feeds = [_feed(rank, size) for rank in range(size)]
    seen = [
        (position, row)
        for feed in feeds
        for positions, taken, _ in feed.evaluation(rows)
        for position, row in zip(positions, taken, strict=True)
    ]
    assert sorted(position for position, _ in seen) == list(range(len(rows)))
    assert all(rows[position] == row for position, row in seen)
