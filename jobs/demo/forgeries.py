"""Makes the demo's images, without a download: crops of photographs from installed Python packages, and forgeries of these crops.

Owns the choice of photographs, their licenses, and how a crop is forged. images.py stores the result.

| photograph | file | license |
|---|---|---|
| astronaut, hubble, text | skimage/data/{astronaut.png, hubble_deep_field.jpg, text.png} | public domain (first two: NASA) |
| rocket | skimage/data/rocket.jpg | public domain (SpaceX, 2015) |
| cat, coffee, retina | skimage/data/{chelsea.png, coffee.png, retina.jpg} | CC0 |
| camera, brick, grass, gravel | skimage/data/*.png | CC0 |
| coins, tissue | skimage/data/{coins.png, ihc.png} | no known copyright restrictions |
| moon, page | skimage/data/*.png | no license of their own: the package's, BSD-3-Clause |
| motorcycle | skimage/data/motorcycle_left.png | Middlebury Stereo 2014: free to use and publish; cite Scharstein, GCPR 2014 |
| china | sklearn/datasets/images/china.jpg | CC BY 2.0, danielbuechele on Flickr |
| flower | sklearn/datasets/images/flower.jpg | CC BY 2.0, vultilion on Flickr |
| hopper | matplotlib/mpl-data/sample_data/grace_hopper.jpg | public domain (US Navy) |

Method. An authentic image is a random crop: position, scale, mirroring, exposure and white balance are random. Its forgery is the
same crop with one piece pasted in, as a careless forger would do it: a lasso selection near the middle, a soft edge, and no
matching of light and color. Four in five pieces come from another photograph (splice), the others from elsewhere in the crop
(copy-move), slightly rotated, scaled and perhaps mirrored. Both images then pass through the same two JPEG compressions, a camera's
and an editor's, so that they differ in content only.

Groups. Images are grouped by the photograph that was cropped. Pieces come from all photographs, so a photograph in the validation
set has supplied pieces to forgeries in the training set. This should mislead the network rather than help it, because in training
that texture always means "fake".

Difficulty (1,600 images of 160x160 pixels resized to 64x64, photographs held out in five folds, one seed): the network classifies
65 % correctly after 6 epochs at learning rate 1e-3 and momentum 0.9 (95 % interval over photographs: 59-71 %). A logistic
regression on contrast, clipped pixels, sharpness, file size and similar numbers reaches 61 %, which is inside that interval. The
constants below were chosen on the same photographs, so 65 % is slightly optimistic.

Shapes: images are Pillow images, RGB, S x S pixels; masks are Pillow images in mode L.
"""

import io
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from trainer import UserError

_SKIMAGE, _SKLEARN, _MATPLOTLIB = "skimage/data", "sklearn/datasets/images", "matplotlib/mpl-data/sample_data"
PHOTOGRAPHS = {
    "astronaut": f"{_SKIMAGE}/astronaut.png",
    "brick": f"{_SKIMAGE}/brick.png",
    "camera": f"{_SKIMAGE}/camera.png",
    "cat": f"{_SKIMAGE}/chelsea.png",
    "china": f"{_SKLEARN}/china.jpg",
    "coffee": f"{_SKIMAGE}/coffee.png",
    "coins": f"{_SKIMAGE}/coins.png",
    "flower": f"{_SKLEARN}/flower.jpg",
    "grass": f"{_SKIMAGE}/grass.png",
    "gravel": f"{_SKIMAGE}/gravel.png",
    "hopper": f"{_MATPLOTLIB}/grace_hopper.jpg",
    "hubble": f"{_SKIMAGE}/hubble_deep_field.jpg",
    "moon": f"{_SKIMAGE}/moon.png",
    "motorcycle": f"{_SKIMAGE}/motorcycle_left.png",
    "page": f"{_SKIMAGE}/page.png",
    "retina": f"{_SKIMAGE}/retina.jpg",
    "rocket": f"{_SKIMAGE}/rocket.jpg",
    "text": f"{_SKIMAGE}/text.png",
    "tissue": f"{_SKIMAGE}/ihc.png",
}
"""Name -> package and path in it."""

COPY_MOVES = 0.2
"""Fraction of the attempts that are copy-moves; the others are splices."""
AREA = (0.18, 0.36)
"""Smallest and largest area of a piece, as a fraction of the image."""
OFF_CENTRE = 0.12
"""Standard deviation of a piece's distance from the middle in x and y, as a fraction of the image's side."""
EDGE = (0.004, 0.012)
"""Standard deviation of the blur at a piece's edge, as a fraction of the image's side."""
LIGHT, COLOUR = 0.3, 0.05
"""Largest change of a crop's exposure (logarithm of the exponent) and white balance (logarithm of a channel's factor)."""
OTHER_LIGHT, OTHER_COLOUR = (0.5, 1.1), 0.35
"""The same for a spliced piece; the absolute change of its exposure lies between the two numbers."""
LEAST_CHANGE = 14.0
"""Smallest mean absolute difference (0..255) in the area of the piece. Below it, another piece is tried: sky pasted on sky, for
example, would not show."""
CAMERA, EDITOR = (80, 85, 90, 95), (75, 80, 85, 90)
"""JPEG qualities of the first and the second compression."""


