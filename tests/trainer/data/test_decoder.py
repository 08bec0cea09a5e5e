"""trainer.data.decoder on real processes that crash, stall or need too much."""

import fcntl
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks.decoder_fuzz import fuzz
from benchmarks.support.image_files import photo, saved, seeds
from trainer.data import decoder as module
from trainer.data.dataset import DecodeError
from trainer.data.decode import decode
from trainer.data.decoder import Decoder, DecoderError

SHAPE, MANY = (16, 24, 3), 100_000_000


@pytest.fixture(scope="module")
def decoder():
    with Decoder(SHAPE, MANY) as decoder:
        yield decoder


def test_pixels_and_reasons_are_those_of_the_decoder_itself(decoder):
    """A training run would see other images than the tests of the decoder."""
    for files in seeds().values():
        for data in files.values():
            assert np.array_equal(decoder.decode(data), decode(data, SHAPE, MANY))
    for data in (b"", b"text", saved(photo(), "PNG")[:-40]):
        with pytest.raises(DecodeError) as expected:
            decode(data, SHAPE, MANY)
        with pytest.raises(DecodeError) as found:
            decoder.decode(data)
        assert str(found.value) == str(expected.value)
    huge = saved(photo(), "BMP")
    with pytest.raises(DecodeError) as error:
        decoder.decode(huge[:18] + struct.pack("<ii", 20_000, 20_000) + huge[26:])
    assert error.value.max_pixels == MANY


def test_an_image_whose_process_died_once_is_tried_again(decoder):
    """A process that the kernel killed for another one's memory would cost a sound image."""
    data = saved(photo(), "PNG")
    decoder.decode(data)
    before = decoder.process
    os.kill(before.pid, signal.SIGKILL)
    assert np.array_equal(decoder.decode(data), decode(data, SHAPE, MANY))
    assert decoder.process is not before


class Crashing(Decoder):
    """Its processes receive a signal before they can answer."""

    number = signal.SIGSEGV
    started = 0

    def _start(self):
        super()._start()
        self.started += 1
        os.kill(self.process.pid, self.number)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGSEGV, r"died \(SIGSEGV\)"), (signal.SIGXCPU, "took too much processor time")]
)
def test_an_image_that_killed_two_processes_is_refused(number, reason):
    """The image would be tried for ever, and the log would not say which one it is."""
    with Crashing(SHAPE, MANY) as decoder:
        decoder.number = number
        with pytest.raises(DecodeError, match=rf"^cannot be decoded: it ended 2 decoder processes; the last one {reason}$"):
            decoder.decode(saved(photo(), "PNG"))
        assert decoder.started == 2
        decoder.number = 0
        assert decoder.decode(saved(photo(), "PNG")).shape == SHAPE


def test_a_process_that_does_not_answer_is_ended():
    """One image would stall the job for ever."""
    with Crashing(SHAPE, MANY, stall_seconds=0.2) as decoder:
        decoder.number = signal.SIGSTOP
        with pytest.raises(DecodeError, match=r"the last one did not answer within 0.2 seconds$"):
            decoder.decode(saved(photo(), "PNG"))


