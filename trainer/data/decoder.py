"""Decodes images in a process that may die, within bounds on time and memory.

Separation of concerns: decode.py decodes. This module keeps a process that runs it, and starts it anew when an image has
crashed, stalled or bloated it. An image that ended two processes is refused, like a damaged one.

The process and its owner exchange messages over a socket: a length (8 bytes) and that many bytes. A request is an image file. An
answer is one byte, PIXELS or REFUSED, and then the pixels, or the reason and the exceeded bound as JSON. Before it, empty messages
say that the process waits. It ends when its owner does.
"""

import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer import UserError
from trainer.data.dataset import DecodeError
from trainer.data.decode import open_image, pixels

PIXELS, REFUSED = b"p", b"r"
TRIES = 2
SECONDS, SECONDS_PER_MEGAPIXEL = 10.0, 0.5
"""Processor time that an image may take. A sound one takes less than a tenth."""
BYTES, BYTES_PER_PIXEL, BYTES_PER_FILE_BYTE = 256_000_000, 32, 4
"""Address space that an image may take, beyond that of the process before. Decoders keep a few copies of pixels and file."""
LARGE = 32_000_000
"""Pixels above which a machine decodes one image at a time: one of 100 megapixels may take 2 GB, on each core."""
STALL_SECONDS = 300.0
"""Longest wait for an answer: for a process that makes no progress, but takes no processor time either."""
MESSAGE_BYTES = 10_000
"""Longest answer without pixels."""
WAIT_SECONDS = 0.2
"""Between two looks whether it is a large image's turn."""
START_SECONDS = 60.0
"""Longest wait for a new process, which imports for a second."""


class DecoderError(UserError):
    """A machine cannot run the process; no image is to blame."""


class _DiedError(Exception):
    """The process has ended; the message says why, as a sentence that follows "decoder process, which"."""


class Decoder:
    """A process that decodes images to one shape. A context manager: it ends the process."""

    def __init__(self, image_shape: tuple[int, int, int], max_pixels: int, *, stall_seconds: float = STALL_SECONDS) -> None:
        self.image_shape, self.max_pixels = image_shape, max_pixels
        self.stall_seconds = stall_seconds
        self.process: subprocess.Popen[bytes] | None = None
        """None until an image is decoded, and after the process has died."""
        self._socket: socket.socket

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decode(self, data: bytes) -> np.ndarray:
        """As decode.decode. Raises DecodeError, also for an image that ended its process twice, and DecoderError."""
        for attempt in range(1, TRIES + 1):
            if self.process is None:
                self._start()
            try:
                return self._ask(data)
            except _DiedError as error:
                if attempt == TRIES:
                    raise DecodeError(f"cannot be decoded: it ended {TRIES} decoder processes; the last one {error}") from None
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self._socket.close()
            self.process = None

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        height, width, _ = self.image_shape
        arguments = [str(each) for each in (theirs.fileno(), height, width, self.max_pixels)]
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OPENBLAS_NUM_THREADS": "1",  # each of its threads would reserve address space
        }
        with theirs:
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "trainer.data.decoder", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # for what libraries print
                    pass_fds=[theirs.fileno()],
                    env=environment,
                )
            except OSError as error:
                self._socket.close()
                raise _start_error(f"cannot be started: {error.strerror}") from None
        try:
            _receive(self._socket, 0, START_SECONDS)
        except (OSError, EOFError):
            code = self._ended()
            raise _start_error("does not answer" if code is None else f"ended with code {code}") from None

    def _ask(self, data: bytes) -> np.ndarray:
        """The pixels that the process answers with. Raises DecodeError and _DiedError."""
        size = int(np.prod(self.image_shape))
        try:
            _send(self._socket, data, timeout=self.stall_seconds)
            answer = bytearray()
            while not answer:  # empty: the process waits for its turn
                answer = _receive(self._socket, max(MESSAGE_BYTES, 1 + size), self.stall_seconds)
        except TimeoutError:
            self.close()
            raise _DiedError(f"did not answer within {self.stall_seconds:g} seconds") from None
        except (OSError, EOFError):
            code = self._ended()
            if code is None:
                raise _DiedError("sent an answer that cannot be right") from None
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            ended = "took too much processor time" if name == "SIGXCPU" else f"died ({name})"
            raise _DiedError(ended) from None
        if answer[:1] == PIXELS and len(answer) == 1 + size:
            return np.frombuffer(answer, np.uint8, offset=1).reshape(self.image_shape)
        try:
            refusal = DecodeError(**json.loads(answer[1:]))
        except (ValueError, TypeError):
            self.close()
            raise _DiedError("sent an answer that cannot be right") from None
        raise refusal

    def _ended(self) -> int | None:
        """Ends the process; returns its exit code, None if it had not ended by itself."""
        assert self.process is not None
        try:
            return self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.close()


