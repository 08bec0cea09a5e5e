"""The directory of a TIFF file: its size, and its image data without everything else.

Separation of concerns: as jpeg_file.py, for TIFF 6.0 and BigTIFF.
"""

import struct
import zlib
from collections.abc import Mapping
from typing import Any

from trainer.data.dataset import DecodeError
from trainer.data.image_file import Contents, check_pixels

WIDTH, HEIGHT, BITS, COMPRESSION, STRIPS, SAMPLES, STRIP_ROWS, STRIP_BYTES, PLANES, TABLES = (
    *(256, 257, 258, 259, 273, 277, 278, 279, 284, 347),
)
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES = 322, 323, 324, 325
NEEDED = {WIDTH, HEIGHT, BITS, COMPRESSION, 262, 266, STRIPS, 274, SAMPLES, STRIP_ROWS, STRIP_BYTES, PLANES, 292, 293, 317, 320}
NEEDED |= {TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES, 332, 338, 339, TABLES, *range(512, 522), 529, 530, 531, 532}
"""The tags that say how the image is stored. All others are metadata, or point to it, or to further images."""
UNCOMPRESSED, FAX, OLD_JPEG, JPEG, DEFLATE = 1, (2, 3, 4), 6, 7, (8, 32946)


def read_tiff(data: bytes, max_pixels: int) -> Contents:
    """Reads the first directory of a TIFF. Raises DecodeError for more than `max_pixels` pixels, in the image or in its tiles."""
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    entry, number = struct.Struct(order + ("HHQ8s" if big else "HHI4s")), order + ("Q" if big else "I")
    try:
        (offset,) = struct.unpack_from(number, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, offset)
        start = offset + (8 if big else 2)
        entries = [entry.unpack_from(data, start + entry.size * index) for index in range(min(count, len(data) // entry.size))]
    except struct.error:
        raise DecodeError("is damaged: its directory is incomplete") from None
    if len(entries) < count:
        raise DecodeError("is damaged: its directory is incomplete")
    values = {tag: _value(order, kind, value) for tag, kind, _, value in entries}
    width, height = values.get(WIDTH, 0), values.get(HEIGHT, 0)
    check_pixels(width, height, max_pixels)
    if (across := values.get(TILE_WIDTH, 0)) and (down := values.get(TILE_HEIGHT, 0)):
        check_pixels(-(-width // across) * across, -(-height // down) * down, max_pixels)
    needed = NEEDED if values.get(SAMPLES, 1) > 1 else NEEDED - {PLANES}  # one sample is one plane, whatever the file says
    kept = {each[0]: entry.pack(*each) for each in reversed(entries) if each[0] in needed}
    directory = struct.pack(order + ("Q" if big else "H"), len(kept)) + b"".join(kept[tag] for tag in sorted(kept))
    end = len(data) + len(data) % 2
    head = data[:8] + struct.pack(number, end) if big else data[:4] + struct.pack(number, end)
    file = b"".join((head, data[len(head) :], b"\0" * (end - len(data)), directory, struct.pack(number, 0)))
    return Contents(width, height, lambda: file)


def _value(order: str, kind: int, value: bytes) -> int:
    """The first value of an entry that holds its values itself; 0 for one that does not hold integers."""
    form = {1: "B", 3: "H", 4: "I", 8: "H", 9: "I", 16: "Q"}.get(kind)  # some writers store sizes as signed
    return struct.unpack_from(order + form, value)[0] if form and struct.calcsize(form) <= len(value) else 0


def check_layout(tags: Mapping[int, Any]) -> None:
    """Raises DecodeError if strips or tiles are missing, whose pixels Pillow would leave black, and for separate planes that Pillow
    mixes up. `tags`: Pillow's, of an image that it has opened."""
    samples, separate = tags.get(SAMPLES, 1), tags.get(PLANES, 1) == 2
    if tags.get(COMPRESSION) == OLD_JPEG:  # it may have no strips
        return
    if TILES in tags:
        listed, parts = tags[TILES], -(-tags[WIDTH] // tags[TILE_WIDTH]) * -(-tags[HEIGHT] // tags[TILE_HEIGHT])
    else:
        listed, parts = tags[STRIPS], -(-tags[HEIGHT] // max(1, tags.get(STRIP_ROWS, tags[HEIGHT])))
    if len(listed) < (expected := parts * (samples if separate else 1)):
        raise DecodeError(f"is damaged: {expected - len(listed)} of {expected} parts of its pixels are missing")
    if separate and (samples < 3 or (tags.get(COMPRESSION) == UNCOMPRESSED and set(tags.get(BITS, (1,))) != {8})):
        raise DecodeError("stores its channels separately, which is supported for compressed or 8-bit colors: store them together")


def check_deflate(packed: bytes) -> None:
    """Raises DecodeError if a compressed strip or tile is damaged. libtiff stops before the checksum at its end."""
    stream = zlib.decompressobj()
    try:
        while packed and stream.decompress(packed, 1 << 24):
            packed = stream.unconsumed_tail
    except zlib.error as error:
        raise DecodeError(f"is damaged: its pixels cannot be unpacked ({error})") from None
    if not stream.eof:
        raise DecodeError("is damaged: a part of its pixels is missing")
