"""The benchmark's images: 32x32, RGB, made so that the validation loss jumps by itself. The same seed gives the same images.

Most units of a network are on in most images. Here some are needed for a few images only, so they are off in most batches; or the
validation images come from a few places that share a look. Nothing changes during a run.

Shapes: N images, H W C = 32 32 3. Each function returns uint8 [N, H, W, C], int32 labels [N], and where each image comes from [N].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.spike_causes.data import SIZE
from benchmarks.spike_causes.data import photographs as forgeries


class Images(NamedTuple):
    """A data set."""

    pixels: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    """Images of the same group are split and drawn together; "" for an image on its own."""


def photographs(count: int, seed: int) -> Images:
    """The demo's photographs, authentic or forged, split image by image. Hard to learn."""
    pixels, labels = forgeries(count, seed)
    return Images(pixels, labels, np.full(len(labels), ""))


def rare_letters(count: int, seed: int) -> Images:
    """Eight printed letters. The three rarest classes are in 2 to 4 % of the images, and one image in 60 glows: it is several times
    as bright as the others."""
    r = np.random.default_rng([seed, 1])
    frequencies = 1 / np.arange(1, 9) ** 1.6
    labels = r.choice(8, count, p=frequencies / frequencies.sum()).astype(np.int32)
    images = []
    for label in labels:
        ink, paper = r.uniform(40, 80, 3), r.uniform(0, 30, 3)
        if r.random() < 1 / 60:
            ink, paper = np.array([255, 255, 255]), r.uniform(150, 255, 3) * (0, 1, 1)
        mask = Image.new("L", (SIZE, SIZE))
        font = ImageFont.load_default(r.uniform(16, 26))
        ImageDraw.Draw(mask).text(tuple(r.uniform(13, 19, 2)), "ABEGKRSX"[label], 255, font, anchor="mm")
        cover = np.asarray(mask.rotate(r.uniform(-25, 25), Image.Resampling.BILINEAR), float)[..., None] / 255
        images.append(paper + cover * (ink - paper))
    return Images(_noisy(np.stack(images), 12, r), labels, np.full(count, ""))


def sparse_marks(count: int, seed: int) -> Images:
    """Dark images with one to three small marks of the class's kind at random places; most pixels are 0, and so are most features.
    One image in 30 has marks of another color that no other image has."""
    r = np.random.default_rng([seed, 2])
    labels = r.integers(0, 5, count).astype(np.int32)
    kinds = [np.eye(5), np.eye(5)[::-1], np.ones((5, 1)), np.ones((1, 5)), np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]])]
    images = np.zeros((count, SIZE, SIZE, 3))
    for image, label in zip(images, labels, strict=True):
        color = r.uniform(80, 200, 3) * ((0, 0, 1.3) if r.random() < 1 / 30 else (1, 0.8, 0))
        for _ in range(r.integers(1, 4)):
            mark = kinds[label]
            y, x = (int(r.integers(0, SIZE - side)) for side in mark.shape)
            image[y : y + mark.shape[0], x : x + mark.shape[1]] += mark[..., None] * color
        for y, x in r.integers(0, SIZE, (12, 2)):
            image[y, x] += r.uniform(0, 160, 3) * (1, 1, 0)
    return Images(np.clip(images, 0, 255).astype(np.uint8), labels, np.full(count, ""))


def studios(count: int, seed: int) -> Images:
    """Faint discs, squares, crosses and rings. Each group of 40 images comes from one studio, with its own light, background and
    noise."""
    from benchmarks.spike_causes.data import shapes

    r = np.random.default_rng([seed, 3])
    pixels, labels = shapes(count, seed)
    numbers = np.arange(count) // 40
    found = np.empty(pixels.shape)
    for number in np.unique(numbers):
        chosen = numbers == number
        light, tint, noise = r.uniform(0.4, 1.3), r.uniform(0.4, 1, 3), r.uniform(0, 25)
        slope = np.linspace(-1, 1, SIZE)[:, None] * r.uniform(-40, 40) + np.linspace(-1, 1, SIZE)[None] * r.uniform(-40, 40)
        images = pixels[chosen] * light * tint + slope[..., None]
        found[chosen] = images + r.normal(0, noise, images.shape)
    return Images(np.clip(found, 0, 255).astype(np.uint8), labels, np.array([f"studio {number}" for number in numbers]))


def _noisy(images: np.ndarray, deviation: float, r: np.random.Generator) -> np.ndarray:
    return np.clip(images + r.normal(0, deviation, images.shape), 0, 255).astype(np.uint8)


DATA: dict[str, Callable[[int, int], Images]] = {
    "photographs": photographs,
    "rare letters": rare_letters,
    "sparse marks": sparse_marks,
    "studios": studios,
}
