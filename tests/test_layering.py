"""The import graph: layers are one-way, and each vendor has one door."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ORDER = [
    *["config", "records", "store", "objectstore", "index", "decode", "shards", "pack"],
    *["layers", "model", "step", "pipeline", "checkpoint", "exporter", "scores", "charts", "console", "page", "report", "results"],
    *["network", "loop", "cluster", "plan", "launch"],
]
DOORS = {
    "boto3": {"objectstore"},
    "prometheus_client": {"exporter"},
    "tf.distribute": {"step"},
    "ray.train": {"loop", "cluster", "launch"},
}
MODULES = {path.stem: path for path in Path("trainer").glob("*.py") if path.stem != "__init__"}


def _imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found |= {module} | {f"{module}.{name.name}" for name in node.names}
    return found


def test_every_module_has_its_place():
    """A new module would have no layer, and nothing would keep it in one."""
    assert set(MODULES) == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_no_import_points_back_up(module):
    """A change at the top would break what lies below it; cycles would be patched over."""
    below = set(ORDER[: ORDER.index(module)])
    imported = {name.split(".")[1] for name in _imports(MODULES[module]) if name.startswith("trainer.")} & set(ORDER)
    assert imported <= below, f"{module} imports {sorted(imported - below)}, which stand above it"


@pytest.mark.parametrize("vendor", DOORS)
def test_each_vendor_has_one_door(vendor):
    """A change of a vendor's interface would have to be followed all over the code."""
    users = {module for module, path in MODULES.items() if any(f"{name}.".startswith(f"{vendor}.") for name in _imports(path))}
    if vendor == "tf.distribute":
        users = {module for module, path in MODULES.items() if "tf.distribute." in path.read_text(encoding="utf-8")}
    assert users <= DOORS[vendor]


def test_importing_the_package_imports_nothing_heavy():
    """Every command, even --help, would take ten seconds."""
    script = "import sys, trainer, trainer.config, trainer.objectstore, trainer.launch; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow", "keras", "matplotlib", "jinja2"} & set(loaded)


@pytest.mark.parametrize("path", sorted(Path("trainer/diagnosis").glob("*.py")), ids=lambda path: path.stem)
def test_the_diagnosis_stands_alone(path):
    """A Keras user would have to bring a cluster along; and the job's driver would load TensorFlow to name a spike."""
    imported = _imports(path)
    own = {name for name in imported if name.split(".")[0] == "trainer"}
    assert {name for name in own if not name.startswith("trainer.diagnosis")} <= {"trainer", "trainer.UserError"}
    heavy = {name.split(".")[0] for name in imported} & {"keras", "tensorflow", "ray", "boto3", "prometheus_client", "pydantic"}
    assert heavy <= ({"keras", "tensorflow"} if path.stem in ("callback", "offline", "keras_network", "keras_data") else set())
