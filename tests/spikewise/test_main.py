"""The command line, `python -m spikewise`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import spikewise
from spikewise import describe, explain
from spikewise.__main__ import main

BEFORE = np.random.default_rng(0).gamma(1, 0.3, 400)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with the names and losses of examples. Two losses rose."""
    monkeypatch.chdir(tmp_path)
    now = BEFORE.copy()
    now[[3, 5]] += 40
    np.save("before.npy", BEFORE)
    np.save("now.npy", now)
    np.save("text.npy", np.array(["a"]))
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "broken.npy").write_bytes(b"PK\x03\x04 not an archive")
    (tmp_path / "names.txt").write_text("".join(f"image-{i}.png\n" for i in range(400)))
    return now


def test_it_prints_what_the_log_of_a_run_would(files):
    """Otherwise a user who saved two arrays would need a Python session to learn anything from them."""
    before, now, names = (str(Path(name).absolute()) for name in ("before.npy", "now.npy", "names.txt"))
    command = [sys.executable, "-m", "spikewise", before, now, "--keys", names, "--epoch", "12"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(spikewise.__file__).parents[1])
    assert (run.returncode, run.stderr) == (0, "")
    expected = explain(BEFORE, files, keys=[f"image-{i}.png" for i in range(400)], epoch=12)
    assert run.stdout == f"{describe.block(expected)}\n"
    assert run.stdout.startswith("SPIKE in epoch 12: validation loss ")
    assert "image-3.png, image-5.png" in run.stdout


@pytest.mark.usefixtures("files")
def test_groups_are_read_from_a_file(tmp_path, capsys):
    """Otherwise crops of one photograph would count as independent examples."""
    (tmp_path / "groups.txt").write_text("".join(f"photo {i // 100}\n" for i in range(400)))
    assert main(["before.npy", "now.npy", "--groups", "groups.txt"]) == 0
    assert "4 groups of validation images" in capsys.readouterr().out


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["before.npy", "nowhere.npy"], "nowhere.npy cannot be read: No such file or directory. Fix: "),
        (["before.npy", "text.npy"], "text.npy cannot be read: it holds <U1, not numbers. Fix: "),
        (["before.npy", "objects.npy"], "objects.npy cannot be read: Object arrays cannot be loaded"),
        (["before.npy", "broken.npy"], "broken.npy cannot be read: "),
        (["before.npy", "names.txt"], "names.txt cannot be read: "),
        (["now.npy", "before.npy"], "The mean loss did not rise"),
        (["before.npy", "now.npy", "--keys", "nowhere.txt"], "nowhere.txt cannot be read: No such file"),
        (["before.npy", "now.npy", "--keys", "now.npy"], "now.npy cannot be read: it is not UTF-8 text. Fix: "),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(arguments, message, capsys):
    """Otherwise a script could not notice the failure, and a user would have to read a traceback."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert ". Fix: " in captured.err
    assert captured.err.count("\n") == 1
