"""One image file -> the pixels used for training. Pure: equal bytes give equal pixels on every machine.

Separation of concerns: this module knows how an image looks, jpeg_file.py and image_file.py know containers, and decoder.py runs
this module in a process that may die. None knows stores, Ray or shards.
- An image is stretched to the wanted height and width (the aspect ratio is not kept, nothing is cropped) with Pillow's BILINEAR,
  a triangle filter that widens when it shrinks and so does not alias. What is more than GAP times as large is first shrunk by the
  mean of whole pixels, which changes the result by at most one level and takes a fourth of the time. Every format is decoded at
  full size before: a JPEG decoder that shrinks would leave other pixels than a PNG of the same picture has, and a class of JPEGs
  would be known by its format.
- The EXIF orientation is applied. Color profiles are not: values are taken as sRGB.
- Transparent pixels become white, as a page or a viewer shows them. 16-bit samples are scaled to 8 bits, CMYK becomes RGB, and
  only the first image of an animation or of a file of several counts.
- The header is read first. What exceeds the bounds is refused before a pixel is decoded.
- Damaged image data is refused with a reason, as far as the format reveals the damage (uncompressed pixels and most codecs without
  checksums cannot). No image is half missing or contains pixels that a decoder made up. Damaged or odd metadata costs no image.

Shapes: H W C the packed image, C = 3 (RGB).
"""

import io
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pi_heif
import simplejpeg
from PIL import AvifImagePlugin, ExifTags, Image, UnidentifiedImageError

from trainer.data import image_file, tiff_file
from trainer.data.dataset import DecodeError
from trainer.data.jpeg_file import Jpeg, read_jpeg
from trainer.data.jpeg_scan import without_stray

NAMES = "JPEG, PNG, WebP, AVIF, HEIC, TIFF, BMP or GIF"
"""Pillow's other readers are not used: some start programs (EPS), and none is common for photographs."""
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker (?!0xd[0-7])")
"""libjpeg's warning. Bytes that are left over before a restart marker are image data: stray ones stand at the end of a scan."""
GAP = 3.0
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
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each core of the cluster decodes an image of its own
pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


@dataclass(frozen=True)
class Opened:
    """An image file whose header has been read and is within the bounds."""

    form: str
    """Pillow's name of the format."""
    width: int
    height: int
    contents: Jpeg | image_file.Contents | Image.Image
    orientation: int = 1
    tiles: Iterable[bytes] = ()
    """Files with one tile each, all of which must be sound."""
    """A key of TURNS, or 1 for upright."""


def decode(data: bytes, image_shape: tuple[int, int, int], max_pixels: int) -> np.ndarray:
    """The image in `data` as uint8 [H, W, C] = `image_shape`. Raises DecodeError, also for more than `max_pixels` pixels."""
    return pixels(open_image(data, max_pixels), image_shape)


def open_image(data: bytes, max_pixels: int) -> Opened:
    """Reads the header; decodes no pixel. Raises DecodeError, also for more than `max_pixels` pixels."""
    if not data:
        raise DecodeError("is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from Pillow, about broken metadata
            return _open(data, max_pixels)
    except Exception as error:
        raise _refusal(error) from None


def pixels(image: Opened, image_shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels of an opened image, uint8 [H, W, C] = `image_shape`. Raises DecodeError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _pixels(image, image_shape)
    except Exception as error:
        raise _refusal(error) from None


def _refusal(error: Exception) -> DecodeError:
    """Pillow's readers raise exceptions of any type on damaged files."""
    if isinstance(error, DecodeError):
        return error
    if isinstance(error, MemoryError):
        return DecodeError("cannot be decoded: it takes more memory than an image of its size needs")
    if isinstance(error, UnidentifiedImageError):  # its message holds an address in memory
        return DecodeError("cannot be decoded: its header is damaged, or it stores its pixels in a way that is not supported")
    return DecodeError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}")


def _format(data: bytes) -> str:
    """Pillow's name of the format. Raises DecodeError for another one."""
    if data.startswith(b"\xff\xd8"):
        return "JPEG"
    if data.startswith(image_file.PNG):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(image_file.GIF):
        return "GIF"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith(b"BM"):
        return "BMP"
    if data[4:8] == b"ftyp":
        brands = data[8 : min(int.from_bytes(data[:4]), 256)]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        if any(brand in brands for brand in (*HEIC_BRANDS, b"mif1", b"msf1")):
            return "HEIF"
    raise DecodeError(f"is not a {NAMES} image (it starts with {data[:16]!r})")


def _open(data: bytes, max_pixels: int) -> Opened:
    form = _format(data)
    if form == "JPEG":
        jpeg = read_jpeg(data)
        image_file.check_pixels(jpeg.width, jpeg.height, max_pixels)
        return Opened(form, jpeg.width, jpeg.height, jpeg, _orientation(jpeg.exif))
    if form in READERS:  # Pillow's own take memory for all pixels when they open a file
        contents = READERS[form](data, max_pixels)
        return Opened(form, contents.width, contents.height, contents, _orientation(contents.exif))
    if form in ("AVIF", "HEIF"):
        image_file.check_items(data)
    image = Image.open(io.BytesIO(data if form == "BMP" else image_file.without_exif(data)), formats=(form,))
    width, height = image.size
    image_file.check_pixels(width, height, max_pixels)
    # Of an AVIF, Pillow gives the container's orientation as one of EXIF. It turns a TIFF by itself, and pi_heif a HEIC.
    orientation = _orientation(image.info.get("exif", b"")) if form == "AVIF" else 1
    return Opened(form, width, height, image, orientation, image_file.tiles(data) if form == "HEIF" else ())


READERS = {"PNG": image_file.read_png, "WEBP": image_file.read_webp, "GIF": image_file.read_gif, "TIFF": tiff_file.read_tiff}


def _orientation(exif: bytes) -> int:
    found = Image.Exif()
    try:
        found.load(exif)
        value = found.get(ExifTags.Base.Orientation, 1)
    except Exception:  # the metadata is unreadable, the pixels may not be
        return 1
    return value if value in TURNS else 1


def _pixels(image: Opened, image_shape: tuple[int, int, int]) -> np.ndarray:
    height, width, _ = image_shape
    if image.orientation >= 5:  # these swap height and width; turning the small image is cheaper
        height, width = width, height
    full = _full(image)
    for tile in image.tiles:
        Image.open(io.BytesIO(tile), formats=(image.form,)).load()
    if full.format == "TIFF":
        _check_tiff(full)
        with _printed() as printed:
            full.load()
        if printed:
            raise DecodeError(f"is damaged: {printed[0]}")
    small = _colors(full).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=GAP)
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small)
    small = small.convert("RGB")
    return np.asarray(small if image.orientation == 1 else small.transpose(TURNS[image.orientation]))


