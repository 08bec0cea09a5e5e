"""Small image files of every format that the job reads, and files that are damaged at random."""

import base64
import io
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image

HEIC = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAUJtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAAAERAAAEAAQAA"
    "AAABZgABAAAAAAAAAFEAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAAwmlwcnAAAACkaXBjbwAAAHhodmNDAQNwAAAA"
    "kAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqSSmubgIaDAgAAAMAyAAAAwAI"
    "QGIAAQAHRAHBcrAiQAAAABRpc3BlAAAAAAAAAEAAAABAAAAAEHBpeGkAAAAAAwgICAAAABZpcG1hAAAAAAAAAAEAAQOBAgMAAABZbWRhdAAAAE0oAa8ZgPeAQ4rG"
    "CcG9qdBGo1/kgN1dKrExFB4CdFlMqcHOk7VmDa+rGP6y1t1ykzBEk0KqlbVdv5hu1f/2lnMoUDsBoOQ/6c7MG/pFgA=="
)
"""The gradient at 64x64, written by pillow-heif 1.8.1 with quality 30. The job's libraries cannot write HEIC."""
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)


def gradient(width: int = 64, height: int = 64) -> Image.Image:
    """Smooth, colored, and different at every corner and edge."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pixels = np.stack([40 + 200 * x, 220 - 180 * y, 128 + 100 * np.sin(5 * x + 3 * y)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """Coarse shapes with fine grain, as photographs have."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(coarse) + random.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8))


def on_white(width: int, height: int) -> Image.Image:
    """A photo above, only white below, as scans and product pictures have it. Its JPEG ends with the same bits over and over."""
    pixels = np.asarray(photo(width, height)).copy()
    pixels[round(0.4 * height) :] = 255
    return Image.fromarray(pixels)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def bitmap(image: Image.Image) -> bytes:
    """An RGBA image as a BMP with alpha, which Pillow only reads: 32 bits in the order BGRA, from the bottom row up."""
    rows = np.asarray(image)[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, *image.size, 1, 32, 3, len(rows), 0, 0, 0, 0) + masks + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(rows), 0, 0, 14 + len(header)) + header + rows


def box(kind: str, *parts: bytes) -> bytes:
    """A box of an ISO base media file."""
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind.encode()) + body


def tiled(tile: bytes, codec: str, configuration: str, size: int = 64) -> bytes:
    """An AVIF or HEIC file of 2x2 tiles, as phones and cameras write them (ISO 23008-12, 6.6.2.3), from a file of one tile of
    `size` x `size` pixels. `codec`: hvc1 or av01, with the box of its `configuration`: hvcC or av1C."""
    at = tile.index(configuration.encode()) - 4
    (length,) = struct.unpack_from(">I", tile, at)
    stream = tile[tile.index(b"mdat") + 4 :]
    zero, both = bytes(4), 2 * size
    entries = [
        box("infe", b"\2\0\0\0", struct.pack(">HH", i, 0), kind, b"\0")
        for i, kind in enumerate([b"grid", *[codec.encode()] * 4], 1)
    ]
    spatial = [box("ispe", zero, struct.pack(">II", side, side)) for side in (size, both)]
    uses = struct.pack(">IHBB", 5, 1, 1, 3) + b"".join(struct.pack(">HBBB", i, 2, 0x81, 2) for i in range(2, 6))

    def meta(start: int) -> bytes:
        grid = bytes([0, 0, 1, 1]) + struct.pack(">HH", both, both)
        places = [(1, 1, 0, len(grid)), *((i, 0, start + (i - 2) * len(stream), len(stream)) for i in range(2, 6))]
        rows = b"".join(struct.pack(">HHHHII", item, method, 0, 1, offset, length) for item, method, offset, length in places)
        return box(
            "meta",
            *(zero, box("hdlr", zero, zero, b"pict", bytes(13)), box("pitm", zero, struct.pack(">H", 1))),
            box("iloc", b"\1\0\0\0\x44\0", struct.pack(">H", 5), rows),
            box("iinf", zero, struct.pack(">H", 5), *entries),
            box("iref", zero, box("dimg", struct.pack(">6H", 1, 4, 2, 3, 4, 5))),
            box("iprp", box("ipco", tile[at : at + length], *spatial), box("ipma", zero, uses)),
            box("idat", grid),
        )

    brand = b"heic" if codec == "hvc1" else b"avif"
    head = box("ftyp", brand, zero, b"mif1", brand)
    return head + meta(len(head) + len(meta(0)) + 8) + box("mdat", 4 * stream)


