"""The containers of PNG, WebP, GIF, AVIF and HEIC: their size, and their image data without everything else.

Separation of concerns: as jpeg_file.py, for the other formats whose container is a list of chunks. Pillow reads all chunks when it
opens a file, so that an odd color profile or a large text costs the image, and allocates the canvas of a GIF or WebP before
anybody can look at its size. TIFF and BMP need no reader here: opening them reads tags and allocates nothing.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from trainer.data.dataset import DecodeError

PNG, GIF = b"\x89PNG\r\n\x1a\n", b"GIF8"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Color type of a PNG -> samples of a pixel."""
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of an interlaced PNG: the first column and row of each pass, and the distances of its columns and rows."""
SURPLUS = 1 << 20
"""Bytes that a PNG may have after its last row. libpng ignores them."""
CHECKSUM_BITS = 4
"""Wrong bits of a checksum that may be its own damage, if the pixels' other checksum is right. Damaged pixels change about 16."""
UNWRITTEN = 4096
"""Zeros at the end of compressed pixels that an interrupted copy leaves: a page of a file system at least. WebP may end so, too."""
ITEM = re.compile(rb"infe(?:\x02...(?P<short>..)|\x03...(?P<long>....))..(?:av01|hvc1|hev1)", re.DOTALL)
"""An entry in an AVIF's or HEIC's list of items, for compressed pixels (ISO 14496-12, 8.11.6)."""
KEPT = re.compile(rb"IHDR|PLTE|tRNS|IDAT|IEND")
NEVER_WRITTEN = "is damaged: the end of its image data was never written, there are only zeros"
METADATA = re.compile(rb"tEXt|zTXt|iTXt|iCCP|gAMA|cHRM|cICP|sRGB|sBIT|sPLT|pHYs|bKGD|hIST|tIME|eXIf|acTL|fcTL|fdAT|oFFs|pCAL|sCAL")


@dataclass(frozen=True)
class Contents:
    """The first image of a file."""

    width: int
    height: int
    file: Callable[[], bytes] = field(repr=False)
    """Makes the file without metadata and further images. Takes as much memory as the pixels; raises DecodeError for damage."""
    exif: bytes = b""
    other: Callable[[], bytes] | None = field(default=None, repr=False)
    """If the image data ends in UNWRITTEN zeros or more: makes the file with other bytes at their end. Only if the zeros were never
    written over has it the same pixels."""


def check_end(packed: bytes) -> None:
    """Raises DecodeError if `packed`, compressed pixels of a format that never writes many zeros, ends with them."""
    if packed.endswith(bytes(UNWRITTEN)):
        raise DecodeError(NEVER_WRITTEN)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))))