def _full(image: Opened) -> Image.Image:
    """The image at its own size; only a JPEG's pixels are decoded already."""
    if isinstance(image.contents, Jpeg):
        return _jpeg(image.contents)
    if isinstance(image.contents, Image.Image):
        return image.contents
    full = Image.open(io.BytesIO(image.contents.file()), formats=(image.form,))
    if full.width * full.height > image.width * image.height:
        raise DecodeError("is damaged: its headers contradict each other about its size")
    if image.contents.other is not None and _looks_like(full, image.contents.other()):
        raise DecodeError(image_file.NEVER_WRITTEN)
    return full


def _looks_like(image: Image.Image, file: bytes) -> bool:
    """Whether `file`, of the same format, has the same pixels. Not if it cannot be decoded."""
    expected = image.tobytes()
    try:
        return Image.open(io.BytesIO(file), formats=(str(image.format),)).tobytes() == expected
    except Exception:  # of any type, as always
        return False


def _jpeg(jpeg: Jpeg) -> Image.Image:
    """The pixels of a JPEG. Unlike Pillow's, this decoder reports missing and derailed data. It lacks rare color subsamplings; of
    those, only missing data is found."""
    try:
        color, mode = ("GRAY", "L") if jpeg.channels == 1 else ("RGBX", "RGBX")  # gray that is lossless is refused as RGBX
        rows = simplejpeg.decode_jpeg(jpeg.data, color, strict=True)
        return Image.frombuffer(mode, (jpeg.width, jpeg.height), rows, "raw", mode, 0, 1)  # without a copy
    except ValueError as error:
        if "subsampling" in str(error):
            both = (jpeg, jpeg.with_surplus(b"\xa5" * 64))
            image, other = (Image.open(io.BytesIO(each.data), formats=("JPEG",)) for each in both)
            if image.tobytes() != other.tobytes():
                raise DecodeError("is damaged: a part of its pixels is missing") from None
            return image
        left = LEFT_OVER.search(str(error))
        if left and (shorter := without_stray(jpeg, int(left[1]))):
            return _jpeg(shorter)
        raise


@contextmanager
def _printed() -> Iterator[list[str]]:
    """The first line that this process prints to standard error: libtiff prints errors in image data, and goes on."""
    printed: list[str] = []
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield printed
        finally:
            os.dup2(before, 2)
            os.close(before)
        file.seek(0)
        printed += file.read(1000).decode(errors="replace").splitlines()[:1]


def _check_tiff(image: Image.Image) -> None:
    """Raises DecodeError if a TIFF lacks pixels, or if a JPEG, a checksum or zeros in it reveal damage. libtiff does not."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    tiff_file.check_layout(tags)
    compression = tags.get(tiff_file.COMPRESSION)
    if compression not in (tiff_file.JPEG, *tiff_file.DEFLATE, *tiff_file.FAX):
        return
    tiled = tiff_file.TILES in tags
    offsets = tags[tiff_file.TILES if tiled else tiff_file.STRIPS]
    data = image.fp.getvalue()  # type: ignore[attr-defined]
    all_of_it = [len(data)] * len(offsets)  # old fax machines omit the sizes
    sizes = tags.get(tiff_file.TILE_BYTES if tiled else tiff_file.STRIP_BYTES, all_of_it)
    for offset, size in zip(offsets, sizes, strict=True):
        part = data[offset : offset + size]
        if compression == tiff_file.JPEG:
            tables = tags.get(tiff_file.TABLES, b"\xff\xd8\xff\xd9")
            _jpeg(read_jpeg(tables[:-2] + part[2:]))
        elif compression in tiff_file.FAX:
            image_file.check_end(part)
        else:
            tiff_file.check_deflate(part)


def _colors(image: Image.Image) -> Image.Image:
    """The image as RGB, or as RGBA if it has transparency."""
    if image.mode.startswith("I;16"):
        return _sixteen_bits(image).convert("RGB")
    if image.mode in ("I", "F"):
        raise DecodeError("has 32-bit or floating-point pixels, whose black and white are unknown: store 8 or 16 bits")
    if image.mode == "RGBX":
        return image
    image.load()
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # its writer left the fourth byte empty, and viewers ignore it
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
