"""The documents: what they show runs, and prints what they say."""

import re
import subprocess
import sys
from pathlib import Path

from spikewise import describe
from spikewise.records import CAUSES

DIAGNOSIS = Path("docs/diagnosis.md").read_text(encoding="utf-8")
SETUP = """
norm = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
x_validation, y_validation, names = x[1200:], y[1200:], [str(i) for i in range(597)]
each = lambda: keras.losses.sparse_categorical_crossentropy(y_validation, model.predict(x_validation, verbose=0)).numpy()
weights_before, losses_before = model.get_weights(), each()
norm.moving_variance.assign(norm.moving_variance * 100)
losses_now = each()
"""


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DIAGNOSIS, re.DOTALL)


def _shape(text: str) -> list[str]:
    """The text without its numbers, which are a machine's own, and without line breaks, which follow from them."""
    return re.sub(r"[+-]?\d[\d.,]*\d|\d", "#", text).split()


def test_the_examples_of_the_diagnosis_run_and_print_what_is_shown():
    """The first thing that a user copies must work."""
    whole, offline = _blocks("python")
    script = "\n".join([whole, "print('----')", SETUP, offline])
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    printed, _, told = run.stdout.partition("----\n")
    (shown,) = _blocks("text")
    ours, theirs = _shape(printed), _shape(shown)
    assert ours[: ours.index("2.") if "2." in ours else 60] == theirs[: theirs.index("2.") if "2." in theirs else 60]
    assert printed.splitlines()[0].startswith("SPIKE in epoch 6: validation loss")
    assert printed.splitlines()[-2:][0].startswith("1 spike in 8 epochs: a bad training batch (epoch 6).")
    assert printed.splitlines()[-1] == shown.splitlines()[-1]
    assert told.startswith("batchnorm_statistics ")


def test_every_cause_and_probe_is_described():
    """A verdict that is nowhere explained helps nobody."""
    assert not [name for name in (*CAUSES, *describe.PROBES) if f"`{name}`" not in DIAGNOSIS]


def test_commands_of_the_cluster_exist():
    """Whoever follows docs/cluster.md to the dashboard would be stuck at a target or a folder that has another name by now."""
    targets = set(re.findall(r"^([a-z0-9-]+):", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in ("README.md", "docs/cluster.md", "docs/operations.md"):
        commands = re.findall(r"^\$ (.*)", Path(document).read_text(encoding="utf-8"), re.MULTILINE)
        for command in commands:
            if command.startswith("make "):
                named = {word for word in command.partition("#")[0].split()[1:] if re.fullmatch("[a-z0-9-]+", word)}
                assert named
                assert named <= targets, command
            for path in re.findall(r"(?:k8s|jobs/configs|docker)/[\w./-]+", command):
                assert Path(path).exists(), command
    assert "kubectl apply --server-side -k k8s/monitoring -n monitoring" in Path("docs/cluster.md").read_text(encoding="utf-8")