def read_png(data: bytes, max_pixels: int) -> Contents:
    """Reads a PNG. Its pixels are unpacked here and stored uncompressed, because Pillow does not compare checksums while it decodes
    and fills missing pixels with black.

    Raises DecodeError for more than `max_pixels` pixels, and if checksums show damage; Contents.file if the pixels are wrong.
    """
    header, kept, packed, exif, sound = b"", [], [], b"", True
    for kind, body, wrong in _png_chunks(data):
        intact = not wrong
        if kind == b"IDAT":
            if wrong > CHECKSUM_BITS:
                raise DecodeError("is damaged: the checksum of its pixels is wrong")
            sound = sound and intact
            packed.append(body)
        elif kind == b"eXIf" and intact:
            exif = body
        elif not intact and not METADATA.match(kind) and not packed:  # perhaps the palette, or a chunk that was the palette
            raise DecodeError("is damaged: the checksum of a chunk before its pixels is wrong")
        elif kind in (b"IHDR", b"PLTE", b"tRNS"):
            header = header or body
            kept.append(png_chunk(kind, body))
    if len(header) != 13:
        raise DecodeError("is damaged: its header is incomplete")
    width, height, depth, color, *_, interlaced = struct.unpack(">IIBBBBB", header)
    check_pixels(width, height, max_pixels)
    if not width or not height or color not in CHANNELS or depth not in (1, 2, 4, 8, 16) or interlaced > 1:
        raise DecodeError("is damaged: its header has invalid values")
    size = _png_bytes(width, height, depth * CHANNELS[color], interlaced)

    def file() -> bytes:
        rows = png_chunk(b"IDAT", zlib.compress(_unpacked(b"".join(packed), size, sound), 0))  # no copy outlives its use
        return b"".join((PNG, *kept, rows, png_chunk(b"IEND", b"")))

    return Contents(width, height, file, exif)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Kind, content and the number of wrong bits of the checksum, of each chunk before IEND."""
    position = len(PNG)
    while (kind := data[position + 4 : position + 8]) != b"IEND" and len(kind) == 4:
        (length,) = struct.unpack_from(">I", data, position)
        body = data[position + 8 : position + 8 + length]
        end = position + 12 + length
        checksum = data[end - 4 : end]
        wrong = (int.from_bytes(checksum) ^ zlib.crc32(body, zlib.crc32(kind))).bit_count() if len(checksum) == 4 else 1
        yield kind, body, wrong
        if wrong and not KEPT.match(kind):  # metadata whose length may be wrong, too
            found = KEPT.search(data, position + 8)
            end = found.start() - 4 if found else len(data)
        position = end


def _png_bytes(width: int, height: int, bits: int, interlaced: int) -> int:
    """Bytes of all rows, each with its filter byte. `bits`: of a pixel."""
    passes = PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
    return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0 and rows > 0)


def _unpacked(packed: bytes, expected: int, sound: bool) -> bytes:
    """The rows. They are right if the checksum of the chunks or of the rows says so. `sound`: whether that of the chunks does."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        rows = stream.decompress(packed[2:], expected + SURPLUS)
    except zlib.error as error:
        raise DecodeError(f"is damaged: its pixels cannot be unpacked ({error})") from None
    if len(rows) < expected:
        raise DecodeError(f"is damaged: {expected - len(rows)} of {expected} bytes of its pixels are missing")
    if not (stream.eof and stream.unused_data[:4] == struct.pack(">I", zlib.adler32(rows))) and not (sound and stream.eof):
        raise DecodeError("is damaged: the checksum of its pixels is wrong")
    return rows[:expected]


def read_webp(data: bytes, max_pixels: int) -> Contents:
    """Reads a WebP. Raises DecodeError for more than `max_pixels` pixels or if the image data is incomplete."""
    chunks = list(_riff_chunks(data[12:]))
    exif = next((body for kind, body, _ in chunks if kind == b"EXIF"), b"")
    width, height = 0, 0
    kept: list[bytes] = []
    for kind, body, complete in chunks:
        if kind == b"VP8X" and len(body) >= 10 and not kept:
            width, height = 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
            kept.append(_riff_chunk(kind, bytes([body[0] & 0x12]) + body[1:10]))  # of the flags, only animation and alpha
        elif kind in (b"ANIM", b"ALPH"):
            kept.append(_riff_chunk(kind, body))
        elif kind in (b"ANMF", b"VP8 ", b"VP8L"):
            if not complete:
                raise DecodeError("is damaged: its image data is incomplete")
            kept.append(_riff_chunk(kind, body))
            columns, rows = _webp_size({k: b for k, b, _ in _riff_chunks(body[16:])} if kind == b"ANMF" else {kind: body})
            width, height = max(width, columns), max(height, rows)
            break
    if not width or not height:
        raise DecodeError("is damaged: it has no image data")
    check_pixels(width, height, max_pixels)
    body = b"WEBP" + b"".join(kept)

    def file(body: bytes = body) -> bytes:
        return b"RIFF" + struct.pack("<I", len(body)) + body

    changed = UNWRITTEN // 2
    other = (lambda: file(body[:-changed] + b"\xa5" * changed)) if body.endswith(bytes(UNWRITTEN)) else None
    return Contents(width, height, file, exif, other)


