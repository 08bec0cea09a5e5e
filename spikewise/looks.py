"""Whether validation images look like training images: brightness and contrast. Pure.

A preparation that only one of the two sets gets, such as a forgotten scaling, shows here; `matching` undoes what shows, so that its
cost can be measured.

Shapes: v validation images, t training images, n images, C channels; ... stands for what an image has besides channels, such as
rows and columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spikewise.detect import CERTAIN

NOTICED = 0.5
"""Sets that differ by more than so many standard deviations of single images are compared by their losses as well."""
SMALLEST = 0.25
"""A feature's standard deviation counts as at least this fraction of its typical value: images that were standardized one by one
hardly differ from each other."""
PIXELS = 64
"""Rows, and columns, of an image that are looked at."""
CHANNELS = 4
"""An axis of at most this length, the last or the first one of an image, holds the channels."""


@dataclass(frozen=True, slots=True)
class Look:
    """The feature in which the two sets differ most."""

    feature: str
    """brightness or contrast."""
    channel: int | None
    """Counted from 0; None with one channel."""
    training: float
    validation: float
    """Means over the images of each set, in units of the network's inputs."""
    distance: float
    """Their difference in standard deviations of single images; 0 where it may be chance."""


def compare(validation: np.ndarray, training: np.ndarray) -> Look | None:
    """How far the images [v, ...] are from those [t, ...]. None for what is no image: pixels are whole numbers of 8 or 16 bits, or
    real numbers with channels or with rows and columns."""
    if not _are_images(validation) or validation.shape[1:] != training.shape[1:]:
        return None
    known, new = (_thinned(values) for values in (training, validation))
    if min(len(known), len(new)) < 2 or not (np.isfinite(known).all() and np.isfinite(new).all()):
        return None
    found = []
    for name, feature in FEATURES.items():
        a, b = feature(known), feature(new)
        typical = np.sqrt(_contrast(known).mean(0) ** 2 + a.var(0)) if name == "brightness" else a.mean(0)
        spread = np.maximum(np.sqrt((a.var(0) + b.var(0)) / 2), SMALLEST * typical)
        gaps, errors = np.abs(b.mean(0) - a.mean(0)), np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        distances = np.where((gaps > CERTAIN * errors) & (spread > 0), gaps / np.where(spread > 0, spread, 1), 0.0)
        worst = int(np.argmax(distances))
        channel = worst if len(distances) > 1 else None
        found.append(Look(name, channel, float(a[:, worst].mean()), float(b[:, worst].mean()), float(distances[worst])))
    return max(found, key=lambda one: one.distance)


def _are_images(values: np.ndarray) -> bool:
    if values.dtype.kind == "f":  # a table's columns, and the numbers of words, have no brightness
        return values.ndim > 2
    return values.ndim > 2 and values.dtype in (np.uint8, np.uint16)


def matching(validation: np.ndarray, training: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function that changes images [b, ...] such as those of `validation` [v, ...]: it gives each channel the mean and the
    standard deviation that it has in the images of `training` [t, ...], and keeps the type."""
    known, new = (np.moveaxis(_thinned(values), 1, -1) for values in (training, validation))
    axes = tuple(range(new.ndim - 1))
    factor = known.std(axes) / np.maximum(new.std(axes), 1e-12)
    offset = known.mean(axes) - factor * new.mean(axes)

    def change(images: np.ndarray) -> np.ndarray:
        axis = _channel_axis(images)
        shape = [-1 if axis is not None and i == axis % images.ndim else 1 for i in range(images.ndim)]
        changed = images * factor.reshape(shape) + offset.reshape(shape)
        if images.dtype.kind in "iu":
            limits = np.iinfo(images.dtype)
            changed = np.clip(np.round(changed), limits.min, limits.max)
        return np.asarray(changed, images.dtype)

    return change


def _brightness(images: np.ndarray) -> np.ndarray:
    return np.asarray(images.mean(tuple(range(2, images.ndim))))


def _contrast(images: np.ndarray) -> np.ndarray:
    return np.asarray(images.std(tuple(range(2, images.ndim))))


FEATURES = {"brightness": _brightness, "contrast": _contrast}
"""Features [n, C] of images [n, C, ...]."""


def _channel_axis(images: np.ndarray) -> int | None:
    """None with one channel, which then has no axis."""
    if images.ndim > 2 and images.shape[-1] <= CHANNELS:
        return -1
    return 1 if images.ndim == 4 and images.shape[1] <= CHANNELS else None


def _thinned(images: np.ndarray) -> np.ndarray:
    """[n, ...] -> float32 [n, C, ...] with at most PIXELS values along each axis."""
    axis = _channel_axis(images)
    thin = images[:, None] if axis is None else np.moveaxis(images, axis, 1)
    for axis, size in enumerate(thin.shape[2:], 2):
        if size > PIXELS:
            thin = np.take(thin, np.linspace(0, size - 1, PIXELS).astype(int), axis)
    return np.ascontiguousarray(thin, np.float32)
