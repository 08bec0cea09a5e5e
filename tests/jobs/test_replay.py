"""jobs.replay without workers: what it opens, and what it refuses before it trains. Its replays run in tests/integration."""

import re
from pathlib import Path

import pytest

from jobs import replay
from tests.support import training
from trainer.storage import results
from trainer.storage.folder import FolderStore

FILE = """
[data]
source = "x"
classes = { a = "a/", b = "b/" }

[run]
storage = "nowhere"
"""


def _run(folder: Path, **sections: object) -> None:
    """Stores a run `first`."""
    facts = {"config": training.settings().as_dict() | sections, "manifest": "m", "environment": {}}
    results.put_run(FolderStore(folder), "first", facts)


@pytest.fixture(params=["--config", "--storage"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Names a storage without runs in either way."""
    path = tmp_path / "run.toml"
    path.write_text(FILE.replace("nowhere", str(tmp_path / "nowhere")), encoding="utf-8")
    return [request.param, str(path if request.param == "--config" else tmp_path / "nowhere")]


def _complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error of a replay of epoch 1, which must be one line."""
    assert replay.main(["--run", "first", "--epoch", "1", *arguments]) == 2
    complaint = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n\x1b]+\n", complaint), repr(complaint)
    return complaint


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--set", "run.storage={folder}"], "No run first in {folder}"),
        (["--set", "s3.colour=1"], "s3.colour"),
        (["--set", "model.momentum=0.9 run.storage={folder}"], "No run first in {folder}"),
    ],
    ids=["storage", "s3", "several"],
)
def test_where_to_look_may_be_overridden(capsys, tmp_path, place, overrides, words):
    """`--set s3.region=...` and `--set run.storage=...` would be ignored, and the run not found, unlike with all other commands."""
    overrides = [each.format(folder=tmp_path / "other") for each in overrides]
    assert words.format(folder=tmp_path / "other") in _complaint(capsys, *place, *overrides)


def test_several_overrides_in_one_option(capsys, tmp_path):
    """SET="a.b=1 c.d=2", which all other targets of the Makefile take, would be one wrong value."""
    _run(tmp_path)
    complaint = _complaint(capsys, "--storage", str(tmp_path), "--set", "launch.workers=5 pipeline.memory_bytes=7")
    assert "training.batch_size = 32 is not divisible by launch.workers = 5" in complaint


def test_the_report_goes_where_the_user_says(capsys, tmp_path):
    """`--set run.output=...` would be trained as a remedy, and the report written to another folder."""
    _run(tmp_path)
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file/runs" in _complaint(capsys, "--storage", str(tmp_path), "--set", f"run.output={tmp_path}/file/runs")


def test_a_strangers_text_cannot_write_escape_sequences(capsys, tmp_path):
    """Anyone who can write to the bucket could clear the terminal of the user who replays a run."""
    _run(tmp_path, model={"network": "a\x1b[2Jb"})
    _complaint(capsys, "--storage", str(tmp_path))
    _run(tmp_path, model={"\x1b[2J": 2})
    _complaint(capsys, "--storage", str(tmp_path))
