"""Whether validation images look like training images: brightness, contrast and sharpness. Pure; it needs no learned network.

A preparation that only one of the two sets gets, such as a forgotten scaling, shows here in the first epoch.

Shapes: v validation images, t training images, n images, C channels; ... stands for what an image has besides channels, such as
rows and columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spikewise.detect import CERTAIN

NOTICED = 0.5
"""Sets that differ by more than so many standard deviations of single images are compared by their losses as well ..."""
FAR = 2.0
"""... and by more than so many, they are unlike each other, whatever the loss."""
SMALLEST = 0.25
"""A feature's standard deviation counts as at least this fraction of its typical value: images that were standardized one by one
hardly differ from each other."""
PAIRS = 32
"""Pairs of neighboring rows, and of columns, that are looked at."""
CHANNELS = 4
"""An axis of at most this length, the last or the first one of an image, holds the channels."""


@dataclass(frozen=True, slots=True)
class Look:
    """The feature in which the two sets differ most."""

    feature: str
    """brightness, contrast or sharpness."""
    channel: int | None
    """Counted from 0; None with one channel."""
    training: float
    validation: float
    """Means over the images of each set; of brightness and contrast, in units of the network's inputs."""
    distance: float
    """Their difference in standard deviations of single images; 0 where it may be chance."""


def compare(validation: np.ndarray, training: np.ndarray) -> Look | None:
    """How far the images [v, ...] are from those [t, ...]. None for inputs that are neither images nor real numbers."""
    kinds = "f" if validation.ndim == 2 else "fiu"
    if validation.ndim < 2 or validation.shape[1:] != training.shape[1:] or validation.dtype.kind not in kinds:
        return None
    known, new = (_thinned(values) for values in (training, validation))
    if min(len(known), len(new)) < 2 or not (np.isfinite(known).all() and np.isfinite(new).all()):
        return None
    found = []
    for name, feature in FEATURES.items():
        a, b = feature(known), feature(new)
        typical = np.sqrt(_contrast(known).mean(0) ** 2 + _brightness(known).var(0)) if name == "brightness" else a.mean(0)
        spread = np.maximum(np.sqrt((a.var(0) + b.var(0)) / 2), SMALLEST * typical)
        gaps, errors = np.abs(b.mean(0) - a.mean(0)), np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        distances = np.where((gaps > CERTAIN * errors) & (spread > 0), gaps / np.where(spread > 0, spread, 1), 0.0)
        worst = int(np.argmax(distances))
        channel = worst if len(distances) > 1 else None
        found.append(Look(name, channel, float(a[:, worst].mean()), float(b[:, worst].mean()), float(distances[worst])))
    return max(found, key=lambda one: one.distance)


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


def _sharpness(images: np.ndarray) -> np.ndarray:
    """Mean difference between neighbors as a fraction of the contrast, so that it is another fact than the contrast."""
    axes, contrast = tuple(range(2, images.ndim)), _contrast(images)
    pairs = [np.moveaxis(images, axis, 2) for axis in axes if images.shape[axis] > 1]
    differences = [np.abs(one[:, :, 1::2] - one[:, :, : one.shape[2] // 2 * 2 : 2]).mean(axes) for one in pairs]
    return np.asarray(np.mean(differences, 0) / np.where(contrast > 0, contrast, 1)) if differences else contrast


FEATURES = {"brightness": _brightness, "contrast": _contrast, "sharpness": _sharpness}
"""Features [n, C] of images [n, C, ...]."""


def _channel_axis(images: np.ndarray) -> int | None:
    """None with one channel, which then has no axis."""
    if images.ndim > 2 and images.shape[-1] <= CHANNELS:
        return -1
    return 1 if images.ndim == 4 and images.shape[1] <= CHANNELS else None


def _thinned(images: np.ndarray) -> np.ndarray:
    """[n, ...] -> float32 [n, C, ...] with at most PAIRS pairs of neighbors along each axis."""
    axis = _channel_axis(images)
    thin = images[:, None] if axis is None else np.moveaxis(images, axis, 1)
    for axis, size in enumerate(thin.shape[2:], 2):
        if size > 2 * PAIRS:
            first = np.linspace(0, size - 2, PAIRS).astype(int)
            thin = np.take(thin, np.stack([first, first + 1], 1).ravel(), axis)
    return np.ascontiguousarray(thin, np.float32)
