"""trainer.model.module: the user's own network on its way to the workers."""

import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from trainer.model import module
from trainer.model.module import Module, NetworkError, check_unchanged, find

BUILD = "def build(image_shape, classes, **arguments): ...\n"


def put(folder: Path, **files: str) -> Path:
    """Writes Python files; `nets__resnet` is nets/resnet.py, and `nets__init` is nets/__init__.py."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/').replace('/init', '/__init__')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("network", ["question", "keras.applications:MobileNetV2"])
def test_built_in_networks_have_no_module(tmp_path, network):
    """A folder called keras beside the configuration would end a run that does not need it."""
    assert find(network, [put(tmp_path, keras__applications=BUILD)]) is None


def test_the_folder_of_the_configuration_comes_first(tmp_path):
    """On a cluster, another file could be trained than on a laptop."""
    first, second = put(tmp_path / "a", my_module=BUILD), put(tmp_path / "b", my_module=f"{BUILD}# other", other=BUILD)
    assert find("my_module:build", [first, second]) == Module("my_module", {"my_module.py": BUILD})
    assert find("other:build", [first, second]) == Module("other", {"other.py": BUILD})


def test_everything_local_travels(tmp_path):
    """The network would train on a laptop, and not import on a cluster."""
    put(
        tmp_path,
        my_module=f"import keras\nimport numpy as np\nfrom blocks import block\n{BUILD}",
        blocks="def block():\n    from nets.resnet import stem\n    import spikewise\n",
        nets__init="",
        nets__resnet="from . import parts\nimport my_module  # a cycle\n",
        nets__parts="import heads.dense",
        heads__dense="",  # a package without __init__.py
        unused="",
        spikewise__probes="",  # this project's own, as in a checkout
    )
    (tmp_path / "nets" / ".venv").mkdir()
    (tmp_path / "nets" / ".venv" / "large.py").write_text("x" * 1_000_000)
    (tmp_path / "nets" / "weights.bin").write_bytes(b"0" * 1_000_000)
    (tmp_path / "keras").mkdir()  # Python prefers an installed package to a folder without __init__.py
    put(tmp_path, keras__notes="")
    found = find("my_module:build", [tmp_path])
    assert sorted(found.files) == [
        *["blocks.py", "heads/dense.py", "my_module.py"],
        *["nets/__init__.py", "nets/parts.py", "nets/resnet.py"],
    ]


@pytest.mark.parametrize(
    "text",
    [
        BUILD,
        "class build: ...",
        "build = lambda image_shape, classes: ...",
        "from elsewhere import build",
        "import a as build",
        "from elsewhere import *",
        "try:\n    import a\nexcept ImportError:\n    def build(): ...",
    ],
)
def test_a_function_however_it_is_defined(tmp_path, text):
    """A module that works would be refused."""
    assert find("my_module:build", [put(tmp_path, my_module=text)])


@pytest.mark.parametrize(
    ("network", "files", "line"),
    [
        ("resnet", {}, "model.network = 'resnet' names no network. Fix: use \"question\", .*"),
        ("my module:build", {}, "model.network = 'my module:build' names no network.*"),
        ("my_module:build", {}, "model.network = .*: no my_module.py in {0} or {0}/b. Fix: put it beside the .*"),
        ("nets.resnet:build", {"nets__init": BUILD}, "model.network = .*: no nets/resnet.py in .*"),
        ("my_module:built", {"my_module": BUILD}, "model.network = .*: {0}/my_module.py defines no built. Fix: .*"),
        ("my_module:build", {"my_module": f"{BUILD}x = ("}, r"{0}/my_module.py, line 2 is not valid Python: .* Fix: .*"),
        ("my_module:build", {"my_module": f"{BUILD}import b", "b": "\0"}, "{0}/b.py is not valid Python: .*null byte.* Fix: .*"),
        ("keras:build", {"keras": BUILD}, "{0}/keras.py would hide the installed module keras. Fix: rename it.*"),
        ("trainer:build", {"trainer__init": BUILD}, "{0}/trainer would hide the installed module trainer. Fix: .*"),
        ("my_module:build", {"my_module": f"{BUILD}import random", "random": ""}, "{0}/random.py would hide .* module random.*"),
        (
            "nets:build",
            {"nets__init": BUILD, "nets__a": "#" * 500_000, "nets__b": "#" * 500_000},
            "Module nets and what it imports from {0} have more than 900,000 bytes, .* Fix: move .*",
        ),
    ],
)
def test_refused_in_one_line(tmp_path, network, files, line):
    """A mistake would show minutes later, in a worker's log; or the API server would refuse the run with its own words."""
    put(tmp_path, **files)
    with pytest.raises(NetworkError, match=f"^{line.format(tmp_path)}$") as caught:
        find(network, [tmp_path, tmp_path / "b"])
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    """A file in another encoding would end in a traceback."""
    (tmp_path / "my_module.py").write_bytes(b"# gr\xfc\xdfe\n")
    with pytest.raises(NetworkError, match=r"my_module.py cannot be read: .* Fix: make it a readable file in UTF-8"):
        find("my_module:build", [tmp_path])


