"""trainer.data.jpeg_file through decode: quirks of JPEG files cost nothing, damage of their image data is refused."""

import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from benchmarks.support.image_files import flip, on_white, photo, saved
from trainer.data.dataset import DecodeError
from trainer.data.decode import decode
from trainer.data.jpeg_file import MARKER

SHAPE, MANY = (32, 48, 3), 100_000_000
GOOD = saved(photo(), "JPEG", quality=90)
PROGRESSIVE = saved(photo(), "JPEG", quality=90, progressive=True)
RESTARTS = saved(photo(), "JPEG", quality=90, restart_marker_rows=1)
WHITE = saved(on_white(96, 64), "JPEG", quality=85, subsampling=0)
WHITE_OPTIMIZED = saved(on_white(97, 61), "JPEG", quality=85, subsampling=0, optimize=True)
WHITE_PROGRESSIVE = saved(on_white(400, 300), "JPEG", quality=85, progressive=True)


def pixels(data: bytes) -> np.ndarray:
    return decode(data, SHAPE, MANY)


def before(data: bytes, marker: int, inserted: bytes) -> bytes:
    at = data.index(bytes([0xFF, marker]))
    return data[:at] + inserted + data[at:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2) + body


def selection(data: bytes, values: bytes) -> bytes:
    """With other spectral selection parameters in its scan."""
    at = data.index(b"\xff\xda") + 2
    end = at + int.from_bytes(data[at : at + 2])
    return data[: end - 3] + values + data[end:]


JFIF = GOOD.index(b"JFIF\0") + 5
QUIRKS = {
    "JFIF revision 0.02": GOOD[:JFIF] + b"\x00\x02" + GOOD[JFIF + 2 :],
    "JFIF revision 9.99": GOOD[:JFIF] + b"\x09\x63" + GOOD[JFIF + 2 :],
    "no JFIF segment": GOOD[:2] + GOOD[20:],
    "JFIF of a wrong length": GOOD[:4] + b"\xff\xff" + GOOD[6:],
    "spectral selection of 0 to 0": selection(GOOD, b"\x00\x00\x00"),
    "spectral selection of 99 to 1": selection(GOOD, b"\x63\x01\x11"),
    "random bytes before each table": before(before(GOOD, 0xDB, b"\x12\x34"), 0xC4, b"\x00\x77\xff"),
    "random bytes before the frame": before(GOOD, 0xC0, b"\x12\x34"),
    "random bytes before the scan": before(GOOD, 0xDA, b"\x12\x34\x56"),
    "fill bytes before a marker": before(GOOD, 0xC0, b"\xff\xff\xff"),
    "a damaged color profile": before(GOOD, 0xDB, segment(0xE2, b"ICC_PROFILE\0\x07\x01" + bytes(range(256)) * 4)),
    "the largest segment, many times": before(GOOD, 0xDB, segment(0xE2, bytes(65533)) * 20),
    "a comment that looks like a scan": before(GOOD, 0xDB, segment(0xFE, b"\xff\xda\xff\xd9")),
    "an unknown color transform": before(GOOD, 0xDB, segment(0xEE, b"Adobe\0\x64\0\0\0\0\x07")),
    "a segment that the format reserves": before(GOOD, 0xDB, b"\xff\x02\x00\x01"),
    "zeros before the end": GOOD[:-2] + bytes(300) + GOOD[-2:],
    "other padding before the end": GOOD[:-2] + b"\x55" * 31 + GOOD[-2:],
    "no end": GOOD[:-2],
    "something after the end": GOOD + b"\xff\xd8\xff\xc0 another file",
}


@pytest.mark.parametrize("quirk", sorted(QUIRKS))
def test_quirks_of_cameras_and_editors_cost_nothing(quirk):
    """Sound photographs would be quarantined, and a set with a few percent of them refused."""
    assert np.array_equal(pixels(QUIRKS[quirk]), pixels(GOOD))


STRAY = {"zeros": bytes(200), "other padding": b"\x55" * 31, "stray bytes": b"\x12\x34\x56\x78\x9a\xbc\xde\xf0\x01\x02"}