def make_pair(seed: int, index: int, size: int) -> dict[str, bytes]:
    """The authentic image number `index` and its forgery: key -> JPEG file, size x size pixels.

    The same arguments give the same bytes, given the same versions of Pillow and NumPy. Raises UserError if a photograph is not
    installed.
    """
    rng = np.random.default_rng([seed, index])
    name = _name(index)
    authentic = _crop(name, size, rng)
    while True:
        mask, centre, radius = _lasso(size, rng)
        copied = rng.random() < COPY_MOVES
        piece = _moved(authentic, centre, radius, rng) if copied else _foreign(name, size, rng)
        change = np.abs(np.asarray(authentic, np.int16) - np.asarray(piece, np.int16))[np.asarray(mask) > 0].mean()
        if change >= LEAST_CHANGE:
            break
    soft = mask.filter(ImageFilter.GaussianBlur(rng.uniform(*EDGE) * size))
    forged, quality = Image.composite(piece, authentic, soft), rng.choice(EDITOR)
    return {key("authentic", index): _jpeg(authentic, quality), key("fake", index): _jpeg(forged, quality)}


def key(label: str, index: int) -> str:
    """`<label>/<photograph>/<photograph>-<number>.jpg`; the index cycles through the photographs."""
    name = _name(index)
    return f"{label}/{name}/{name}-{index // len(PHOTOGRAPHS) + 1:04d}.jpg"


def _name(index: int) -> str:
    return list(PHOTOGRAPHS)[index % len(PHOTOGRAPHS)]


@cache
def photograph(name: str) -> Image.Image:
    """The whole photograph, RGB. Raises UserError if its package is not installed or does not contain it."""
    package, _, path = PHOTOGRAPHS[name].partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"The package {package}, which contains the photograph {name}, is not installed. Fix: run `make install`.")
    try:
        pixels = np.asarray(Image.open(Path(spec.origin).parent / path).convert("RGB"))
    except OSError as error:
        raise UserError(f"The package {package} does not contain {path} ({error}). Fix: run `make install`.") from None
    return Image.fromarray(pixels)  # without the file's comments, which every crop would inherit


@cache
def _grey(name: str) -> bool:
    red, green, blue = np.moveaxis(np.asarray(photograph(name)), -1, 0)
    return bool((red == green).all() and (green == blue).all())


def _crop(name: str, size: int, rng: np.random.Generator) -> Image.Image:
    whole = photograph(name)
    largest = min(whole.size)
    side = float(np.exp(rng.uniform(np.log(min(size, largest)), np.log(min(3 * size, largest)))))
    left, top = rng.uniform(0, whole.width - side), rng.uniform(0, whole.height - side)
    crop = whole.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    crop = _relit(crop, rng.uniform(-LIGHT, LIGHT), np.zeros(3) if _grey(name) else rng.uniform(-COLOUR, COLOUR, 3))
    return Image.open(io.BytesIO(_jpeg(crop, rng.choice(CAMERA)))).convert("RGB")


def _foreign(name: str, size: int, rng: np.random.Generator) -> Image.Image:
    """A crop of another photograph, in a different light. A grey photograph gets a grey piece, a coloured one a coloured piece."""
    others = [other for other in PHOTOGRAPHS if other != name and (_grey(name) or not _grey(other))]
    crop = _crop(str(rng.choice(others)), size, rng)
    light = rng.choice([-1, 1]) * rng.uniform(*OTHER_LIGHT)
    if _grey(name):
        return _relit(crop.convert("L").convert("RGB"), light, np.zeros(3))
    return _relit(crop, light, rng.uniform(-OTHER_COLOUR, OTHER_COLOUR, 3))


def _moved(image: Image.Image, centre: np.ndarray, radius: float, rng: np.random.Generator) -> Image.Image:
    """The image moved so that another part of it lies at `centre` (x, y), slightly rotated and scaled, and perhaps mirrored."""
    size = image.width
    while True:
        origin = rng.uniform(0.8 * radius, size - 0.8 * radius, 2)
        if np.hypot(*(origin - centre)) > 0.8 * radius:
            break
    angle, scale, mirror = np.deg2rad(rng.uniform(-15, 15)), rng.uniform(0.8, 1.25), rng.choice([-1, 1])
    turn = np.array([[mirror * np.cos(angle), -np.sin(angle)], [mirror * np.sin(angle), np.cos(angle)]]) / scale
    (a, b), (d, e) = turn
    border = size // 2  # the image continues beyond its edge as its mirror image
    c, f = origin - turn @ centre + border
    wide = Image.fromarray(np.pad(np.asarray(image), ((border, border), (border, border), (0, 0)), "reflect"))
    return wide.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC)


def _lasso(size: int, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray, float]:
    """A mask like a hand-drawn selection near the middle (255 inside), its centre (x, y) and its mean radius in pixels."""
    radius = float(np.sqrt(rng.uniform(*AREA) / np.pi)) * size
    centre = np.clip(rng.normal(size / 2, OFF_CENTRE * size, 2), 0.8 * radius, size - 0.8 * radius)
    y, x = np.mgrid[:size, :size] + 0.5
    turn, stretch = rng.uniform(0, np.pi), np.exp(rng.uniform(-0.35, 0.35))
    along = ((x - centre[0]) * np.cos(turn) + (y - centre[1]) * np.sin(turn)) * stretch
    across = ((y - centre[1]) * np.cos(turn) - (x - centre[0]) * np.sin(turn)) / stretch
    angle = np.arctan2(across, along)
    wobble = sum(rng.uniform(0, 0.25 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5))
    return Image.fromarray(np.where(np.hypot(along, across) < radius * (1 + wobble), 255, 0).astype(np.uint8)), centre, radius


def _relit(image: Image.Image, light: float, colour: np.ndarray) -> Image.Image:
    """The image with its exposure raised (light < 0) or lowered, and its channels scaled, both as logarithms: 0 is no change."""
    curve = np.linspace(0, 1, 256) ** np.exp(light)
    table = np.clip(255 * np.exp(colour)[:, None] * curve, 0, 255)
    return image.point(table.round().astype(int).ravel().tolist())


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(quality))
    return file.getvalue()
