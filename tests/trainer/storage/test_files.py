"""trainer.storage.files: temporary folders."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.storage.files import ABANDONED_SECONDS, scratch


def test_what_killed_processes_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every killed save would leave a whole checkpoint in /tmp until that is full."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    old = time.time() - ABANDONED_SECONDS - 1
    for name, age in ((f"{gone.pid}-old", old), (f"{gone.pid}-new", time.time()), (f"{os.getpid()}-mine", old), ("pack-x", old)):
        (tmp_path / f"spikewise-{name}").mkdir()
        (tmp_path / f"spikewise-{name}/file").write_bytes(b"")
        os.utime(tmp_path / f"spikewise-{name}", (age, age))
    with scratch() as folder:
        assert folder.parent == tmp_path
        (folder / "file").write_bytes(b"")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"spikewise-{gone.pid}-new",
        f"spikewise-{os.getpid()}-mine",
        "spikewise-pack-x",
    }
