"""One image file -> the pixels used for training. Pure: equal bytes give equal pixels on every machine.

Separation of concerns: this module knows image formats, but not stores, Ray or shards. It decides how an image looks:
- It is stretched to the wanted height and width (the aspect ratio is not kept, nothing is cropped) with Pillow's BILINEAR,
  a triangle filter that widens when it shrinks and so does not alias.
- The EXIF orientation is applied. Color profiles are not: values are taken as sRGB.
- Transparent pixels become white, as a page or a viewer shows them. 16-bit samples are scaled to 8 bits, CMYK becomes RGB, and
  only the first frame of an animation counts.
- Damaged files are refused with a reason, as far as the format reveals the damage (raw pixels and lossy WebP cannot). No image
  is half missing or contains pixels that a decoder made up.

Shapes: H W C the packed image, C = 3 (RGB).
"""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
"""Pillow's other readers are not used: some start programs (EPS), and none is common for photographs."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that turns the image upright."""

Image.MAX_IMAGE_PIXELS = None  # data.max_pixels is the bound, checked below before decoding


class DecodeError(ValueError):
    """An image cannot be used; the one-line message follows the image's key in a sentence."""

    def __init__(self, reason: str, max_pixels: int | None = None) -> None:
        super().__init__(reason)
        self.max_pixels = max_pixels
        """The bound that the image exceeds, if that is the reason."""


def decode(data: bytes, image_shape: tuple[int, int, int], max_pixels: int) -> np.ndarray:
    """The image in `data` as uint8 [H, W, C] = `image_shape`. Raises DecodeError, also for more than `max_pixels` pixels."""
    if not data:
        raise DecodeError("is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from Pillow, about broken metadata
            return _decode(data, image_shape, max_pixels)
    except DecodeError:
        raise
    except Image.UnidentifiedImageError:
        raise DecodeError(f"is not a JPEG, PNG, WebP, TIFF, BMP or GIF image (it starts with {data[:16]!r})") from None
    except Exception as error:  # Pillow's readers raise exceptions of any type on damaged files
        raise DecodeError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from None


def _decode(data: bytes, image_shape: tuple[int, int, int], max_pixels: int) -> np.ndarray:
    height, width, _ = image_shape
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise DecodeError(f"has {image.width} x {image.height} pixels, above data.max_pixels = {max_pixels}", max_pixels)
        if image.format == "PNG":
            _verify(data)
        turned = _orientation(image)
        if turned >= 5:  # these swap height and width; turning the small image is cheaper
            height, width = width, height
        pixels = _jpeg(data, height, width) if image.format in ("JPEG", "MPO") else None
        small = (_colors(image) if pixels is None else Image.fromarray(pixels)).resize((width, height), Image.Resampling.BILINEAR)
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    return np.asarray(small if turned == 1 else small.transpose(TURNS[turned]))


def _verify(data: bytes) -> None:
    """Verifies the checksums of a PNG. Pillow's decoder does not, and leaves black what it cannot unpack."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.verify()


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation: a key of TURNS, or 1 for upright. Pillow itself turns a TIFF while loading it."""
    try:
        value = 1 if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the metadata is unreadable, the pixels may not be
        return 1
    return value if value in TURNS else 1


def _jpeg(data: bytes, height: int, width: int) -> np.ndarray | None:
    """uint8 RGB pixels [h, w, 3], shrunk in eighths while decoding but to no less than twice the wanted height and width.

    Returns None for the rare color subsamplings that only Pillow reads. Unlike Pillow's decoder, this one reports missing data.
    """

    def read(strict: bool) -> np.ndarray:
        return simplejpeg.decode_jpeg(data, "RGB", False, False, 2 * height, 2 * width, strict=strict)

    try:
        return read(strict=True)
    except ValueError as error:
        if "extraneous bytes before marker 0xd9" in str(error):  # some cameras pad the end of the file, after all pixels
            return read(strict=False)
        if "subsampling" in str(error):
            return None
        raise


def _colors(image: Image.Image) -> Image.Image:
    """The image as RGB, or as RGBA if it has transparency."""
    if image.mode.startswith("I;16"):
        return _sixteen_bits(image).convert("RGB")
    if image.mode in ("I", "F"):
        raise DecodeError("has 32-bit or floating-point pixels, whose black and white are unknown: store 8 or 16 bits")
    image.load()
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit gray samples to 8 bits. A TIFF may declare fewer bits, or 0 as white."""
    bits, white_is_zero = 16, False
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, white_is_zero = tags[258][0], tags[262] == 0
    values = np.asarray(image).astype(np.float32) * (255 / (2**bits - 1))
    return Image.fromarray(np.rint(255 - values if white_is_zero else values).astype(np.uint8))
