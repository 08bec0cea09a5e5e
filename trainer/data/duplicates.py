"""Finds copies among packed images: equal pixels, and near copies (re-encoded, resized or lightly edited images).

Near copies are found with a perceptual hash of real numbers: the luminance at 16x16 points, minus its mean, at length 1. Two images
are near copies if the correlation of these values is at least SIMILAR. This ignores brightness and contrast. Mirrored and rotated
copies are not found. `python -m benchmarks.near_duplicates` measures what is.

Shapes: N images, n of one shard or one block, M pairs, F numbers of a fingerprint.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

SIMILAR = 0.95
"""Least correlation of near copies. `benchmarks.near_duplicates` says what other values would find."""
POINTS = 16
"""Points of a fingerprint in each direction (fewer for smaller images)."""
FLAT = 2.0
"""Images whose luminance has a smaller standard deviation (of 255) are not compared: what is left is noise."""
BLOCK, BLOCK_BYTES = 2048, 16_000_000
"""Images that are compared at once, and bytes of pixels whose fingerprints are computed at once."""
LOST = 0.1
"""Fraction of the fingerprints' energy outside the directions that are compared first."""
MAX_PAIRS = 1_000_000
"""The search ends after this many pairs, which bounds its memory: 16 bytes each."""
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


class Copies(NamedTuple):
    """The copies among N images."""

    pixels: np.ndarray
    """int [N]: equal numbers for equal pixels."""
    near: np.ndarray
    """int [M, 2]: row numbers of near copies with different pixels, one row for each distinct picture."""
    complete: bool = True
    """Whether all near copies were looked for; False after MAX_PAIRS."""


def find_copies(shards: Iterable[np.ndarray]) -> Copies:
    """Finds the copies among all images of `shards`, each uint8 [n, H, W, 3]. Takes time in proportion to N² for large N."""
    hashes: list[bytes] = []
    prints = []
    for shard in shards:
        step = max(1, BLOCK_BYTES // shard[0].size)
        for start in range(0, len(shard), step):
            block = np.ascontiguousarray(shard[start : start + step])
            hashes += [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in block]
            prints.append(fingerprints(block))
    numbers: dict[bytes, int] = {}
    pixels = np.array([numbers.setdefault(each, len(numbers)) for each in hashes], int)
    _, first = np.unique(pixels, return_index=True)
    pairs, complete = similar(np.concatenate(prints)[first])
    return Copies(pixels, first[pairs], complete)


def fingerprints(images: np.ndarray) -> np.ndarray:
    """uint8 [n, H, W, 3] -> float32 [n, F] of length 1, or 0 for a flat image."""
    count, height, width, colors = images.shape
    rows, columns = _averages(height), _averages(width)
    points = rows @ images.reshape(count, height, width * colors).astype(np.float32)
    points = (points.reshape(count, -1, width, colors) @ LUMINANCE) @ columns.T
    points = points.reshape(count, -1)
    points -= points.mean(1, keepdims=True)
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    flat = lengths < FLAT * np.sqrt(points.shape[1])
    return points * np.where(flat, 0, 1 / np.maximum(lengths, 1e-9)).astype(np.float32)


def _averages(size: int) -> np.ndarray:
    """float32 [points, size]: the matrix that averages `size` values into at most POINTS equal intervals."""
    points = min(POINTS, size)
    edges = np.linspace(0, size, points + 1)[:, None]
    covered = np.clip(edges - np.arange(size), 0, 1)  # of each value, the fraction before each edge
    return (np.diff(-covered[::-1], axis=0)[::-1] * points / size).astype(np.float32)


def similar(prints: np.ndarray) -> tuple[np.ndarray, bool]:
    """Fingerprints float32 [N, F] -> the near copies, int [M, 2] with the smaller number first, and whether these are all."""
    # Most of a fingerprint lies in few directions. The rest is replaced by its length: the product of such short vectors is at
    # least the correlation, so no near copy is missed, and the few candidates are compared exactly. Along the first direction near
    # copies lie within `reach` of each other, so sorted along it, many blocks need not be compared at all.
    sample = prints[:: max(1, len(prints) // 10_000)]
    energy, directions = np.linalg.eigh(sample.T @ sample)
    lost = int(np.sum(np.cumsum(energy[:-1]) < LOST * energy.sum()))  # in ascending order of energy
    parts = prints @ directions[:, lost:][:, ::-1]
    order = np.argsort(parts[:, 0], kind="stable")
    prints, parts = prints[order], parts[order]
    rest = np.sqrt(np.clip((prints**2).sum(1) - (parts**2).sum(1), 0, None))
    short, along, reach = np.column_stack([parts, rest]), parts[:, 0], np.sqrt(2 - 2 * SIMILAR)
    pairs, found = [np.empty((0, 2), int)], 0
    for start in range(0, len(prints), BLOCK):
        block = short[start : start + BLOCK]
        end = int(np.searchsorted(along, along[start + len(block) - 1] + reach, side="right"))
        for other in range(start, end, BLOCK):
            near = np.argwhere(block @ short[other : min(other + BLOCK, end)].T >= SIMILAR - 1e-4) + np.array([start, other])
            near = near[near[:, 0] < near[:, 1]]
            near = np.sort(order[near[(prints[near[:, 0]] * prints[near[:, 1]]).sum(1) >= SIMILAR]], axis=1)
            pairs.append(near)
            found += len(near)
            if found > MAX_PAIRS:
                return np.concatenate(pairs)[:MAX_PAIRS], False
    result = np.concatenate(pairs)
    return result[np.lexsort(result.T[::-1])], True


def united(count: int, links: Iterable[np.ndarray]) -> np.ndarray:
    """The sets that `links`, each int [M, 2], make of `count` rows: int [count], the smallest row of each row's set."""
    ends = np.concatenate([np.empty((0, 2), int), *links])
    smallest = np.arange(count)
    while True:
        known = smallest.copy()
        np.minimum.at(smallest, ends[:, 0], known[ends[:, 1]])
        np.minimum.at(smallest, ends[:, 1], known[ends[:, 0]])
        smallest = smallest[smallest]
        if (smallest == known).all():
            return smallest


def chained(numbers: np.ndarray) -> np.ndarray:
    """Links between the rows with equal numbers, int [N] -> [M, 2]: each row is linked with the next one like it."""
    order = np.argsort(numbers, kind="stable")
    same = numbers[order][1:] == numbers[order][:-1]
    return np.stack([order[:-1][same], order[1:][same]], axis=1)
