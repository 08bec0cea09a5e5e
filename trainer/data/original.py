"""One image file as its source has it -> its pixels. Decides what a read says about the image, and what about the source.

A pack never changes, so an image that is refused is lost to all runs of its data set. One wrong answer (a 404, an error page, a
flipped bit) therefore refuses none: what looks wrong is read again.
"""

import socket
from contextlib import suppress

from trainer.data.dataset import DecodeError
from trainer.data.decoder import Decoder
from trainer.storage import Archived, NotFound, Store, StoreError
from trainer.storage.folder import FolderStore


class _DoubtfulError(Exception):
    """The image is missing or has another size than listed."""


def decoded(key: str, found: bytes | StoreError, size: int, source: Store, setting: str, decoder: Decoder) -> tuple[bytes, bytes]:
    """The content of an image file and its pixels. `found`: what the first read gave; `size`: bytes, as listed; `setting`: the key
    of [data] that names `source`.

    Raises DecodeError if only this image is affected, StoreError if all images may be, and DecoderError.
    """
    if _is_doubtful(found, size):
        found = _again(key, size, source)
    content = _whole(found, size, source, setting)
    try:
        return content, decoder.decode(content).tobytes()
    except DecodeError as error:
        if error.max_pixels is not None:  # its header says how large it is
            raise
        again = _again(key, size, source)
        if again == content or isinstance(again, StoreError):
            raise
        return again, decoder.decode(_whole(again, size, source, setting)).tobytes()


def _again(key: str, size: int, source: Store) -> bytes | StoreError:
    """Reads an image once more, and again while it is missing or has another size."""
    found: list[bytes | StoreError] = []

    def read() -> None:
        try:
            found.append(source.get(key))
        except StoreError as error:
            found.append(error)
        if _is_doubtful(found[-1], size):
            raise _DoubtfulError

    with suppress(_DoubtfulError):
        source.read_again(read, _DoubtfulError)
    return found[-1]


def _is_doubtful(found: bytes | StoreError, size: int) -> bool:
    return isinstance(found, NotFound) if isinstance(found, StoreError) else len(found) != size


def _whole(found: bytes | StoreError, size: int, source: Store, setting: str) -> bytes:
    """The content that was read; the errors of `decoded`."""
    if isinstance(found, NotFound):
        machine = socket.gethostname()
        if isinstance(source, FolderStore) and _is_empty(source):  # otherwise the pack would lack these images forever
            raise StoreError(f"{source.url} is empty or missing on machine {machine}. Fix: mount data.{setting} on every machine.")
        raise DecodeError(f"was listed but is gone (seen from machine {machine})")
    if isinstance(found, Archived):
        raise DecodeError("is archived in its bucket (delete this pack's folder once it is restored, to pack the image as well)")
    if isinstance(found, StoreError):
        raise found
    if len(found) != size:
        raise DecodeError(f"changed after it was listed ({size} bytes then, {len(found)} now)")
    return found


def _is_empty(source: Store) -> bool:
    try:
        return next(iter(source.list()), None) is None
    except NotFound:
        return True
