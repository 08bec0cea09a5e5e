"""Whether bytes that a JPEG decoder left over are stray, or image data that it did not reach because it had lost its way.

Separation of concerns: decode.py asks this about the rare files with such bytes. This module follows the codes of a Huffman-coded
sequential scan (ITU-T T.81, F.2.2), or of its last restart interval, without decoding a pixel, which takes about half a second for
each megabyte. Other kinds of scans (progressive, arithmetic, one for each component) it cannot follow.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from trainer.data.jpeg_file import Jpeg

FRAMES, TABLES, RESTART, SCAN = (0xC0, 0xC1), 0xC4, 0xDD, 0xDA
RESTARTED = re.compile(rb"\xff[\xd0-\xd7]")
Table = list[tuple[int, int]]
"""The next 16 bits -> the length of the code that they begin with, and its symbol; length 0 if they begin with none."""


def without_stray(jpeg: Jpeg, count: int) -> Jpeg | None:
    """The image without the bytes after its last block, of which the decoder left over `count`. None if they may be image data: if
    the codes before them are not valid, if the last block is not followed by ones up to the next byte, or if the bytes are whole
    blocks themselves. Of scans that cannot be followed, only padding of equal bytes is removed.

    In a restart interval of a few blocks, chance may satisfy all of this; damage is then accepted in these blocks and no others."""
    scans = [number for number, each in enumerate(jpeg.segments) if each[1] == SCAN]
    segments = {each[1]: each for each in jpeg.segments[: scans[0]]}
    frame = next((segments[code] for code in FRAMES if code in segments), None)
    if frame is None or len(scans) != 1:
        return jpeg.without_padding(count)
    scan = jpeg.segments[scans[0]]
    unit = _unit(frame, scan, _tables(jpeg))
    if unit is None:
        return None
    blocks, units = unit
    start = 2 + int.from_bytes(scan[2:4])
    if interval := int.from_bytes(segments.get(RESTART, b"")[4:6]):
        starts = [start, *(found.end() for found in RESTARTED.finditer(scan, start))]
        if len(starts) != -(-units // interval):
            return None
        units, start = (units - 1) % interval + 1, starts[-1]
    data = scan[start:].replace(b"\xff\x00", b"\xff")
    ends = _ends(data, blocks)
    last = next((end for number, end in enumerate(ends, 1) if number == units), None)
    if last is None or not _is_filled(data, last):
        return None
    length = (last + 7) // 8
    if length == len(data) or any((end + 7) // 8 == len(data) and _is_filled(data, end) for end in ends):
        return None
    shorter = scan[:start] + data[:length].replace(b"\xff", b"\xff\x00")
    return replace(jpeg, segments=(*jpeg.segments[: scans[0]], shorter, *jpeg.segments[scans[0] + 1 :]))


def _tables(jpeg: Jpeg) -> dict[int, Table]:
    """Class and number of a Huffman table, as its definition has them (T.81, B.2.4.2) -> the table."""
    found: dict[int, Table] = {}
    for segment in jpeg.segments:
        position = 4
        while segment[1] == TABLES and position + 17 <= len(segment):
            name, counts = segment[position], segment[position + 1 : position + 17]
            lengths = [length for length, count in enumerate(counts, 1) for _ in range(count)]
            table: Table = []
            for length, symbol in zip(lengths, segment[position + 17 :], strict=False):
                table += [(length, symbol)] * (1 << 16 - length)
            found[name] = (table + [(0, 0)] * (1 << 16))[: 1 << 16]
            position += 17 + sum(counts)
    return found


def _unit(frame: bytes, scan: bytes, tables: dict[int, Table]) -> tuple[list[tuple[Table, Table]], int] | None:
    """The tables of each block of a minimum coded unit (T.81, A.2), for the first and for other coefficients, and the number of
    units. None if the scan lacks a component or a table."""
    height, width = struct.unpack(">HH", frame[5:9])
    sampling = {frame[at]: (frame[at + 1] >> 4, frame[at + 1] & 15) for at in range(10, len(frame) - 2, 3)}
    across, down = (max(each[axis] for each in sampling.values()) for axis in (0, 1))
    if scan[4] != len(sampling) or not all(h and v for h, v in sampling.values()):
        return None
    if len(sampling) == 1:
        across = down = 1
        sampling = dict.fromkeys(sampling, (1, 1))
    blocks = []
    for component, chosen in zip(scan[5 : 5 + 2 * scan[4] : 2], scan[6 : 6 + 2 * scan[4] : 2], strict=True):
        first, others = tables.get(chosen >> 4), tables.get(0x10 | chosen & 15)
        if component not in sampling or first is None or others is None:
            return None
        blocks += [(first, others)] * (sampling[component][0] * sampling[component][1])
    return blocks, -(-width // (8 * across)) * -(-height // (8 * down))


def _ends(data: bytes, blocks: list[tuple[Table, Table]]) -> Iterator[int]:
    """The end of each unit, in bits, as long as their codes are valid and within `data`."""
    position, size = 0, 8 * len(data)
    octets = np.frombuffer(data + b"\xff" * 8, np.uint8).astype(np.uint32)
    windows = (octets[:-2] << 16 | octets[1:-1] << 8 | octets[2:]).data  # 24 bits from each byte on
    while True:
        for first, others in blocks:
            at, table = 0, first
            while at < 64:
                length, symbol = table[windows[position >> 3] >> 8 - (position & 7) & 0xFFFF]
                position += length + (symbol & 15)
                if not length or position > size:
                    return
                if table is first:
                    at, table = 1, others
                elif symbol & 15 or symbol == 0xF0:
                    at += (symbol >> 4) + 1
                else:
                    break
            if at > 64:
                return
        yield position


def _is_filled(data: bytes, position: int) -> bool:
    """Whether the rest of the byte is ones, as behind the last block (T.81, F.1.2.3)."""
    rest = -position % 8
    return not rest or data[position // 8] & (1 << rest) - 1 == (1 << rest) - 1
