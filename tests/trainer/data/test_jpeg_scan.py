"""trainer.data.jpeg_scan: stray bytes behind the pixels cost nothing, and image data that the decoder did not reach is no stray."""

import contextlib

import numpy as np
import pytest
import simplejpeg

from benchmarks.support.image_files import flip, on_white, photo, saved
from trainer.data.dataset import DecodeError
from trainer.data.decode import decode
from trainer.data.jpeg_file import read_jpeg
from trainer.data.jpeg_scan import without_stray

SHAPE, MANY = (32, 48, 3), 100_000_000


@pytest.mark.parametrize("subsampling", [0, 1, 2, "gray"])
@pytest.mark.parametrize("size", [(8, 8), (97, 61), (160, 120)])
def test_stray_bytes_cost_nothing(size, subsampling):
    """The photographs of some cameras and web servers would be quarantined."""
    random = np.random.default_rng(0)
    image = photo(*size)
    options = {} if subsampling == "gray" else {"subsampling": subsampling}
    data = saved(image.convert("L") if subsampling == "gray" else image, "JPEG", quality=88, optimize=True, **options)
    for count in (1, 3, 9, 40, 300):
        stray = bytes(random.integers(1, 255, count).astype(np.uint8))
        assert np.array_equal(decode(data[:-2] + stray + data[-2:], SHAPE, MANY), decode(data, SHAPE, MANY))


@pytest.mark.parametrize(
    ("picture", "options"),
    [
        (photo(200, 150), {}),
        (on_white(96, 64), {"subsampling": 0}),
        (on_white(97, 61), {"subsampling": 0, "optimize": True}),
        (photo(200, 150), {"restart_marker_blocks": 40}),
    ],
    ids=["photo", "white below", "white below, optimized", "restart markers"],
)
def test_image_data_that_the_decoder_did_not_reach_is_no_stray(picture, options):
    """Photographs that are shifted and discolored below a damage would be trained on."""
    random, left, accepted = np.random.default_rng(1), 0, 0
    data = saved(picture, "JPEG", quality=85, **options)
    start, whole = data.index(b"\xff\xda") + 14, decode(data, SHAPE, MANY).astype(int)
    for _ in range(250):
        damaged = bytearray(data)
        flip(damaged, int(random.integers(start, len(data) - 2)), 0, b"", random)
        try:
            simplejpeg.decode_jpeg(bytes(damaged), strict=True)
        except ValueError as error:
            if "extraneous" in str(error):
                left += 1
                with contextlib.suppress(DecodeError):
                    accepted += np.abs(decode(bytes(damaged), SHAPE, MANY) - whole).mean() > 1
    assert left > 15
    assert accepted <= left // 15


def test_whole_blocks_behind_the_last_one_are_image_data():
    """A photograph whose height was damaged would be trained on without its lower part."""
    data = saved(photo(64, 64), "JPEG", quality=85)
    at = data.index(b"\xff\xc0") + 5
    assert data[at : at + 2] == b"\x00\x40"
    assert without_stray(read_jpeg(data[:at] + b"\x00\x20" + data[at + 2 :]), 1) is None
    with pytest.raises(DecodeError, match="extraneous"):
        decode(data[:at] + b"\x00\x20" + data[at + 2 :], SHAPE, MANY)


def test_other_kinds_of_scans_are_left_to_the_decoder():
    """Their codes would be misread, and sound images changed."""
    assert without_stray(read_jpeg(saved(photo(), "JPEG", progressive=True)), 1) is None


def test_an_image_without_stray_bytes_is_not_tried_for_ever():
    """The reason of the quarantine would be a Python error, if an earlier interval is what the decoder complains about."""
    for options in ({}, {"restart_marker_blocks": 5}):
        assert without_stray(read_jpeg(saved(photo(), "JPEG", **options)), 1) is None


def test_damaged_tables_and_headers_are_no_reason_to_fail():
    """The reason of the quarantine would be a Python error."""
    random, data = np.random.default_rng(0), saved(photo(32, 32), "JPEG")
    for _ in range(60):
        damaged = bytearray(data[:-2] + b"\x12" * 20 + data[-2:])
        flip(damaged, int(random.integers(20, 640)), 0, b"", random)
        try:
            jpeg = read_jpeg(bytes(damaged))
        except DecodeError:
            continue
        without_stray(jpeg, 20)
