"""The import graph: rooms are layers, imports never point to a higher room, and third-party packages are used behind doors.

A room is a package (or a module) in ROOMS. A door is a room or a module that may use a vendor's package directly. Imports inside
functions and under TYPE_CHECKING count too.
"""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOMS = [
    "spikewise",
    "spikewise.keras",
    "spikewise.compare",
    "spikewise.__main__",
    "trainer",
    "trainer.storage",
    "trainer.data",
    "trainer.model",
    "trainer.engine",
    "trainer.metrics",
    "trainer.report",
    "trainer.run",
    "jobs.demo",
    "jobs.kubernetes",
    "jobs",
    "jobs.demo.__main__",
    "benchmarks",
]
"""From bottom to top. A module belongs to the longest name in this list that is the module or a package above it."""
FACES = {"spikewise": "spikewise.compare"}
"""Packages whose `__init__` re-exports names from higher rooms: the `__init__` belongs to the room given here."""
DOORS = {
    "boto3": {"trainer.storage.s3"},
    "botocore": {"trainer.storage.s3", "trainer.storage.s3_errors"},
    "jinja2": {"trainer.report.page"},
    "keras": {"spikewise.keras", "trainer.model", "trainer.engine", "benchmarks"},
    "matplotlib": {"trainer.report.charts", "trainer.report.picture"},
    "prometheus_client": {"trainer.metrics"},
    "psutil": {"benchmarks"},
    "pyarrow": {"trainer.data", "benchmarks"},
    "pydantic": {"trainer.config"},
    "ray": {"trainer.run", "trainer.data.pack", "jobs.kubernetes.entrypoint"},
    "rich": {"trainer.run.console"},
    "safetensors": {"trainer.storage.checkpoint_files"},
    "pi_heif": {"trainer.data.decode"},
    "simplejpeg": {"trainer.data.decode"},
    "tensorflow": {"spikewise.keras", "trainer.data", "trainer.model", "trainer.engine", "benchmarks"},
    "tf.distribute": {"trainer.engine.group"},
    "yaml": {"jobs"},
}
"""A vendor's package, or a part of it, and the rooms and modules that may use it."""
PATHS = {
    ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("spikewise", "trainer", "jobs", "benchmarks")
    for path in Path(package).rglob("*.py")
}


def _is_in(name: str, packages: Iterable[str]) -> bool:
    """Whether a dotted name is one of the packages or lies inside one."""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def _imports(path: Path) -> set[str]:
    """All names that a file imports, dotted: `from a.b import c` gives a.b.c."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: relative import. Fix: import by the full name."
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


IMPORTS = {module: _imports(path) for module, path in PATHS.items()}


def _module(name: str) -> str | None:
    """The module of this repository that is `name` or contains it."""
    while name and name not in PATHS:
        name = name.rpartition(".")[0]
    return name or None


OURS = {module: {_module(name) for name in names} - {None, module} for module, names in IMPORTS.items()}


def _room(module: str) -> str:
    module = FACES.get(module, module)
    return max((room for room in ROOMS if _is_in(module, [room])), key=len)


@pytest.mark.parametrize("module", sorted(PATHS))
def test_no_import_points_to_a_higher_room(module):
    """A change in the command line could break the library."""
    room = ROOMS.index(_room(module))
    higher = sorted(f"{other} (room {_room(other)})" for other in OURS[module] if ROOMS.index(_room(other)) > room)
    assert not higher, (
        f"{module} is in room {ROOMS[room]} and imports from higher rooms: {', '.join(higher)}. "
        "Fix: move the shared part down, or pass it in as an argument."
    )


def test_no_import_cycle():
    """Modules of a cycle cannot be read, tested or reused one at a time."""
    try:
        graphlib.TopologicalSorter(OURS).prepare()
    except graphlib.CycleError as error:
        cycle = " <- ".join(error.args[1])
        pytest.fail(f"import cycle: {cycle}. Fix: move the shared part into a module that both can import.", pytrace=False)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_exists(room):
    """A renamed room would silently lose its rule."""
    assert room in PATHS or Path(*room.split(".")).is_dir(), f"{room} does not exist. Fix: correct ROOMS."
    assert any(_room(module) == room for module in PATHS), f"{room} has no module. Fix: correct ROOMS."


@pytest.mark.parametrize("vendor", sorted(DOORS))
def test_each_vendor_has_one_door(vendor):
    """A change in a vendor's interface would have to be followed throughout the code."""
    if vendor == "tf.distribute":  # never imported by this name
        users = {module for module, path in PATHS.items() if "tf.distribute." in path.read_text(encoding="utf-8")}
    else:
        users = {module for module, names in IMPORTS.items() if any(_is_in(name, [vendor]) for name in names)}
    elsewhere = sorted(module for module in users if not _is_in(module, DOORS[vendor]))
    assert not elsewhere, f"{', '.join(elsewhere)} use {vendor}. Fix: go through its door, {', '.join(sorted(DOORS[vendor]))}."
    unused = sorted(door for door in DOORS[vendor] if not any(_is_in(module, [door]) for module in users))
    assert not unused, f"{', '.join(unused)} no longer use {vendor}. Fix: remove them from DOORS."


def test_only_tests_import_tests():
    """The job or a benchmark would not run without the tests."""
    users = sorted(module for module, names in IMPORTS.items() if any(_is_in(name, ["tests"]) for name in names))
    assert not users, f"{', '.join(users)} import from tests. Fix: move what they share to benchmarks/support."


def _loaded(statement: str) -> set[str]:
    """The modules that a fresh Python has loaded after `statement`."""
    command = [sys.executable, "-c", f"import sys\n{statement}\nprint(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["spikewise", "spikewise.compare", "spikewise.diagnose"])
def test_the_library_loads_numpy_only(module):
    """Installing the library into a project would need more than NumPy, or importing it would take seconds."""
    more = {name.partition(".")[0] for name in _loaded(f"import {module}") - _loaded("import numpy")}
    assert more - {"spikewise"} <= sys.stdlib_module_names, f"importing {module} loads {', '.join(sorted(more))}"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("trainer.run.driver", {"keras", "tensorflow", "matplotlib", "jinja2"}),
        ("jobs.submit", {"keras", "tensorflow", "ray", "boto3", "matplotlib"}),
    ],
)
def test_commands_start_fast(module, heavy):
    """Every command, even --help, would take ten seconds, and the driver would hold 600 MB that only workers need."""
    loaded = heavy & _loaded(f"import {module}")
    assert not loaded, f"importing {module} loads {', '.join(sorted(loaded))}. Fix: import them inside the functions that use them."
