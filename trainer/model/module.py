"""The user's own network: the Python module that `model.network = "my_module:build"` names, as source text.

Owns which files belong to the module, and their way into another process. It finds the module on the submitting machine and in the
driver's pod by the same rule, and installs it in each worker. It neither runs the module nor loads Keras, which the driver does not
need; only `import_function`, for the workers, imports the module.
"""

import ast
import hashlib
import importlib
import importlib.machinery
import json
import os
import re
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikewise import describe
from trainer import UserError
from trainer.formatting import one_line

QUESTION = "question"
APPLICATIONS = "keras.applications:"
"""Prefix of the networks that Keras contains."""
MAX_BYTES = 900_000
"""Most bytes of all files together: a ConfigMap holds 1 MiB, and the configuration needs room in it too."""
OURS = {"spikewise", "trainer", "jobs"}
"""The packages of this project, which are installed wherever a run is."""


class NetworkError(UserError):
    """The user's network cannot be used; the message is one line."""


@dataclass(frozen=True)
class Module:
    """A module of the user, with every local file that it needs."""

    name: str
    """As in `import`: my_module, or nets.resnet."""
    files: Mapping[str, str]
    """Path relative to the folder that must be on sys.path, with slashes -> source text."""

    @property
    def digest(self) -> str:
        """SHA-256 of the paths and texts, in hexadecimal."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()

    @property
    def facts(self) -> dict[str, str]:
        """What a run stores about its module, for `check_unchanged`."""
        return {"name": self.name, "digest": self.digest}

    def install(self) -> None:
        """Makes the module importable in this process, before everything else of its name.

        Several processes may do so at once: they write the same content, each file atomically. Raises NetworkError if the folder
        below the system's temporary folder cannot be written or belongs to somebody else, who could change the code.
        """
        folder = Path(f"{_prefix()}{self.digest}")
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
                raise NetworkError(f"{folder} exists, and others can write to it. Fix: remove it, or set TMPDIR to another folder.")
            for path, text in self.files.items():
                _write(folder / path, text)
        except OSError as error:
            raise NetworkError(
                f"{folder} cannot be written: {error.strerror or one_line(error)}. Fix: set TMPDIR to a writable folder."
            ) from None
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        importlib.invalidate_caches()


def find(network: str, folders: Sequence[Path]) -> Module | None:
    """The module of `network`, which is model.network, in the first of `folders` that has it; None for a built-in network.

    A package travels with all of its Python files, and so does what the files import from the folder that the module lies in.
    Raises NetworkError if there is no such module or function, a file is not valid Python, a name belongs to an installed
    package, or the files are too large.
    """
    if network == QUESTION or network.startswith(APPLICATIONS):
        return None
    name, _, function = network.partition(":")
    if not all(map(_IMPORTABLE, [*name.split("."), function])):
        raise NetworkError(
            f'model.network = {network!r} names no network. Fix: use "{QUESTION}", "{APPLICATIONS}NAME", or "MODULE:FUNCTION" for '
            "a function of your own."
        )
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    for folder in folders:
        if main := _file(folder, name):
            break
    else:
        raise NetworkError(
            f"model.network = {network!r}: no {name.replace('.', '/')}.py in {' or '.join(map(str, folders))}. Fix: put it beside "
            "the configuration file, or correct the name."
        )
    if not _defines(_parse(main, _read(main)), function):
        raise NetworkError(f"model.network = {network!r}: {main} defines no {function}. Fix: correct the name of the function.")
    return Module(name, _collect(folder, name.partition(".")[0], folders))


def import_function(network: str) -> Callable[..., Any]:
    """The function that `network` names, in a process where its module is installed.

    Runs the user's code. Raises NetworkError if the module does not import, or has no such function.
    """
    name, _, function = network.partition(":")
    try:
        found = getattr(importlib.import_module(name), function, None)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_prefix())]
        where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        raise NetworkError(
            f"model.network = {network!r}: {name} does not import: {type(error).__name__}: {one_line(error)}{where}. Fix: correct "
            "the module; packages that it needs must be installed wherever a worker runs."
        ) from error
    if not callable(found):
        raise NetworkError(f"model.network = {network!r}: {name} has no function {function}. Fix: correct the name.")
    return found  # type: ignore[no-any-return]


def check_unchanged(module: Module | None, facts: Mapping[str, str] | None, run: str) -> None:
    """Raises NetworkError when run `run`, which began with the module that `facts` describes, cannot continue with `module`."""
    before, now = (facts or {}).get("digest"), module.digest if module else None
    if before != now:
        name = module.name if module else describe.printable((facts or {})["name"])
        raise NetworkError(
            f"Run {run} was started with another version of module {name} (digest {_short(before)} then, {_short(now)} now). "
            "Fix: restore its files to resume that run, or choose another run.name."
        )


def _prefix() -> str:
    """How the paths of installed modules begin."""
    return str(Path(tempfile.gettempdir(), f"spikewise-{os.getuid()}-"))


def _write(path: Path, text: str) -> None:
    """Writes a file atomically. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", newline="", delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def _short(digest: str | None) -> str:
    return describe.printable(digest[:16]) if digest else "none"