def test_a_process_that_cannot_start_is_not_the_images_fault(monkeypatch):
    """A machine without memory or Python would quarantine all images."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Decoder(SHAPE, MANY) as decoder, pytest.raises(DecoderError, match=r"ended with code 1 .*Fix: ") as error:
        decoder.decode(saved(photo(), "PNG"))
    assert error.value.transient


def test_processor_time_and_memory_are_bounded():
    """An image could run for hours, or take the memory of all other processes."""
    limit = "from trainer.data.decoder import _bound\n_bound({}, 50_000_000)\n"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}

    def run(program: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60, check=False)

    assert run(limit.format(0) + "while True: pass").returncode == -signal.SIGXCPU
    assert b"MemoryError" in run(limit.format(9) + "bytearray(100_000_000)").stderr
    assert run(limit.format(9) + "bytearray(10_000_000)").returncode == 0


def test_the_process_ends_with_its_owner():
    """Processes would pile up on the machines of a cluster."""
    program = (
        "from trainer.data.decoder import Decoder\n"
        "decoder = Decoder((4, 4, 3), 100)\n"
        "decoder._start()\n"
        "print(decoder.process.pid, flush=True)\n"
        "import os, signal\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60, check=False)
    for _ in range(1000):
        if not os.path.exists(f"/proc/{int(done.stdout)}"):
            return
        time.sleep(0.01)
    pytest.fail("the process still runs")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _gif(side: int) -> bytes:
    frame = struct.pack("<HHHHB", 0, 0, side, side, 0)
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff," + frame + b"\x02\x02\x44\x01\x00;"


def _progressive(scans: int) -> bytes:
    data = saved(photo(), "JPEG", progressive=True)
    end = data.rindex(b"\xff\xda")
    return data[:end] + data[end:-2] * scans + b"\xff\xd9"


def _tiled(side: int) -> bytes:
    """A TIFF of 100 x 100 pixels in one tile."""
    body = zlib.compress(bytes(1000))
    tags = {256: 100, 257: 100, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(body)}
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + directory + bytes(4)


def _webp(side: int) -> bytes:
    data = saved(photo(), "WEBP", lossless=True)
    return data[:21] + ((side - 1) | (side - 1) << 14).to_bytes(4, "little") + data[25:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_gif(65535), "has 65535 x 65535 pixels"),
        (_webp(16000), "has 16000 x 16000 pixels"),
        (_progressive(100), "has more than 100 scans"),
        (_tiled(16384), "has 16384 x 16384 pixels"),
        (
            b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
            + _chunk(b"IDAT", zlib.compress(bytes(200_000_000), 1)) + _chunk(b"IEND", b""),
            "the checksum of its pixels is wrong",
        ),
    ],
    ids=["GIF", "WebP", "progressive JPEG", "TIFF tile", "PNG with more rows than its height"],
)  # fmt: skip
def test_a_small_file_takes_little_time_and_memory(decoder, data, reason):
    """A file of a few bytes could take gigabytes or minutes on each machine of a cluster."""
    with pytest.raises(DecodeError, match=reason):
        decoder.decode(data)
    peak = int(open(f"/proc/{decoder.process.pid}/status").read().split("VmHWM:")[1].split()[0])  # noqa: SIM115
    assert peak < 150_000  # kB; Python and the libraries take a third of it


def test_a_large_image_in_a_small_file_is_decoded():
    """Screenshots, drawings and smooth photographs of 20 million pixels or more would be refused as if they were bombs."""
    rows = zlib.compress((b"\0" + b"\xc8" * 16_500) * 5500, 1)
    header = struct.pack(">IIBBBBB", 5500, 5500, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    with Decoder(SHAPE, MANY) as large:
        assert (large.decode(data) == 200).all()


def test_very_large_images_take_turns():
    """Each core of a machine would take gigabytes at the same time, and Kubernetes ends the container, images and all."""
    rows = zlib.compress((b"\0" + b"\xc8" * 18_300) * 6100, 1)
    header = struct.pack(">IIBBBBB", 6100, 6100, 8, 2, 0, 0, 0)
    assert module.LARGE < 6100**2
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    lock = Path(tempfile.gettempdir(), f"spikewise-large-image.{os.getuid()}")
    with Decoder(SHAPE, MANY, stall_seconds=2.0) as large, ThreadPoolExecutor(1) as pool, lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        found = pool.submit(large.decode, data)
        with pytest.raises(TimeoutError):  # it waits, longer than a stalled process may
            found.result(timeout=3)
        fcntl.flock(other, fcntl.LOCK_UN)
        assert (found.result() == 200).all()


def test_answers_that_cannot_be_right_end_the_process(decoder, monkeypatch):
    """A decoder that was damaged by an image could fill its owner's memory."""
    monkeypatch.setattr(module, "MESSAGE_BYTES", 0)
    monkeypatch.setattr(decoder, "image_shape", (1, 1, 3))
    with pytest.raises(DecodeError, match="it ended 2 decoder processes"):
        decoder.decode(b"this makes a reason of more than three bytes")


@pytest.mark.parametrize("form", sorted(seeds()))
def test_random_damage_neither_kills_nor_stalls_nor_bloats(form):
    """One of the many damaged files of a large data set would end the job."""
    found = fuzz(form, mutations=50, seconds=60)
    assert found["files"] == 50
    assert found["died"] == 0
    assert found["worst"]["MB"] < 100
