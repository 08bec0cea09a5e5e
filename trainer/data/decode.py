"""One image file -> the pixels that are trained on. Pure: the same bytes give the same pixels on every machine.

Separation of concerns: this module knows image formats and nothing of stores, Ray or shards. It decides, once and for
every user of the pack, how an image looks:
- It is stretched to the wanted height and width (the aspect ratio is not kept, nothing is cropped) with Pillow's BILINEAR,
  a triangle filter that widens when it shrinks and so does not alias.
- The orientation that EXIF states is applied. Colour profiles are not: numbers are taken for sRGB.
- Transparency is laid on white, as a page or a viewer shows it. The colours that editors leave under transparent pixels
  never show. 16-bit samples are scaled to 8 bits, CMYK becomes RGB, of an animation the first frame counts.
- What is damaged is refused with a reason, as far as its format can tell (raw pixels and lossy WebP cannot): no half of an
  image, and nothing that a decoder had to make up.

Shapes: H W C the packed image, C = 3 (RGB).
"""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
"""Pillow's other readers stay shut: some start programs (EPS), and none is usual for photographs."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what sets the image upright."""

Image.MAX_IMAGE_PIXELS = None  # the bound is data.max_pixels, checked below before a pixel is decoded


class DecodeError(ValueError):
    """Why an image cannot be used, in one line that follows its name."""


def decode(data: bytes, image_shape: tuple[int, int, int], max_pixels: int) -> np.ndarray:
    """The image in `data` as uint8 [H, W, C]. Raises DecodeError."""
    if not data:
        raise DecodeError("is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of broken metadata
            return _decode(data, image_shape, max_pixels)
    except DecodeError:
        raise
    except Image.UnidentifiedImageError:
        raise DecodeError(f"is no JPEG, PNG, WebP, TIFF, BMP or GIF image (it begins with {data[:16]!r})") from None
    except Exception as error:  # on a damaged file Pillow's readers raise whatever they stumble over
        raise DecodeError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from None


def _decode(data: bytes, image_shape: tuple[int, int, int], max_pixels: int) -> np.ndarray:
    height, width, _ = image_shape
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise DecodeError(f"has {image.width} x {image.height} pixels, above data.max_pixels = {max_pixels}")
        if image.format == "PNG":
            _verify(data)
        turned = _orientation(image)
        if turned >= 5:  # these swap height and width, and turning the small image is cheaper
            height, width = width, height
        pixels = _jpeg(data, height, width) if image.format in ("JPEG", "MPO") else None
        small = (_colours(image) if pixels is None else Image.fromarray(pixels)).resize((width, height), Image.Resampling.BILINEAR)
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    return np.asarray(small if turned == 1 else small.transpose(TURNS[turned]))


def _verify(data: bytes) -> None:
    """Compares a PNG with its checksums; Pillow's decoder does not, and leaves black what it cannot unpack."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.verify()


def _orientation(image: Image.Image) -> int:
    """A key of TURNS, or 1. Pillow itself turns a TIFF while it loads it."""
    try:
        value = 1 if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # unreadable metadata beside readable pixels
        return 1
    return value if value in TURNS else 1


def _jpeg(data: bytes, height: int, width: int) -> np.ndarray | None:
    """uint8 RGB pixels, already shrunk while decoding (in eighths) as long as both sides stay twice the wanted ones; None
    for the rare colour subsamplings that only Pillow reads. Unlike Pillow's decoder, this one tells of missing data."""

    def read(strict: bool) -> np.ndarray:
        return simplejpeg.decode_jpeg(data, "RGB", False, False, 2 * height, 2 * width, strict=strict)

    try:
        return read(strict=True)
    except ValueError as error:
        if "extraneous bytes before marker 0xd9" in str(error):  # some cameras pad the end: all pixels were there before
            return read(strict=False)
        if "subsampling" in str(error):
            return None
        raise


def _colours(image: Image.Image) -> Image.Image:
    """Whatever Pillow read, as RGB or, where it has transparency, RGBA."""
    if image.mode.startswith("I;16"):
        return _sixteen_bits(image).convert("RGB")
    if image.mode in ("I", "F"):
        raise DecodeError("has 32-bit or floating-point pixels, whose black and white are not known: store 8 or 16 bits")
    image.load()
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _sixteen_bits(image: Image.Image) -> Image.Image:
    bits, white_is_zero = 16, False
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, white_is_zero = tags[258][0], tags[262] == 0
    values = np.asarray(image).astype(np.float32) * (255 / (2**bits - 1))
    return Image.fromarray(np.rint(255 - values if white_is_zero else values).astype(np.uint8))
