"""The benchmark's images: 32x32, RGB, generated or cut from images that ship with installed packages.

The same seed gives the same images. The report uses `photographs` (the demo's, authentic or forged) and `letters`; thresholds
were tuned on the other three sets.

Shapes: N images, H W C = 32 32 3. Each function returns uint8 [N, H, W, C] and int32 labels [N].
"""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 32


def photographs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The demo's images, two classes. Hard to learn."""
    from jobs.demo.forgeries import make_pair

    with ThreadPoolExecutor(2) as pool:
        pairs = list(pool.map(lambda index: make_pair(seed, index, 64), range(count // 2)))
    named = [(name, data) for pair in pairs for name, data in pair.items()]
    images = [
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for _, data in named
    ]
    return np.stack(images), np.array([name.startswith("fake") for name, _ in named], np.int32)


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits, ten classes, with random contrast and noise."""
    from sklearn.datasets import load_digits

    r = np.random.default_rng(seed)
    known = load_digits()
    chosen = r.permutation(len(known.target))[:count]
    small = [
        Image.fromarray((known.images[i] * 15).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for i in chosen
    ]
    images = np.stack([np.asarray(image, float) for image in small]) * r.uniform(0.4, 1, (count, 1, 1)) + r.uniform(
        0, 60, (count, 1, 1)
    )
    return _noisy(images[..., None], 60, r), known.target[chosen].astype(np.int32)


def letters(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight printed letters with random rotation, size, position and colors, light on dark or dark on light, with noise."""
    r = np.random.default_rng(seed)
    labels = r.integers(0, 8, count)
    images = []
    for label in labels:
        ink, paper = r.uniform(0, 90, 3), r.uniform(130, 255, 3)
        if r.random() < 0.5:
            ink, paper = paper, ink
        mask = Image.new("L", (SIZE, SIZE))
        place = tuple(r.uniform(13, 19, 2))
        ImageDraw.Draw(mask).text(place, "ABEGKRSX"[label], 255, ImageFont.load_default(r.uniform(16, 26)), anchor="mm")
        cover = np.asarray(mask.rotate(r.uniform(-25, 25), Image.Resampling.BILINEAR), float)[..., None] / 255
        images.append(paper + cover * (ink - paper))
    return _noisy(np.stack(images), 45, r), labels.astype(np.int32)


def textures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches of three photographed surfaces (brick, grass, gravel) with random brightness and contrast."""
    from skimage import data

    r = np.random.default_rng(seed)
    surfaces = [np.asarray(surface(), float) for surface in (data.brick, data.grass, data.gravel)]
    labels = r.integers(0, len(surfaces), count)
    patches = []
    for label in labels:
        y, x = (int(r.integers(0, side - SIZE)) for side in surfaces[label].shape)
        patch = surfaces[label][y : y + SIZE, x : x + SIZE]
        patches.append((patch - patch.mean()) / (patch.std() + 8) * r.uniform(15, 40) + r.uniform(60, 190))
    return _noisy(np.stack(patches)[..., None], 12, r), labels.astype(np.int32)


def shapes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Faint discs, squares, crosses and rings on a cloudy background. One label in twenty is wrong."""
    r = np.random.default_rng(seed)
    labels = r.integers(0, 4, count)
    y, x = np.mgrid[:SIZE, :SIZE]
    images = []
    for label in labels:
        clouds = Image.fromarray(r.uniform(0, 255, (6, 6)).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        radius, cx, cy = r.uniform(5, 9), r.uniform(10, 22), r.uniform(10, 22)
        dx, dy = np.abs(x - cx), np.abs(y - cy)
        distance = np.hypot(dx, dy)
        inside = [distance < radius, np.maximum(dx, dy) < radius * 0.88, np.minimum(dx, dy) < 2.5, np.abs(distance - radius) < 2.2][
            label
        ]
        inside = inside & (np.maximum(dx, dy) < radius + 3)
        images.append(np.asarray(clouds, float)[..., None] * 0.5 + inside[..., None] * r.uniform(60, 130, 3))
    wrong = r.random(count) < 0.05
    return _noisy(np.stack(images), 15, r), np.where(wrong, r.integers(0, 4, count), labels).astype(np.int32)


def _noisy(images: np.ndarray, deviation: float, r: np.random.Generator) -> np.ndarray:
    return np.clip(images + r.normal(0, deviation, (len(images), SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


DATA: dict[str, Callable[[int, int], tuple[np.ndarray, np.ndarray]]] = {
    "photographs": photographs,
    "letters": letters,
    "digits": digits,
    "textures": textures,
    "shapes": shapes,
}
