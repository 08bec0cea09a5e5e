"""trainer.config.problems: errors that name the key, the value, the bound and where it was written."""

from contextlib import nullcontext

import pytest

from tests.trainer.config.files import MINIMAL, load
from trainer import config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\nepoks = 3\n", ["training.epoks = 3: unknown key. Fix: use one of epochs, batch_size"]),
        ("[trainin]\nepochs = 3\n", ["trainin = ", "unknown key. Fix: use one of data, run"]),
        ("[optimizer]\nlearning_rate = -1\n", ["optimizer.learning_rate = -1", "greater than 0"]),
        ("[training]\nepochs = 1.5\n", ["training.epochs = 1.5", "integer"]),
        ('[training]\nepochs = "3"\n', ["training.epochs = '3'", "integer"]),
        ("[optimizer]\nlearning_rate = nan\n", ["optimizer.learning_rate"]),
        ("[launch]\nworkers = 3\n", ["training.batch_size = 32 is not divisible by launch.workers = 3. Fix: use 30 or 33"]),
        ('[run]\nname = "Not A Name"\n', ["run.name = 'Not A Name'", "pattern"]),
        ("[model]\ndropout = [0.1, 0.2]\n", ["model.dropout"]),
        (
            '[model]\nprecision = "float64"\nbatch_normalization = "fused"\n',
            ['batch_normalization = "fused"', 'precision = "float64"'],
        ),
        (
            '[model]\nstatistics = "precise"\nbatch_normalization = "fused"\n[launch]\nworkers = 2\n',
            ['model.statistics = "precise" needs', 'Fix: use "synchronized"'],
        ),
        ("[model]\nmomentum = 1.0\n", ["model.momentum = 1.0", "less than 1"]),
        ("[training]\nclass_weights = 3\n", ["training.class_weights = 3", "should be 'balanced' or a table"]),
        ("[training]\nclass_weights = { a = -1.0 }\n", ["training.class_weights.a = -1.0", "greater than 0"]),
        ("[model]\narguments = 8\n", ["model.arguments = 8", "should be a table"]),
        ('[optimizer]\nschedule = "step"\n', ["step_epochs and schedule", "Fix: set both or neither"]),
        ('[optimizer]\nschedule = "step"\nstep_epochs = [200]\n', ["step_epochs = [200] goes beyond the run (training.epochs"]),
        ("[optimizer]\nwarmup_epochs = 100\n", ["warmup_epochs = 100 is not shorter than the run (training.epochs = 100)"]),
        ("[metrics]\nport = 70000\n", ["metrics.port = 70000", "65535"]),
        ('[run]\nname = "a"\n[training]\nepochs = 0\nbatch_size = 0\n', ["training.epochs = 0", "training.batch_size = 0"]),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_bound(tmp_path, text, said):
    """The user would have to guess which of forty keys is wrong, or a typo would silently use a default."""
    with pytest.raises(config.ConfigError) as caught:
        load(tmp_path, MINIMAL + text)
    message = str(caught.value)
    assert str(tmp_path / "job.toml") in message
    for part in said:
        assert part in message
    assert len(message.splitlines()) <= 2


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["trainnig.epochs=5"], ["--set trainnig.epochs=5: unknown key. Fix: use one of"]),
        (["training.epohcs=5"], ["--set training.epohcs=5: unknown key. Fix: use one of"]),
        (["training.class_weights.fake=-1"], ["--set training.class_weights.fake=-1: "]),
        (["launch.workers=5"], ["--set launch.workers=5: training.batch_size = 32 is not divisible by launch.workers = 5. Fix:"]),
        (["data.class_pattern=(?P<class>x)"], ["--set data.class_pattern=(?P<class>x): exactly one of classes, class_pattern"]),
        (["optimizer.warmup_epochs=9", "training.epochs=5"], ["--set optimizer.warmup_epochs=9 training.epochs=5: "]),
        (["training.epochs=many"], ["--set training.epochs=many: should be a valid integer"]),
        (["data.image_size=[4, 64]"], ["--set data.image_size=[4, 64]: should be greater than or equal to 8"]),
        ([f"run.seed={'9' * 5000}"], [f"--set run.seed={'9' * 191}...: should be a valid integer"]),
        (['run.output=""'], ['--set run.output="": should have at least 1 character']),
        (["data.labels=x.csv", "data.classes.a=Aa/"], ["--set data.labels=x.csv data.classes.a=Aa/: exactly one of classes"]),
        (["run.seed.x=1"], ["--set run.seed.x=1: run is not a section"]),
        (["run.output=elsewhere"], None),
    ],
)
def test_mistakes_in_overrides_are_not_blamed_on_the_file(tmp_path, overrides, lines):
    """The user would search a file, which is right, for a mistake on the command line."""
    with nullcontext() if lines is None else pytest.raises(config.ConfigError) as error:
        load(tmp_path, MINIMAL + "[run]\nseed = 1\n", *overrides)
    for line, start in zip(str(error.value).splitlines() if lines else [], lines or [], strict=True):
        assert line.startswith(start), line


def test_a_number_of_too_many_digits_is_an_error_like_any_other(tmp_path):
    """A file with a damaged number would end in a traceback: Python refuses to read it, in an error that is not TOML's."""
    with pytest.raises(config.ConfigError, match=r"is not valid TOML: .* Fix: correct the file"):
        load(tmp_path, MINIMAL + f"[run]\nseed = {'9' * 5000}\n")


def test_mistakes_in_the_file_are_not_blamed_on_overrides(tmp_path):
    """The user would change the command line again and again."""
    with pytest.raises(config.ConfigError) as error:
        load(
            tmp_path,
            MINIMAL + "[training]\nbatch_size = 33\nepohcs = 2\n[launch]\nworkers = 2\n",
            "run.seed=1",
            "training.epochs=5",
        )
    assert "job.toml: training.epohcs = 2: unknown key" in str(error.value)
    assert "--set" not in str(error.value)
