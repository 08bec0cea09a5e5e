"""Measures which near copies trainer.data.duplicates finds, how often it is wrong, and how long it takes. Prints JSON.

    python -m benchmarks.near_duplicates [--images 6000] [--edited 1000] [--size 64] [--seed 1]

Takes a few minutes on two cores. The images are random crops of the demo's 19 photographs. Recall: the fraction of edited copies
that are found, for each edit; `forged` stands for the demo's forgeries, which replace a fifth to a third of the image. Wrong pairs:
pairs called near copies that show different photographs, or parts of one photograph that overlap by less than half (intersection
over union). Crops that overlap more count neither as right nor as wrong. SIMILAR was chosen with --seed 0 and is reported with
--seed 1.

Shapes: M pairs.
"""

import argparse
import io
import json
import time
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

from jobs.demo.forgeries import PHOTOGRAPHS, key, make_pair, photograph
from trainer.data.decode import decode
from trainer.data.duplicates import SIMILAR, find_copies, fingerprints, similar

SIDE = 160
"""Pixels of a crop's side before it is packed."""
THRESHOLDS = (0.90, 0.93, 0.95, 0.97, 0.98, 0.99)


def _jpeg(image: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, fraction: float, random: np.random.Generator) -> Image.Image:
    """Without `fraction` of its height and width, at the old size."""
    left, top = random.uniform(0, fraction * SIDE, 2)
    side = (1 - fraction) * SIDE
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


EDITS: dict[str, Callable[[Image.Image, np.random.Generator], bytes]] = {
    "JPEG quality 90": lambda image, _: _jpeg(image, 90),
    "JPEG quality 70": lambda image, _: _jpeg(image, 70),
    "JPEG quality 50": lambda image, _: _jpeg(image, 50),
    "half the size": lambda image, _: _jpeg(_resized(image, SIDE // 2, SIDE // 2)),
    "twice the size": lambda image, _: _jpeg(_resized(image, 2 * SIDE, 2 * SIDE)),
    "another aspect ratio": lambda image, _: _jpeg(_resized(image, 200, 150)),
    "25 % brighter": lambda image, _: _jpeg(ImageEnhance.Brightness(image).enhance(1.25)),
    "25 % darker": lambda image, _: _jpeg(ImageEnhance.Brightness(image).enhance(0.75)),
    "30 % more contrast": lambda image, _: _jpeg(ImageEnhance.Contrast(image).enhance(1.3)),
    "cropped by 1 %": lambda image, random: _jpeg(_cropped(image, 0.01, random)),
    "cropped by 2 %": lambda image, random: _jpeg(_cropped(image, 0.02, random)),
    "cropped by 5 %": lambda image, random: _jpeg(_cropped(image, 0.05, random)),
    "mirrored": lambda image, _: _jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}


def _crops(count: int, random: np.random.Generator) -> tuple[list[Image.Image], np.ndarray]:
    """Crops, and for each the number of its photograph, left, top and side, [count, 4]."""
    crops, boxes = [], []
    for index in range(count):
        number = index % len(PHOTOGRAPHS)
        whole = photograph(list(PHOTOGRAPHS)[number])
        largest = min(whole.size)
        side = float(np.exp(random.uniform(np.log(min(SIDE, largest)), np.log(min(3 * SIDE, largest)))))
        left, top = random.uniform(0, whole.width - side), random.uniform(0, whole.height - side)
        crops.append(whole.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)))
        boxes.append((number, left, top, side))
    return crops, np.array(boxes)


def _overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Boxes [M, 4] -> intersection over union [M]; 0 for different photographs."""
    ends = np.minimum(one[:, 1:3] + one[:, 3:], other[:, 1:3] + other[:, 3:])
    both = np.prod(np.clip(ends - np.maximum(one[:, 1:3], other[:, 1:3]), 0, None), axis=1) * (one[:, 0] == other[:, 0])
    return both / (one[:, 3] ** 2 + other[:, 3] ** 2 - both)


def measure(images: int, edited: int, size: int, seed: int) -> dict:
    random = np.random.default_rng(seed)

    def packed(files: list[bytes]) -> np.ndarray:
        return np.stack([decode(file, (size, size, 3), 10**8) for file in files])

    crops, boxes = _crops(images, random)
    pixels = packed([_jpeg(crop, 95) for crop in crops])
    prints = fingerprints(pixels)
    alike = {}
    for name, edit in EDITS.items():
        changed = fingerprints(packed([edit(crop, random) for crop in crops[:edited]]))
        alike[name] = (prints[:edited] * changed).sum(1)
    pairs = [make_pair(seed, index, SIDE) for index in range(edited)]
    authentic, forged = (
        fingerprints(packed([pair[key(label, index)] for index, pair in enumerate(pairs)])) for label in ("authentic", "fake")
    )
    alike["forged"] = (authentic * forged).sum(1)
    near = np.argwhere(np.triu(prints @ prints.T >= THRESHOLDS[0], 1))
    correlation = (prints[near[:, 0]] * prints[near[:, 1]]).sum(1)
    overlap = _overlap(boxes[near[:, 0]], boxes[near[:, 1]])
    other = boxes[near[:, 0], 0] != boxes[near[:, 1], 0]
    scale = 10_000 * 9_999 / (images * (images - 1))
    thresholds = {}
    for threshold in THRESHOLDS:
        called = correlation >= threshold
        thresholds[f"{threshold:.2f}"] = {
            "recall": {name: round(float((values >= threshold).mean()), 3) for name, values in alike.items()},
            "wrong_pairs_per_10000_images": {
                "overlap_below_half": round(float((called & (overlap < 0.5)).sum() * scale), 1),
                "different_photographs": round(float((called & other).sum() * scale), 1),
            },
        }
    return {
        "images": images,
        "edited": edited,
        "size": size,
        "seed": seed,
        "similar": SIMILAR,
        "flat_images": int((~prints.any(1)).sum()),
        "thresholds": thresholds,
        "seconds": _seconds(pixels, random),
    }


def _seconds(pixels: np.ndarray, random: np.random.Generator) -> dict[str, float]:
    """Time to find all copies among shifted versions of `pixels`, and to compare 100,000 random fingerprints."""
    seconds = {}
    for count in (2_000, 8_000, 20_000):
        chosen = random.integers(0, len(pixels), count)
        images = np.stack([np.roll(pixels[row], number % 61, axis=1) for number, row in enumerate(chosen)])
        began = time.perf_counter()
        find_copies([images])
        seconds[f"{count:,} images"] = round(time.perf_counter() - began, 2)
    prints = fingerprints(random.integers(0, 256, (100_000, 16, 16, 3), np.uint8))
    began = time.perf_counter()
    similar(prints)
    seconds["100,000 images, comparison only"] = round(time.perf_counter() - began, 2)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.near_duplicates", description="Measures which near copies are found."
    )
    parser.add_argument("--images", type=int, default=6000, help="crops (default: 6000)")
    parser.add_argument("--edited", type=int, default=1000, help="crops that are edited (default: 1000)")
    parser.add_argument("--size", type=int, default=64, help="height and width of packed images (default: 64)")
    parser.add_argument("--seed", type=int, default=1, help="seed of crops and edits (default: 1)")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.images, arguments.edited, arguments.size, arguments.seed), indent=1))


if __name__ == "__main__":
    main()