def seeds() -> dict[str, dict[str, bytes]]:
    """Format -> name of a variant -> file."""
    color = photo()
    gray, palette, clear = color.convert("L"), color.quantize(64), color.copy()
    clear.putalpha(gray)
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    more = {"save_all": True, "append_images": [photo(seed=1), photo(seed=2)]}
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "JPEG": {
            "baseline": saved(color, "JPEG", quality=85),
            "4:4:4, EXIF": saved(color, "JPEG", quality=92, subsampling=0, exif=exif, comment=b"a comment"),
            "gray": saved(gray, "JPEG", quality=80),
            "progressive": saved(color, "JPEG", quality=85, progressive=True),
            "restart markers": saved(color, "JPEG", quality=85, restart_marker_blocks=3),
            "CMYK": saved(color.convert("CMYK"), "JPEG", quality=85),
            "white below": saved(on_white(96, 64), "JPEG", quality=85, subsampling=0),
            "white below, optimized": saved(on_white(97, 61), "JPEG", quality=85, subsampling=0, optimize=True),
        },
        "PNG": {
            "color": saved(color, "PNG"),
            "alpha, EXIF": saved(clear, "PNG", exif=exif),
            "palette": saved(palette, "PNG", transparency=3),
            "16 bits": saved(deep, "PNG"),
            "animation": saved(color, "PNG", **more),
        },
        "WebP": {
            "lossy": saved(color, "WEBP", quality=80),
            "lossless": saved(color, "WEBP", lossless=True),
            "alpha, EXIF": saved(clear, "WEBP", exif=exif),
            "animation": saved(color, "WEBP", **more),
        },
        "TIFF": {
            "raw": saved(color, "TIFF"),
            **{name: saved(color, "TIFF", compression=f"tiff_{name}") for name in ("lzw", "adobe_deflate", "jpeg")},
            "packbits": saved(gray, "TIFF", compression="packbits"),
            "fax": saved(color.convert("1"), "TIFF", compression="group4"),
            "16 bits": saved(deep, "TIFF"),
            "alpha": saved(clear, "TIFF", compression="tiff_lzw"),
        },
        "BMP": {"color": saved(color, "BMP"), "palette": saved(palette, "BMP"), "alpha": bitmap(clear)},
        "GIF": {"still": saved(palette, "GIF"), "animation": saved(color, "GIF", **more)},
        "AVIF": {
            "still": saved(color, "AVIF", quality=60),
            "alpha": saved(clear, "AVIF"),
            "EXIF": saved(color, "AVIF", exif=exif),
            "tiles": tiled(saved(gradient(), "AVIF", quality=60), "av01", "av1C"),
        },
        "HEIC": {"still": base64.b64decode(HEIC), "tiles": tiled(base64.b64decode(HEIC), "hvc1", "hvcC")},
    }


def mutated(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """`data` after one to four random changes; parts of `other` may appear in it."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 5)):
        if not changed:
            break
        at = int(random.integers(len(changed)))
        count = int(random.integers(1, 33))
        CHANGES[random.integers(len(CHANGES))](changed, at, count, other, random)
    return bytes(changed)


def flip(changed: bytearray, at: int, _count: int, _other: bytes, random: np.random.Generator) -> None:
    """One bit."""
    changed[at] ^= 1 << int(random.integers(8))


def _overwrite(changed: bytearray, at: int, count: int, _other: bytes, random: np.random.Generator) -> None:
    changed[at : at + count] = random.bytes(count) if random.random() < 0.5 else bytes([random.choice([0, 255])]) * count


def _number(changed: bytearray, at: int, _count: int, _other: bytes, random: np.random.Generator) -> None:
    value, form = int(random.choice(INTERESTING)), str(random.choice(["B", "<H", ">H", "<I", ">I"]))
    size = struct.calcsize(form)
    changed[at : at + size] = struct.pack(form, value & (1 << 8 * size) - 1)


def _remove(changed: bytearray, at: int, count: int, _other: bytes, _random: np.random.Generator) -> None:
    del changed[at : at + count]


def _cut(changed: bytearray, at: int, _count: int, _other: bytes, _random: np.random.Generator) -> None:
    del changed[at:]


def _repeat(changed: bytearray, at: int, count: int, _other: bytes, random: np.random.Generator) -> None:
    changed[at:at] = changed[at : at + count] * int(random.integers(1, 9))


def _splice(changed: bytearray, at: int, count: int, other: bytes, random: np.random.Generator) -> None:
    start = int(random.integers(len(other)))
    changed[at : at + count] = other[start : start + 4 * count]


CHANGES: tuple[Callable[[bytearray, int, int, bytes, np.random.Generator], None], ...] = (
    flip,
    _overwrite,
    _number,
    _remove,
    _cut,
    _repeat,
    _splice,
)
