"""trainer.config.overrides: single keys changed on the command line."""

import pytest

from tests.trainer.config.files import MINIMAL, load
from trainer import config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochs=5", 5),
        ("run.name=bare-word", "bare-word"),
        ('run.storage="s3://bucket/a b"', "s3://bucket/a b"),
        ("optimizer.learning_rate=1", 1.0),
        ("data.classes.fake=Other/", {"authentic": "Au/", "fake": "Other/"}),
    ],
)
def test_overrides_are_written_as_in_toml(tmp_path, override, expected):
    """--set could not set what the file can."""
    settings = load(tmp_path, MINIMAL, override)
    section, key = override.partition("=")[0].split(".")[:2]
    assert getattr(getattr(settings, section), key) == expected


@pytest.mark.parametrize("override", ["training.epochs", "epochs=3", ".epochs=3", "training.=3", "=3"])
def test_a_malformed_override_is_refused(tmp_path, override):
    """A mistyped --set would be ignored."""
    with pytest.raises(config.ConfigError, match=r"section\.key=value"):
        load(tmp_path, MINIMAL, override)


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("run.name=a training.epochs=5", ["run.name=a", "training.epochs=5"]),
        (r"data.group_by=^(\w+) x$  run.seed=1", [r"data.group_by=^(\w+) x$", "run.seed=1"]),
        ("training.step_epochs=[3, 5] run.seed=1", ["training.step_epochs=[3, 5]", "run.seed=1"]),
        ("data.class_pattern=[^_]+_(?P<class>x) run.seed=1", ["data.class_pattern=[^_]+_(?P<class>x)", "run.seed=1"]),
        ("model.arguments={a = 1, x.y=2} run.name='b c.d=3'", ["model.arguments={a = 1, x.y=2}", "run.name='b c.d=3'"]),
        ("run.name=a\nrun.seed=2", ["run.name=a", "run.seed=2"]),
        ("run.storage=/my data/runs", ["run.storage=/my data/runs"]),
        ("epochs=3", ["epochs=3"]),
    ],
)
def test_several_overrides_in_one(text, overrides):
    """SET of the Makefile could hold no pattern with parentheses and no path with spaces; or one value would swallow the next."""
    assert config.split_overrides(text) == overrides