@pytest.mark.parametrize("stray", sorted(STRAY))
def test_stray_bytes_behind_restart_markers_cost_nothing(stray):
    """Many cameras write restart markers, and some of them stray bytes: all of their photographs would be quarantined."""
    for blocks in (1, 2, 7, 48, 1000):
        data = saved(photo(), "JPEG", quality=90, restart_marker_blocks=blocks)
        assert np.array_equal(pixels(data[:-2] + STRAY[stray] + data[-2:]), pixels(data))


@pytest.mark.parametrize(("stray", "kept"), [("zeros", True), ("other padding", True), ("stray bytes", False)])
def test_only_padding_behind_a_progressive_scan_costs_nothing(stray, kept):
    """A padded progressive photograph would be quarantined, or one whose decoder had lost its way would be trained on."""
    data = PROGRESSIVE[:-2] + STRAY[stray] + PROGRESSIVE[-2:]
    if kept:
        assert np.array_equal(pixels(data), pixels(PROGRESSIVE))
    else:
        with pytest.raises(DecodeError, match="extraneous bytes"):
            pixels(data)


def test_padding_between_the_scans_costs_nothing():
    """A progressive photograph that was padded would be quarantined."""
    starts = [found.start() for found in MARKER.finditer(PROGRESSIVE) if PROGRESSIVE[found.start() + 1] == 0xC4][2:]
    padded = PROGRESSIVE
    for start in reversed(starts):
        padded = padded[:start] + bytes(5) + padded[start:]
    assert len(starts) > 2
    assert np.array_equal(pixels(padded), pixels(PROGRESSIVE))


