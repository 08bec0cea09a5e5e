"""The public names of the package."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import spikewise


def _run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def test_every_public_name_exists_and_is_typed():
    """Otherwise a documented import would fail, or a type checker know a name that does not exist."""
    source = Path(spikewise.__file__).read_text(encoding="utf-8")
    typed = re.search(r"if TYPE_CHECKING:\n((?:    .*\n)+)", source)
    assert typed
    names = {name for line in typed[1].splitlines() for name in line.partition(" import ")[2].split(", ")}
    assert names == set(spikewise.__all__) == {name for found in spikewise._HOMES.values() for name in found}
    assert set(spikewise.__all__) <= set(dir(spikewise))
    for name in spikewise.__all__:
        assert getattr(spikewise, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'explane'"):
        spikewise.explane  # noqa: B018


def test_importing_the_package_loads_numpy_at_most():
    """Otherwise every program that only reads a diagnosis would wait ten seconds for TensorFlow."""
    script = (
        "import sys\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        "import spikewise\n"
        "spikewise.explain, spikewise.Diagnosis, spikewise.Diagnostician\n"
        "print(*{name.partition('.')[0] for name in sys.modules} - before - set(sys.stdlib_module_names))"
    )
    assert set(_run(script).split()) <= {"spikewise", "numpy", "_distutils_hack"}


@pytest.mark.parametrize("missing", ["keras", "tensorflow"])
def test_without_keras_the_callback_says_what_to_install(missing):
    """Otherwise a user who installed the library without its extra would have to read a traceback."""
    script = (
        "import sys\n"
        "import importlib.abc\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.partition('.')[0] == {missing!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "try:\n"
        "    from spikewise import SpikeDiagnosis\n"
        "except ImportError as error:\n"
        "    print(error)"
    )
    assert _run(script) == (
        f"spikewise.SpikeDiagnosis needs Keras and TensorFlow, and {missing} is not installed. "
        "Fix: run pip install keras tensorflow."
    )


@pytest.mark.integration
def test_an_error_inside_the_library_is_not_reported_as_a_missing_keras():
    """Otherwise a user with a broken installation would be sent to install what is there."""
    script = (
        "import sys\n"
        "sys.modules['spikewise.keras.backend'] = None\n"
        "try:\n"
        "    from spikewise import SpikeDiagnosis\n"
        "except ImportError as error:\n"
        "    print(error)"
    )
    assert "spikewise.keras.backend" in _run(script)