def _collect(folder: Path, first: str, folders: Sequence[Path]) -> dict[str, str]:
    """The files of the module or package `first` in `folder`, and of everything beside it that they import."""
    files: dict[str, str] = {}
    names, size = [first], 0
    for name in names:  # grows
        paths = _files(folder, name)
        if not paths or paths[0].relative_to(folder).as_posix() in files:
            continue
        if _is_installed(name, folders):
            regular = paths[0].parent == folder or (folder / name / "__init__.py").is_file()
            if name != first and (name in OURS or not regular):
                continue  # the import means the installed package
            raise NetworkError(
                f"{folder / name if paths[0].parent != folder else paths[0]} would hide the installed module {name}. Fix: rename "
                "it, and change what imports it."
            )
        for path in paths:
            size += path.stat().st_size
            if size > MAX_BYTES:
                raise NetworkError(
                    f"Module {first} and what it imports from {folder} have more than {MAX_BYTES:,} bytes, which is the most that "
                    "travels to the workers. Fix: move files that the network does not need elsewhere."
                )
            text = _read(path)
            files[path.relative_to(folder).as_posix()] = text
            names += sorted(_imports(_parse(path, text)))
    return files


def _file(folder: Path, name: str) -> Path | None:
    """The file of module `name`, dotted; a package's is its __init__.py."""
    path = folder.joinpath(*name.split("."))
    return next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.is_file()), None)


def _files(folder: Path, name: str) -> list[Path]:
    """The files of the top-level module or package `name` in `folder`, in a fixed order; empty if there is none.

    Files that no import statement can name are left out, and with them hidden folders.
    """
    package, single = folder / name, folder / f"{name}.py"
    if not _IMPORTABLE(name):
        return []
    if single.is_file() and not (package / "__init__.py").is_file():
        return [single]
    return sorted(path for path in package.rglob("*.py") if all(map(_IMPORTABLE, path.relative_to(folder).with_suffix("").parts)))


_IMPORTABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*").fullmatch
"""ASCII only, because the keys of a ConfigMap are."""


def _is_installed(name: str, folders: Sequence[Path]) -> bool:
    """Whether Python finds a top-level module of that name elsewhere than in `folders`. Imports nothing."""
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() not in folders]
    return name in OURS | sys.stdlib_module_names or importlib.machinery.PathFinder.find_spec(name, elsewhere) is not None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # with \n at the ends of lines, whatever the file has
    except (OSError, UnicodeDecodeError) as error:
        raise NetworkError(f"{path} cannot be read: {one_line(error)}. Fix: make it a readable file in UTF-8.") from None


def _parse(path: Path, text: str) -> ast.Module:
    try:
        return ast.parse(text, str(path))
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte, in early releases of Python 3.11
        line = getattr(error, "lineno", None)
        where, problem = (f"{path}, line {line}" if line else f"{path}"), getattr(error, "msg", error)
        raise NetworkError(f"{where} is not valid Python: {problem}. Fix: correct the file.") from None


def _imports(tree: ast.Module) -> Iterator[str]:
    """The top-level names of all modules that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name.partition(".")[0] for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _defines(tree: ast.Module, name: str) -> bool:
    """Whether a file may define or import `name`."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.ClassDef() if node.name == name:
                return True
            case ast.Name(id=found, ctx=ast.Store()) if found == name:
                return True
            case ast.alias() if (node.asname or node.name) in (name, "*"):
                return True
    return False
