"""The documentation: its examples run and print what it shows, and it lists what the code has."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from spikewise import causes, probes
from trainer import config
from trainer.config import Augmentation, Data, Diagnosis, Launch, Model, Optimizer, Settings, Training
from trainer.model.module import find

DIAGNOSIS = Path("docs/diagnosis.md").read_text(encoding="utf-8")
CALLBACK = Path("docs/callback.md").read_text(encoding="utf-8")
SETUP = """
norm = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
x_validation, y_validation, names = x[1200:], y[1200:], [str(i) for i in range(597)]
each = lambda: keras.losses.sparse_categorical_crossentropy(y_validation, model.predict(x_validation, verbose=0)).numpy()
weights_before, losses_before = model.get_weights(), each()
norm.moving_variance.assign(norm.moving_variance * 100)
losses_now = each()
"""
"""What the second example expects to find: losses and weights before and after a rise."""


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", CALLBACK, re.DOTALL)


def _paragraphs(text: str) -> list[str]:
    """One for each cause, and one for each other line. Without numbers, intervals, and line breaks that follow from numbers: they
    differ from CPU to CPU in the last digits."""
    plain = re.sub(r" \(\d+% to \d+%\)", "", text)
    plain = re.sub(r"[+-]?\d[\d.,]*\d|\d", "#", plain)
    return [" ".join(part.split()) for part in re.split(r"\n(?=\S|  #\. )", plain.strip())]


@pytest.mark.integration
def test_the_examples_of_the_callback_run_and_print_what_is_shown():
    """These examples are the first thing a user copies."""
    whole, comparison = _blocks("python")
    script = "\n".join([whole, "print('----')", SETUP, comparison])
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    printed, _, compared = run.stdout.partition("----\n")
    (shown,) = _blocks("text")
    ours, theirs = _paragraphs(printed), _paragraphs(shown)
    assert ours[:2] == theirs[:2]  # the spike and its verdict
    assert sorted(ours) == sorted(theirs)  # causes of nearly equal fractions may change places
    assert printed.startswith("SPIKE in epoch 6: validation loss")
    for line, expected in zip(printed.splitlines()[-2:], shown.splitlines()[-2:], strict=True):  # the summary and the batch
        assert line.partition(" Of the validation loss")[0] == expected.partition(" Of the validation loss")[0]
    assert compared.startswith("batchnorm_statistics ")


def test_the_table_of_causes_is_that_of_the_code():
    """Otherwise a user would look up a verdict in vain, or misjudge which cause goes first."""
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \|", DIAGNOSIS, re.MULTILINE)
    assert rows == [(kind.name, "yes" if kind.harms_training else "no") for kind in causes.PRECEDENCE]


def test_the_table_of_probes_is_that_of_the_code():
    """Otherwise a user would look up a probe of the report in vain."""
    rows = re.findall(r"^\| (`.*?`) \|.*\| (?:up to )?\d \|$", DIAGNOSIS, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == list(probes.TITLES)


def test_the_table_of_augmentations_is_that_of_the_code():
    """Otherwise a user would set a key that does not exist, or miss one."""
    text = Path("docs/augmentation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| [\d.]+ \|$", text, re.MULTILINE)
    assert rows == list(Augmentation.model_fields)


def test_commands_of_the_cluster_exist():
    """Otherwise a user who follows docs/cluster.md would be stuck at a target or a folder that no longer exists."""
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


def test_the_documented_limits_are_those_of_the_code():
    """Otherwise a user would expect a run on spot nodes to survive more lost workers than it does."""
    text = Path("docs/cluster.md").read_text(encoding="utf-8")
    assert f"more than `launch.max_failures` times, by default {Launch().max_failures} |" in text


def test_every_promise_names_tests_that_exist():
    """A promise under a fault would be held by nothing."""
    section = Path("docs/operations.md").read_text(encoding="utf-8").partition("\n## Faults\n")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(?:(\w+)::)?(\w+)`", row.split("|")[3])
        assert named, row
        for file, group, test in named:
            text = Path(file if "/" in file else f"tests/trainer/storage/{file}").read_text(encoding="utf-8")
            assert f"def {test}(" in text, f"{file}::{test}"
            assert not group or f"class {group}" in text, f"{file}::{group}"


def _first_column(document: str, heading: str = "") -> list[str]:
    """The keys in the first column of the tables below a heading of a document; without a heading, above the first one."""
    sections = {part.partition("\n")[0]: part for part in Path(document).read_text(encoding="utf-8").split("\n## ")}
    section = sections[heading] if heading else next(iter(sections.values()))
    return [key for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)]


@pytest.mark.parametrize(
    ("section", "document", "heading"),
    [
        (Data, "docs/data.md", ""),
        (Model, "docs/networks.md", "All keys of `[model]`"),
        (Optimizer, "docs/networks.md", "All keys of `[optimizer]`"),
        (Diagnosis, "docs/diagnosis.md", "Settings"),
    ],
)
def test_the_tables_of_settings_are_those_of_the_code(section, document, heading):
    """Otherwise a user would set a key that does not exist, or never learn of one that does."""
    assert sorted(_first_column(document, heading)) == sorted(section.model_fields)


def test_the_table_of_the_loss_names_keys_that_exist():
    """Otherwise a user would set a key that does not exist."""
    keys = _first_column("docs/networks.md", "Label smoothing and class weights")
    assert keys
    assert set(keys) <= set(Training.model_fields)


@pytest.mark.parametrize("document", ["README.md", *map(str, sorted(Path("docs").glob("*.md")))])
def test_the_documents_name_keys_that_exist(document):
    """A key that was renamed, such as training.learning_rate, would be refused when a user copies it."""
    text = Path(document).read_text(encoding="utf-8")
    sections = {name: set(field.annotation.model_fields) for name, field in Settings.model_fields.items()}
    named = re.findall(rf"(?<![\w./:-])({'|'.join(sections)})\.([a-z_0-9]+)\b(?![(/])", text)
    others = {"json", "keras", "md", "py", "fit", "verdict"}  # names of files, model.fit, and diagnosis.verdict in an example
    assert not {f"{section}.{key}" for section, key in named if key not in sections[section] | others}


@pytest.mark.parametrize("path", sorted(Path("docs/examples").glob("*.toml")), ids=str)
def test_the_examples_are_valid_and_their_networks_are_found(path):
    """An example is the first thing a user copies."""
    settings = config.load(path)
    module = find(settings.model.network, [path.parent])
    assert (module is None) == settings.model.network.startswith("keras.applications:")
