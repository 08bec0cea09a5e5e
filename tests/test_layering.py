"""The import graph: rooms are layers, an arrow never points back up, and each vendor has one door."""

import ast
import graphlib
import subprocess
import sys
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
"""From bottom to top. A module belongs to the longest name that it begins with."""
FACES = {"spikewise": "spikewise.compare"}
"""A package whose `__init__` re-exports names, and the highest room that they come from: it belongs to that room itself."""
DOORS = {
    "boto3": {"trainer.storage.s3"},
    "botocore": {"trainer.storage.s3"},
    "jinja2": {"trainer.report.page"},
    "keras": {"spikewise.keras", "trainer.model", "trainer.engine", "benchmarks"},
    "matplotlib": {"trainer.report"},
    "prometheus_client": {"trainer.metrics"},
    "pyarrow": {"trainer.data"},
    "pydantic": {"trainer.config"},
    "ray": {"trainer.run", "trainer.data.pack", "jobs.kubernetes.entrypoint", "benchmarks"},
    "rich": {"trainer.run.console"},
    "safetensors": {"trainer.storage.checkpoint"},
    "simplejpeg": {"trainer.data.decode"},
    "tensorflow": {"spikewise.keras", "trainer.data", "trainer.model", "trainer.engine", "trainer.run.worker", "benchmarks"},
    "tf.distribute": {"trainer.engine.group"},
    "yaml": {"jobs"},
}
"""Package, or a part of one: the rooms and modules that may use it."""
PATHS = {
    ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("spikewise", "trainer", "jobs", "benchmarks")
    for path in Path(package).rglob("*.py")
}


def _imports(path: Path) -> set[str]:
    """Everything that a file imports anywhere, as dotted names of modules and of what is taken from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


IMPORTS = {module: _imports(path) for module, path in PATHS.items()}


def _module(name: str) -> str | None:
    """Our module that `name` is, or is taken from."""
    while name and name not in PATHS:
        name = name.rpartition(".")[0]
    return name or None


def _room(module: str) -> int:
    module = FACES.get(module, module)
    return ROOMS.index(max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len))


OURS = {module: {_module(name) for name in names} - {None, module} for module, names in IMPORTS.items()}


@pytest.mark.parametrize("module", sorted(PATHS))
def test_no_import_points_back_up(module):
    """A change at the top would break what lies below it."""
    above = sorted(other for other in OURS[module] if _room(other) > _room(module))
    assert not above, f"{module} imports {above} from rooms above its own"


def test_no_cycle():
    """Modules that need each other can be neither read nor tested one by one."""
    graphlib.TopologicalSorter(OURS).prepare()


@pytest.mark.parametrize("vendor", sorted(DOORS))
def test_each_vendor_has_one_door(vendor):
    """A change of a vendor's interface would have to be followed all over the code."""
    users = {module for module, names in IMPORTS.items() if any(f"{name}.".startswith(f"{vendor}.") for name in names)}
    if vendor == "tf.distribute":
        users = {module for module, path in PATHS.items() if "tf.distribute." in path.read_text(encoding="utf-8")}
    strangers = sorted(m for m in users if not any(f"{m}.".startswith(f"{door}.") for door in DOORS[vendor]))
    assert users, f"nobody uses {vendor}: take it out of DOORS and of the dependencies"
    assert not strangers, f"{strangers} use {vendor} beside its door, {sorted(DOORS[vendor])}"


def test_benchmarks_do_not_use_tests():
    """Tests may use what benchmarks bring along, never the other way round."""
    assert not [module for module, names in IMPORTS.items() if any(f"{name}.".startswith("tests.") for name in names)]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("spikewise", {"keras", "tensorflow", "ray", "pydantic", "boto3", "trainer", "jobs"}),
        ("spikewise.compare", {"keras", "tensorflow", "ray", "pydantic", "boto3", "trainer", "jobs"}),
        ("spikewise.diagnose", {"keras", "tensorflow", "ray", "pydantic", "boto3", "trainer", "jobs"}),
        ("trainer.run.driver", {"keras", "tensorflow", "matplotlib", "jinja2"}),
        ("jobs.submit", {"keras", "tensorflow", "ray", "boto3", "matplotlib"}),
    ],
)
def test_importing_is_light(module, heavy):
    """A Keras user would have to bring a cluster along; every command, even --help, would take ten seconds."""
    script = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(loaded)
