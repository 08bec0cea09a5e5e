"""The markers of a JPEG file: its size, and its image data without everything else.

Separation of concerns: decode.py decodes pixels. This module reads the markers before them (ITU-T T.81, annex B). libjpeg warns of
odd metadata and of damaged image data alike, and reports only its first warning. What `read_jpeg` keeps can cause warnings about
the image data only, so that a strict decoder refuses damage and nothing else:
- Of the application segments, which hold metadata, only what decides about colors is kept: whether there is a JFIF or an Adobe
  segment, and the color transform of the latter.
- Bytes between the segments are dropped, and so is everything after the end of the image.
- The spectral selection of a sequential scan, which some phones write wrongly and which no decoder needs, is set to its only value.
"""

import re
from dataclasses import dataclass, field, replace

from trainer.data.dataset import DecodeError
from trainer.data.image_file import check_end

FRAMES = {0xC0: "sequential", 0xC1: "sequential", 0xC2: "progressive", 0xC3: "lossless", 0xC9: "sequential", 0xCA: "progressive"}
"""The markers of frames that libjpeg decodes. The others are hierarchical."""
OTHER_FRAMES = {0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF}
TABLES = {0xC4, 0xCC, 0xDB, 0xDD}
"""Huffman tables, arithmetic coding conditioning, quantization tables, restart interval."""
END, SCAN, ADOBE = 0xD9, 0xDA, 0xEE
MAX_SCANS = 100
"""Encoders write 10 scans or so; each may cost as much time as a whole image, and takes only some 10 bytes."""
PADDING = 4
"""Equal bytes that are taken for padding. A few are left over by chance when a decoder loses its way."""
MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xdf\xe0-\xef\xfe]")
"""The start of a segment, or the end of the image. Restart markers and reserved codes cannot start a segment."""
SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""The first marker after the data of a scan, which contains 0xff only before 0 and in restart markers. Fill bytes (0xff) may come
before it; a pattern that includes them takes 16 times as long."""
JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"


@dataclass(frozen=True)
class Jpeg:
    width: int
    height: int
    channels: int
    exif: bytes
    """The EXIF segment; empty without one."""
    segments: tuple[bytes, ...] = field(repr=False)
    """The image data: the segments that a decoder needs. A scan's segment includes its data."""

    @property
    def data(self) -> bytes:
        return b"".join(self.segments)

    def with_surplus(self, surplus: bytes) -> "Jpeg":
        """With more data after each scan. Only an image that lacks data looks otherwise then."""
        return replace(self, segments=tuple(each + surplus * (each[1] == SCAN) for each in self.segments))

    def without_padding(self, count: int) -> "Jpeg | None":
        """Without the last `count` bytes of the scan that ends with the most equal bytes, as some cameras pad it. None if these are
        fewer than `count` or PADDING."""
        runs = {number: len(each) - len(each.rstrip(each[-1:])) for number, each in enumerate(self.segments) if each[1] == SCAN}
        longest = max(runs, key=lambda number: runs[number])
        if runs[longest] < max(count, PADDING):
            return None
        segments = (*self.segments[:longest], self.segments[longest][:-count], *self.segments[longest + 1 :])
        return replace(self, segments=segments)


def read_jpeg(data: bytes) -> Jpeg:
    """Reads the markers. Raises DecodeError for damage, missing scans, and kinds of JPEG that are not supported."""
    segments: list[bytes] = []
    frame, kind, exif, jfif, adobe = b"", "", b"", False, -1
    scans: list[bytes] = []
    position = 2
    while (found := MARKER.search(data, position)) and (code := data[found.start() + 1]) != END:
        start = found.end()
        length = int.from_bytes(data[start : start + 2])
        body = data[start + 2 : start + length]
        if length < 2 or len(body) != length - 2:
            if code in TABLES or code == SCAN or code in FRAMES:
                raise DecodeError("is damaged: a segment of its header is incomplete")
            position = start  # metadata of a wrong length
            continue
        position = start + length
        if code in TABLES:
            segments.append(data[found.start() : position])
        elif code in OTHER_FRAMES:
            raise DecodeError("is a hierarchical JPEG, which is not supported")
        elif code in FRAMES:
            if frame:
                raise DecodeError("is damaged: it has two frame headers")
            frame, kind = body, FRAMES[code]
            _check_frame(frame)
            segments.append(data[found.start() : position])
        elif code == SCAN:
            scan = _scan(body, frame, kind)
            scans.append(scan)
            if len(scans) > MAX_SCANS:
                raise DecodeError(f"has more than {MAX_SCANS} scans, which takes too long to decode")
            end = SCAN_END.search(data, position)
            stop = end.start() if end else len(data)
            pixels = data[position:stop].rstrip(b"\xff")
            if not end:
                check_end(pixels)
            segments.append(b"".join((b"\xff\xda", data[start : start + 2], scan, pixels)))
            position = stop
        elif code == ADOBE and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11]
        jfif = jfif or (code == 0xE0 and body.startswith(b"JFIF\0"))
        exif = exif or (body if code == 0xE1 and body.startswith(b"Exif\0\0") else b"")
    _check_scans(frame, kind, scans)
    components = frame[5]
    color = [JFIF] if jfif else []
    if adobe >= 0:
        known = {1: (0, 1), 3: (0, 1), 4: (0, 2)}[components]
        transform = adobe if adobe in known else known[1]  # as libjpeg assumes for an unknown one
        color.append(b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform]))
    height, width = int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])
    return Jpeg(width, height, components, exif, (b"\xff\xd8", *color, *segments, b"\xff\xd9"))


def _check_frame(frame: bytes) -> None:
    if len(frame) < 6 or len(frame) != 6 + 3 * frame[5]:
        raise DecodeError("is damaged: its frame header has a wrong length")
    precision, components = frame[0], frame[5]
    if precision != 8:
        raise DecodeError(f"has {precision}-bit samples: JPEGs of 8 bits are supported")
    if components not in (1, 3, 4):
        raise DecodeError(f"has {components} color channels: JPEGs of 1, 3 or 4 are supported")
    if not int.from_bytes(frame[1:3]) or not int.from_bytes(frame[3:5]):
        raise DecodeError("has a height or width of 0 in its header")


def _scan(header: bytes, frame: bytes, kind: str) -> bytes:
    """The header of a scan, checked; of a sequential one with the only valid spectral selection (0 to 63, no approximation)."""
    if not frame:
        raise DecodeError("is damaged: its pixels begin before its frame header")
    if not header or len(header) != 4 + 2 * header[0] or not 1 <= header[0] <= 4:
        raise DecodeError("is damaged: the header of a scan has a wrong length")
    return header[:-3] + b"\x00\x3f\x00" if kind == "sequential" else header


def _check_scans(frame: bytes, kind: str, scans: list[bytes]) -> None:
    """Raises DecodeError if no scan has, or no scan completes, a coefficient of a component. libjpeg would invent it, silently."""
    if not scans:
        raise DecodeError("is damaged: it has no image data")
    missing = {component: set(range(64 if kind == "progressive" else 1)) for component in frame[6::3]}
    for scan in scans:
        first, last, approximation = scan[-3:]
        for component in scan[1:-3:2]:
            if kind != "progressive":
                missing[component] = set()
            elif component in missing and not approximation & 15:
                missing[component] -= set(range(first, last + 1))
    if any(missing.values()):
        raise DecodeError("is damaged: scans are missing")
