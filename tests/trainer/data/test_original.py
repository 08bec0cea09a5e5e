"""trainer.data.original: what one read of an image file proves."""

import numpy as np
import pytest

from benchmarks.support.image_files import photo, saved
from trainer.data.dataset import DecodeError
from trainer.data.decode import decode
from trainer.data.original import decoded
from trainer.storage import Archived, NotFound, StoreError
from trainer.storage.folder import FolderStore

PNG = saved(photo(), "PNG")
FLIPPED = PNG[:-40] + bytes([PNG[-40] ^ 16]) + PNG[-39:]
PAGE = b"<html>Access is blocked by policy</html>"
GONE = NotFound("gone")


class Answers(FolderStore):
    """A store that gives these answers, one for each read, and the last one forever."""

    def __init__(self, folder, *answers):
        super().__init__(folder)
        self.answers = list(answers)
        self.reads = 0

    def get(self, key):  # noqa: ARG002
        self.reads += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, StoreError):
            raise found
        return found


class InThisProcess:
    """As Decoder, without a process of its own."""

    @staticmethod
    def decode(data):
        return decode(data, (8, 8, 3), 10_000)


def read(store: Answers) -> np.ndarray:
    ((_, found),) = store.get_many(["1.png"])
    return decoded("1.png", found, len(PNG), store, "source", InThisProcess())  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [GONE, b"", PAGE, FLIPPED, bytes(len(PNG))], ids=["404", "empty", "page", "bit", "zeros"])
def test_one_wrong_answer_costs_no_image(tmp_path, wrong):
    """A pack never changes: the image would be missing from all runs of the data set, because of one bad moment of a proxy."""
    (tmp_path / "another").touch()
    content, pixels = read(Answers(tmp_path, wrong, PNG))
    assert content == PNG
    assert pixels == InThisProcess.decode(PNG).tobytes()


@pytest.mark.parametrize(
    ("always", "reason"),
    [
        (GONE, "was listed but is gone"),
        (PAGE, "changed after it was listed"),
        (FLIPPED, "is damaged: the checksum"),
        (Archived("archived"), "is archived in its bucket"),
    ],
    ids=["404", "page", "bit", "archived"],
)
def test_what_stays_wrong_is_refused(tmp_path, always, reason):
    """Packing would go on asking for an image that is really damaged."""
    (tmp_path / "another").touch()
    store = Answers(tmp_path, always)
    with pytest.raises(DecodeError, match=reason):
        read(store)
    assert store.reads <= 3


def test_an_image_that_is_too_large_is_read_once(tmp_path):
    """A data set of large scans would be downloaded twice."""
    large = saved(photo(200, 100), "BMP")
    store = Answers(tmp_path, large)
    with pytest.raises(DecodeError, match=r"above data\.max_pixels"):
        decoded("1.bmp", large, len(large), store, "source", InThisProcess())  # type: ignore[arg-type]
    assert store.reads == 0


def test_an_outage_is_no_fault_of_the_image(tmp_path):
    """A store that is away while an image is read again would cost it."""
    with pytest.raises(StoreError, match="away"):
        read(Answers(tmp_path, GONE, StoreError("away", transient=True)))
