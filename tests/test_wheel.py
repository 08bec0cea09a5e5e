"""The wheel: what it holds, and that it works alone."""

import email
import email.message
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parent.parent
DECOYS = ("trainer", "jobs", "records", "detect", "probes", "describe", "causes")
"""Names that a user may give to files of their own."""


def _run(*command: str | Path, cwd: Path) -> str:
    """Standard output; fails with standard error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy of the tree, because setuptools leaves build/ and an egg-info behind."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")
    shutil.copytree(ROOT, folder / "tree", ignore=left_out)
    build = ["wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", folder]
    _run(sys.executable, "-m", "pip", *build, cwd=folder / "tree")
    (built,) = folder.glob("spikewise-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh virtual environment that has the wheel, and the dependencies of this environment but not its
    editable installation of this repository: a .pth file adds a folder to the path, but does not process the .pth files in it."""
    folder = tmp_path_factory.mktemp("venv")
    _run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    packages = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder, with files whose names are those of modules in this repository."""
    for name in DECOYS:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError(f'{__file__} was imported')")
    return tmp_path


def test_the_wheel_holds_the_library_alone(wheel: Path) -> None:
    """Otherwise installing it would put packages called trainer, jobs or tests into everybody's environment."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        facts = email.message_from_bytes(archive.read(metadata))
    assert {name.partition("/")[0] for name in names} == {"spikewise", metadata.partition("/")[0]}
    sources = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("spikewise/**/*") if path.suffix in (".py", ".typed")}
    assert {name for name in names if name.startswith("spikewise/")} == sources
    assert "spikewise/py.typed" in sources
    _check_requirements(facts)


def _check_requirements(facts: email.message.Message) -> None:
    requirements = facts.get_all("Requires-Dist", [])
    assert [re.match(r"[\w-]+", one)[0] for one in requirements if "extra ==" not in one] == ["numpy"]  # type: ignore[index]
    assert {re.match(r"[\w-]+", one)[0] for one in requirements if "extra ==" in one} == {"keras", "tensorflow"}  # type: ignore[index]
    assert facts.get_all("Provides-Extra") == ["keras"]


def test_nothing_else_of_this_repository_is_importable(python: Path, folder: Path) -> None:
    """Otherwise the tests below would pass because of this checkout, and fail for a user."""
    script = (
        "import importlib.util, sys, spikewise\n"
        "sys.path.remove('')\n"
        "print(spikewise.__file__)\n"
        "print(*[name for name in ('trainer', 'jobs', 'tests', 'benchmarks') if importlib.util.find_spec(name)])"
    )
    home, others = _run(python, "-c", script, cwd=folder).split("\n")[:2]
    assert Path(home).is_relative_to(python.parent.parent)
    assert others == ""


def test_the_example_of_the_documentation_runs(python: Path, folder: Path) -> None:
    """The first thing a user copies must work in their own project, whatever their files are called."""
    document = (ROOT / "docs" / "callback.md").read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", document, re.DOTALL)[0]
    (folder / "example.py").write_text(example)
    printed = _run(python, "example.py", cwd=folder)
    assert "1. a bad training batch (bad_batch)" in printed
    assert printed.splitlines()[-1] == "epoch 6, batch 34: 32 images, brightest pixel 16"


def test_the_command_line_runs(python: Path, folder: Path) -> None:
    """Otherwise a user without Keras could do nothing with the package."""
    before = np.random.default_rng(0).gamma(1, 0.3, 400)
    np.save(folder / "before.npy", before)
    np.save(folder / "now.npy", before + 40 * (np.arange(400) == 3))
    assert "1. 1 image (few_examples)" in _run(python, "-m", "spikewise", "before.npy", "now.npy", cwd=folder)