def lossless(image: np.ndarray) -> bytes:
    """A lossless JPEG of uint8 [H, W, C], each sample predicted from the one to its left (ITU-T T.81, annex H, predictor 1)."""
    height, width, channels = image.shape
    values = image.astype(int)
    predicted = np.full_like(values, 128)
    predicted[1:, 0], predicted[:, 1:] = values[:-1, 0], values[:, :-1]
    bits = ""
    for difference in (values - predicted).ravel().tolist():
        size = abs(difference).bit_length()
        bits += f"{size:04b}"  # the Huffman code of each size: itself, in 4 bits
        bits += f"{(difference if difference > 0 else difference - 1) & (1 << size) - 1:0{size}b}" if size else ""
    bits += "1" * (-len(bits) % 8)
    ids = range(1, channels + 1)
    frame = struct.pack(">BHHB", 8, height, width, channels) + b"".join(bytes([each, 0x11, 0]) for each in ids)
    scan = bytes([channels]) + b"".join(bytes([each, 0]) for each in ids) + b"\x01\x00\x00"
    table = bytes([0, 0, 0, 0, 9] + [0] * 12) + bytes(range(9))
    packed = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\x00")
    return b"\xff\xd8" + segment(0xC4, table) + segment(0xC3, frame) + segment(0xDA, scan) + packed + b"\xff\xd9"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_lossless_jpeg(channels):
    """Medical images, many of them gray, would be lost, or the header of their scan overwritten with that of a photograph."""
    image = np.asarray(photo(40, 30))[..., :channels]
    data = lossless(image)
    assert np.array_equal(decode(data, (30, 40, 3), MANY), np.broadcast_to(image, (30, 40, 3)))
    with pytest.raises(DecodeError):
        pixels(data[: len(data) // 2] + b"\xff\xd9")


@pytest.mark.parametrize(
    "data",
    [GOOD, PROGRESSIVE, RESTARTS, WHITE, WHITE_OPTIMIZED, WHITE_PROGRESSIVE],
    ids=["baseline", "progressive", "restart markers", "white below", "white below, optimized", "white below, progressive"],
)
def test_damage_that_the_decoder_notices_is_refused(data):
    """The network would learn from photographs that are shifted and discolored below the damage. Of a picture that is white below,
    the decoder leaves over a byte or two, which look like padding."""
    random, start, noticed = np.random.default_rng(0), data.index(b"\xff\xda") + 14, 0
    end = data.index(b"\xff\xd2") if data is RESTARTS else len(data) - 2
    for _ in range(150):
        damaged = bytearray(data)
        flip(damaged, int(random.integers(start, end)), 0, b"", random)
        try:
            simplejpeg.decode_jpeg(bytes(damaged), strict=True)
        except ValueError:
            noticed += 1
            with pytest.raises(DecodeError):
                pixels(bytes(damaged))
    assert noticed > 15


def test_damage_in_the_last_restart_interval_is_refused_or_stays_there():
    """A few blocks do not always tell stray bytes from image data. The rest of the photograph would be damaged as well."""
    random, start, refused = np.random.default_rng(0), RESTARTS.index(b"\xff\xd2"), 0
    whole = decode(RESTARTS, (64, 96, 3), MANY)
    for _ in range(150):
        damaged = bytearray(RESTARTS)
        flip(damaged, int(random.integers(start, len(RESTARTS) - 2)), 0, b"", random)
        try:
            assert np.array_equal(decode(bytes(damaged), (64, 96, 3), MANY)[:47], whole[:47])  # 47: its colors are interpolated
        except DecodeError:
            refused += 1
    assert refused > 15


@pytest.mark.parametrize("data", [GOOD, PROGRESSIVE], ids=["baseline", "progressive"])
def test_a_file_that_lost_a_part_is_refused(data):
    """The network would learn from the half-gray images of incomplete uploads."""
    start = data.index(b"\xff\xda") + 14
    for cut in range(start, len(data) - 4, max(1, (len(data) - start) // 50)):
        for end in (b"", b"\xff\xd9", b"\xff\xd0\xff\xd9"):
            with pytest.raises(DecodeError):
                pixels(data[:cut] + end)


def test_a_progressive_file_that_lost_whole_scans_is_refused():
    """The network would learn from blurred photographs, because the decoder does not miss scans."""
    scans = [found.start() for found in MARKER.finditer(PROGRESSIVE) if PROGRESSIVE[found.start() + 1] == 0xDA]
    for start in scans[1:]:
        with pytest.raises(DecodeError, match=r"scans are missing"):
            pixels(PROGRESSIVE[:start] + b"\xff\xd9")


def test_metadata_may_be_damaged_at_random():
    """A flipped bit in a camera's notes would cost the photograph."""
    exif = Image.Exif()
    exif[0x010E] = "a description " * 20
    data = saved(photo(), "JPEG", quality=90, exif=exif, comment=b"a comment", icc_profile=bytes(range(200)))
    start, end = data.index(b"Exif"), data.index(b"\xff\xdb")
    random, whole = np.random.default_rng(0), pixels(data)
    for _ in range(100):
        damaged = bytearray(data)
        at = int(random.integers(start, end))
        if damaged[at - 1] == 0xFF or damaged[at] == 0xFF or damaged[at - 2] == 0xFF or damaged[at - 3] == 0xFF:
            continue  # a marker or a length: what follows is no longer metadata
        flip(damaged, at, 0, b"", random)
        assert np.array_equal(pixels(bytes(damaged)), whole)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.replace(b"\xff\xc0", b"\xff\xc5", 1), "is a hierarchical JPEG"),
        (lambda data: data[: data.index(b"\xff\xc0")] + data[data.index(b"\xff\xc4") :], "pixels begin before its frame header"),
        (lambda data: data[: data.index(b"\xff\xda")], "has no image data"),
        (lambda data: data[: data.index(b"\xff\xc0") + 9], "a segment of its header is incomplete"),
        (lambda data: before(data, 0xC0, data[data.index(b"\xff\xc0") :][:19]), "two frame headers"),
        (lambda data: data.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c", 1), "has 12-bit samples"),
    ],
)
def test_broken_headers_are_refused_with_a_reason(change, reason):
    """The list of quarantined images would not say what is wrong with them."""
    with pytest.raises(DecodeError, match=reason):
        pixels(change(GOOD))