def _start_error(problem: str) -> DecoderError:
    return DecoderError(
        f"The process that decodes images {problem} (on machine {socket.gethostname()}). Fix: see Ray's logs of that machine; it "
        "may lack memory.",
        transient=True,
    )


def _send(connection: socket.socket, *parts: bytes, timeout: float | None = None) -> None:
    connection.settimeout(timeout)
    connection.sendall(sum(map(len, parts)).to_bytes(8))
    for part in parts:
        connection.sendall(part)


def _receive(connection: socket.socket, most: int, timeout: float | None = None) -> bytearray:
    """A message of up to `most` bytes. Raises TimeoutError, EOFError if the other side has ended or sends nonsense, OSError."""
    connection.settimeout(timeout)
    length = int.from_bytes(_read(connection, bytearray(8)))
    if length > most:
        raise EOFError
    return _read(connection, bytearray(length))


def _read(connection: socket.socket, into: bytearray) -> bytearray:
    view = memoryview(into)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return into


# In the process


def _bound(seconds: float, size: int) -> None:
    """Bounds what this process may use from now on: processor time, after which it dies, and bytes of address space, after which
    memory allocations fail."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = mapped + size if hard == resource.RLIM_INFINITY else min(mapped + size, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    last = int(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (last if hard == resource.RLIM_INFINITY else min(last, hard), hard))


@contextlib.contextmanager
def _turn(area: int, owner: socket.socket) -> Iterator[None]:
    """A context in which no other process of this user and machine decodes an image that is large too. Tells the owner that it
    waits."""
    if area <= LARGE:
        yield
        return
    with open(Path(tempfile.gettempdir(), f"spikewise-large-image.{os.getuid()}"), "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _send(owner)
                time.sleep(WAIT_SECONDS)
        yield


def _answer(data: bytes, image_shape: tuple[int, int, int], max_pixels: int, owner: socket.socket) -> tuple[bytes, bytes]:
    try:
        _bound(SECONDS, BYTES + BYTES_PER_FILE_BYTE * len(data))
        image = open_image(data, max_pixels)
        area = image.width * image.height
        _bound(SECONDS + SECONDS_PER_MEGAPIXEL * area / 1e6, BYTES + BYTES_PER_PIXEL * area + BYTES_PER_FILE_BYTE * len(data))
        with _turn(area, owner):
            return PIXELS, pixels(image, image_shape).tobytes()
    except DecodeError as error:
        return REFUSED, json.dumps({"reason": str(error), "max_pixels": error.max_pixels}).encode()


def main(arguments: list[str]) -> None:
    connection, height, width, max_pixels = map(int, arguments)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the owner decides when this one ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints errors
    with socket.socket(fileno=connection) as owner, contextlib.suppress(EOFError, ConnectionError):
        _send(owner)
        while True:
            _send(owner, *_answer(bytes(_receive(owner, sys.maxsize)), (height, width, 3), max_pixels, owner))


if __name__ == "__main__":
    main(sys.argv[1:])
