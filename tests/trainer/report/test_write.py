"""Writing a report: complete, repeatable, and never half of one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.report.runs import demo, written
from trainer.report.write import write


def test_keys_that_are_not_utf_8_are_written(tmp_path: Path) -> None:
    """One file name in another encoding would cost a finished run its report."""
    result = demo(epochs=2, images=12)
    document, page = written(replace(result, keys=[f"bad-\udce9-{index}" for index in range(12)], run="x\udce9"), tmp_path)
    assert document["run"] == "x\udce9"
    assert "bad-\\udce9-0" in page


def test_a_failing_thumbnail_leaves_the_earlier_report(tmp_path: Path) -> None:
    """The folder would hold half a report, or a page beside the numbers of an earlier one."""
    write(demo(epochs=2, images=20), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def lost(index: int) -> np.ndarray:
        raise OSError(f"no row {index}")

    with pytest.raises(OSError, match="no row"):
        write(replace(demo(epochs=3, images=20), thumbnail=lost), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_writing_again_gives_the_same_files(tmp_path: Path) -> None:
    """A number that changes between two reports of the same run cannot be trusted."""
    for name in ("a", "b"):
        write(demo(epochs=4, images=50), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