def test_the_digest_is_that_of_the_source(tmp_path):
    """A run could be resumed with another network; or not be resumed from a checkout with other line ends."""
    digest = find("nets:build", [put(tmp_path / "a", nets__init=BUILD, nets__parts="x = 1\n")]).digest
    put(tmp_path / "b", nets__init=BUILD)
    (tmp_path / "b" / "nets" / "parts.py").write_bytes(b"\xef\xbb\xbfx = 1\r\n")
    assert find("nets:build", [tmp_path / "b"]).digest == digest
    assert find("nets:build", [put(tmp_path / "b", nets__parts="x = 2\n")]).digest != digest
    assert find("nets:build", [put(tmp_path / "a", nets__more="")]).digest != digest


def test_workers_of_a_machine_install_at_once(tmp_path):
    """Of two workers on a machine, one would import a file that the other has half written; or both would import another file."""
    text = f"'''{'x' * 200_000}'''\n{BUILD}"
    put(tmp_path / "source", nets__init="import blocks", nets__resnet=text, blocks="")
    put(tmp_path / "cwd", nets__init="raise SystemExit('the wrong one')")
    (tmp_path / "temporary").mkdir()
    script = (
        "import sys; sys.path.append(sys.argv[2])\n"
        "from pathlib import Path; from trainer.model.module import find, import_function\n"
        "found = find('nets.resnet:build', [Path(sys.argv[1]), Path.cwd()]); [found.install() for _ in range(20)]\n"
        "print(sys.modules[import_function('nets.resnet:build').__module__].__file__)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", script, str(tmp_path / "source"), os.getcwd()]
    workers = [
        subprocess.Popen(command, cwd=tmp_path / "cwd", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [worker.communicate() for worker in workers]
    (folder,) = (tmp_path / "temporary").iterdir()
    assert answers == [(f"{folder}/nets/resnet.py\n", "")] * 3
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.suffix != ".pyc"} == {
        "blocks.py",
        "nets/__init__.py",
        "nets/resnet.py",
    }


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The system's temporary folder, and a process without installed modules."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.mark.parametrize("kind", ["writable", "link", "file"])
def test_others_cannot_change_the_code(temporary, kind):
    """On a shared machine, another user could run code in the worker."""
    mine = Module("my_module", {"my_module.py": BUILD})
    folder = Path(f"{module._prefix()}{mine.digest}")
    match kind:
        case "writable":
            folder.mkdir()
            folder.chmod(0o777)
        case "link":
            (temporary / "elsewhere").mkdir()
            folder.symlink_to(temporary / "elsewhere")
        case "file":
            folder.touch()
    before = list(sys.path)
    with pytest.raises(NetworkError, match=rf"^{folder} (exists, and others can write|cannot be written: File exists).* Fix: .*"):
        mine.install()
    assert sys.path == before
    assert list(temporary.rglob("*.py")) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "import no_such_package\ndef build(): ...",
            r"ModuleNotFoundError: No module named 'no_such_package' \({0}.py, line 1\)\. Fix",
        ),
        ("import json\nbuild = json.loads('a\\nb')", r"JSONDecodeError: .* \({0}.py, line 2\)\. Fix: "),
        ("import sys\nsys.exit('no\\nnetwork')\nbuild = 1", r"SystemExit: no network \({0}.py, line 2\)\. Fix: "),
        ("build = 3", "{0} has no function build. Fix: "),
        ("def f():\n    build = 3", "{0} has no function build. Fix: "),
    ],
)
def test_a_module_that_does_not_import(temporary, request, text, line):
    """A user would get a traceback through Ray instead of the line in their own file."""
    name = f"broken_{request.node.callspec.indices['text']}"  # a process imports each name once
    find(f"{name}:build", [put(temporary / "source", **{name: text})]).install()
    with pytest.raises(NetworkError, match=line.format(name)) as caught:
        module.import_function(f"{name}:build")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("before", "now", "same"), [("a", "a", True), ("a", "b", False), (None, "a", False), (None, None, True)])
def test_a_run_continues_with_its_own_module_only(before, now, same):
    """One curve would show two networks."""
    old, new = (Module("my_module", {"my_module.py": text}) if text else None for text in (before, now))
    with nullcontext() if same else pytest.raises(NetworkError, match=r"^Run first .* of module my_module .* Fix: restore .*"):
        check_unchanged(new, old and old.facts, "first")


def test_a_stored_module_cannot_steer_a_terminal():
    """Anyone with write access to the bucket could clear the screen of the user who resumes the run."""
    for new in (None, Module("my_module", {})):
        with pytest.raises(NetworkError) as caught:
            check_unchanged(new, {"name": "\x1b[2J", "digest": "\x1b[2J\n"}, "first")
        assert str(caught.value).isprintable()