def _riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Kind, content and whether it is complete, of each chunk."""
    position = 0
    while position + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, position + 4)
        body = data[position + 8 : position + 8 + length]
        yield data[position : position + 4], body, len(body) == length
        position += 8 + length + length % 2


def _webp_size(chunks: dict[bytes, bytes]) -> tuple[int, int]:
    """Width and height in a bitstream's header (RFC 6386, 9.1; RFC 9649, 3.4); 0 if it is none."""
    if len(body := chunks.get(b"VP8 ", b"")) >= 10 and body[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    if len(body := chunks.get(b"VP8L", b"")) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return 0, 0


def read_gif(data: bytes, max_pixels: int) -> Contents:
    """Reads the first image of a GIF (GIF89a, 18-23). Raises DecodeError for more than `max_pixels` pixels or without an image."""
    if len(data) < 13:
        raise DecodeError("is damaged: its header is incomplete")
    width, height = struct.unpack_from("<HH", data, 6)
    position = 13 + _gif_colors(data[10])
    head, control = data[:position], b""
    while (kind := data[position : position + 1]) == b"!":
        end = _gif_blocks_end(data, position + 2)
        if data[position + 1 : position + 2] == b"\xf9":  # the next image's transparent color
            control = data[position:end]
        position = end
    if kind != b"," or len(data) < position + 11:
        raise DecodeError("is damaged: it has no image data")
    x, y, columns, rows, flags = struct.unpack_from("<HHHHB", data, position + 1)
    width, height = max(width, x + columns), max(height, y + rows)
    check_pixels(width, height, max_pixels)
    end = _gif_blocks_end(data, position + 11 + _gif_colors(flags))
    return Contents(width, height, lambda: head + control + data[position:end] + b"\0;")


def _gif_colors(flags: int) -> int:
    """Bytes of a color table."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _gif_blocks_end(data: bytes, position: int) -> int:
    """The end of a list of blocks, behind the empty one that ends it."""
    while position < len(data) and data[position]:
        position += 1 + data[position]
    return position + 1


def without_exif(data: bytes) -> bytes:
    """An AVIF or HEIC file whose EXIF block is renamed, so that no reader looks at it: the container has its own orientation
    (ISO 23008-12, 6.5.10 and A.2), and a broken block would cost the image."""
    return re.sub(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", rb"\1skip", data, flags=re.DOTALL)


def check_items(data: bytes) -> None:
    """Raises DecodeError if compressed pixels of an AVIF or HEIC file end behind the end of the file, or in zeros. libheif leaves
    the tiles of a grid blank that are not there, and cameras write grids. Codecs end with a few zeros at most; metadata may."""
    pixels = {int.from_bytes(found["short"] or found["long"]) for found in ITEM.finditer(data)}
    position = data.find(b"iloc") + 4

    def number(size: int) -> int:
        nonlocal position
        position += size
        return int.from_bytes(data[position - size : position])

    version, sizes = number(4) >> 24, number(2)  # ISO 14496-12, 8.11.3
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    wide, between = 2 * (version == 2) + 2, index_size * (version > 0)
    left = number(wide)
    while left and position < len(data):
        item, left = number(wide), left - 1
        in_file = version == 0 or number(2) & 15 == 0
        number(2)
        base, extents = number(base_size), number(2)
        while extents and position < len(data):
            extents -= 1
            position += between
            start = base + number(offset_size)
            end = start + number(length_size)
            if item not in pixels or not in_file:
                continue
            if end > len(data):
                raise DecodeError(f"is damaged: {end - len(data)} bytes of its image data are missing")
            check_end(data[max(start, end - UNWRITTEN) : end])


def tiles(data: bytes) -> Iterator[bytes]:
    """For each tile of a HEIC file whose image is a grid of them: a file whose image is that tile. libheif leaves a damaged tile
    blank, but reports it if the tile is the image."""
    data = re.sub(rb"infe([\x02\x03]..)\x01", rb"infe\1\0", data, flags=re.DOTALL)  # tiles are hidden, which an image may not be
    place, references = data.find(b"pitm") + 4, data.find(b"iref")
    if place < 4 or references < 4:
        return
    size = 4 if data[place] else 2  # ISO 14496-12, 8.11.4 and 8.11.12
    primary = data[place + 4 : place + 4 + size]
    wide = 4 if data[references + 4] else 2
    position, end = references + 8, references - 4 + int.from_bytes(data[references - 4 : references])
    while position + 8 < min(end, len(data)):
        length, kind, body = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8], position + 8
        if kind == b"dimg" and int.from_bytes(data[body : body + wide]) == int.from_bytes(primary):
            count = int.from_bytes(data[body + wide : body + wide + 2])
            for first in range(body + wide + 2, min(body + wide + 2 + count * wide, len(data) - wide), wide):
                tile = int.from_bytes(data[first : first + wide])
                if tile < 256**size:
                    yield data[: place + 4] + tile.to_bytes(size) + data[place + 4 + size :]
        position += max(length, 8)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises DecodeError if width times height is above `max_pixels`."""
    if width * height > max_pixels:
        raise DecodeError(f"has {width} x {height} pixels, above data.max_pixels = {max_pixels}", max_pixels)
