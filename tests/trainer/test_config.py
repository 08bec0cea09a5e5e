"""trainer.config: what may be configured, and the errors about the rest."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from trainer import config

MINIMAL = '[data]\nsource = "images"\nclasses = { authentic = "Au/", fake = "Tp/" }\n'


def _load(tmp_path: Path, text: str, *overrides: str) -> config.Settings:
    path = tmp_path / "job.toml"
    path.write_text(text)
    return config.load(path, overrides)


def test_every_key_has_a_default_but_the_data(tmp_path):
    """The smallest useful file would not be enough to start a run."""
    settings = _load(tmp_path, MINIMAL)
    assert (settings.training.epochs, settings.training.batch_size, settings.optimizer.learning_rate) == (100, 32, 1e-4)
    assert (settings.model.network, settings.model.dropout) == ("question", None)
    assert settings.data.image_size == (64, 64)


def test_a_resolved_configuration_reads_back(tmp_path):
    """The configuration stored with a run could not start the run again."""
    settings = _load(tmp_path, MINIMAL, "run.name=first", "data.image_size=[32, 48]")
    assert config.parse(settings.as_dict()) == settings


@pytest.mark.parametrize(
    ("override", "refused"),
    [
        ("run.seed=1", "run.seed = 0, now it is 1"),
        ("model.momentum=0.9", "model.momentum = None, now it is 0.9"),
        ("data.image_size=[32, 32]", r"data.image_size = \[64, 64\], now it is \[32, 32\]"),
        ("optimizer.learning_rate=0.01", None),
        ("launch.workers=2", None),
        ("run.output=elsewhere", None),
        ("s3.region=elsewhere", None),
    ],
)
def test_what_a_resumed_run_may_change(tmp_path, override, refused):
    """One curve would show two runs, or a diverging run could not be resumed with a lower learning rate."""
    before = _load(tmp_path, MINIMAL).as_dict()
    now = _load(tmp_path, MINIMAL, override)
    with pytest.raises(config.ConfigError, match=f"first was started with {refused}") if refused else nullcontext():
        config.check_resumable(now, before, "first")


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
    settings = _load(tmp_path, MINIMAL, override)
    section, key = override.partition("=")[0].split(".")[:2]
    assert getattr(getattr(settings, section), key) == expected


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
        _load(tmp_path, MINIMAL + text)
    message = str(caught.value)
    assert str(tmp_path / "job.toml") in message
    for part in said:
        assert part in message
    assert len(message.splitlines()) <= 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('source = "x"\n', "exactly one of classes, class_pattern and labels is needed"),
        ('source = "x"\nclasses = { one = "One/" }\n', "classes has only one, at least two are needed"),
        ('source = "x"\nclasses = { a = "A/", b = "A/B/" }\n', 'prefix "A/B/" of class b is inside "A/" of class a'),
        ('source = "x"\nclass_pattern = "(["\n', "not a regular expression"),
        ('source = "x"\nclass_pattern = "^([^/]+)/"\n', "has no group `class`. Fix: add (?P<class>...)"),
        ('source = "x"\nclasses = { a = "A/", b = "B/" }\ngroup_by = "abc"\n', "group_by = 'abc' has no group. Fix: "),
        ('classes = { a = "A/", b = "B/" }\n', "data.source: missing. Fix: set it"),
    ],
)
def test_data_that_cannot_be_labelled_is_refused(tmp_path, data, said):
    """The job would list a million objects before it finds that it cannot label them."""
    with pytest.raises(config.ConfigError) as caught:
        _load(tmp_path, f"[data]\n{data}")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epoks=3", "--set training.epoks=3: unknown key. Fix: use one of epochs, batch_size"),
        ("training.epochs=many", "--set training.epochs=many: should be a valid integer"),
        ("data.image_size=[4, 64]", "--set data.image_size=[4, 64]: should be greater than or equal to 8"),
        ("run.seed.x=1", "--set run.seed.x=1: run is not a section"),
        ("launch.workers=3", "--set launch.workers=3: training.batch_size = 32 is not divisible by launch.workers = 3"),
        ("data.class_pattern=x", "--set data.class_pattern=x: exactly one of classes, class_pattern and labels is needed"),
    ],
)
def test_a_mistake_in_an_override_is_not_blamed_on_the_file(tmp_path, override, said):
    """The user would look for the mistake in the wrong place."""
    with pytest.raises(config.ConfigError) as caught:
        _load(tmp_path, MINIMAL + "[run]\nseed = 1\n", "run.output=elsewhere", override)
    assert said in str(caught.value)


@pytest.mark.parametrize("override", ["training.epochs", "epochs=3", ".epochs=3", "training.=3", "=3"])
def test_a_malformed_override_is_refused(tmp_path, override):
    """A mistyped --set would be ignored."""
    with pytest.raises(config.ConfigError, match=r"section\.key=value"):
        _load(tmp_path, MINIMAL, override)


def test_files_that_cannot_be_read(tmp_path):
    """A wrong path or a broken file would end in a traceback."""
    with pytest.raises(config.ConfigError, match="cannot be read: No such file"):
        config.load(tmp_path / "none.toml")
    with pytest.raises(config.ConfigError, match="is not valid TOML"):
        _load(tmp_path, "[data")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(config.ConfigError, match="is not valid TOML"):
        config.load(tmp_path / "binary.toml")


@pytest.mark.parametrize("name", ["demo", "question", "gpu"])
def test_the_shipped_configurations_are_valid(name):
    """The first command in README would fail."""
    settings = config.load(Path("jobs/configs") / f"{name}.toml")
    if name == "question":
        assert (settings.training.epochs, settings.training.batch_size, settings.optimizer.learning_rate) == (100, 32, 1e-4)
        assert settings.model == config.Model()


@pytest.mark.parametrize(
    ("file", "name"),
    [("my_config.toml", "my-config"), (f"{'x' * 40}.toml", "x" * 27), ("Größe 2.toml", "gr-e-2"), ("_.toml", "run")],
)
def test_a_run_without_a_name_gets_a_valid_one(tmp_path, file, name):
    """The generated name would be refused as if the user had chosen it, or be too long for a RayJob."""
    path = tmp_path / file
    path.write_text('[data]\nsource = "images"\nclasses = { a = "a/", b = "b/" }\n')
    made = config.run_name(config.load(path), path)
    assert made[:-16] == name
    assert config.load(path, [f"run.name={made}"]).run.name == made
    assert config.run_name(config.load(path, ["run.name=mine"]), path) == "mine"


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


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["trainnig.epochs=5"], ["--set trainnig.epochs=5: unknown key. Fix: use one of"]),
        (["training.epohcs=5"], ["--set training.epohcs=5: unknown key. Fix: use one of"]),
        (["training.class_weights.fake=-1"], ["--set training.class_weights.fake=-1: "]),
        (["launch.workers=5"], ["--set launch.workers=5: training.batch_size = 32 is not divisible by launch.workers = 5. Fix:"]),
        (["data.class_pattern=(?P<class>x)"], ["--set data.class_pattern=(?P<class>x): exactly one of classes, class_pattern"]),
        (["optimizer.warmup_epochs=9", "training.epochs=5"], ["--set optimizer.warmup_epochs=9 training.epochs=5: "]),
        (["run.seed=1"], None),
    ],
)
def test_mistakes_in_overrides_are_not_blamed_on_the_file(tmp_path, overrides, lines):
    """The user would search a file, which is right, for a mistake on the command line."""
    with nullcontext() if lines is None else pytest.raises(config.ConfigError) as error:
        _load(tmp_path, MINIMAL, *overrides)
    for line, start in zip(str(error.value).splitlines() if lines else [], lines or [], strict=True):
        assert line.startswith(start), line


def test_mistakes_in_the_file_are_not_blamed_on_overrides(tmp_path):
    """The user would change the command line again and again."""
    with pytest.raises(config.ConfigError) as error:
        _load(
            tmp_path,
            MINIMAL + "[training]\nbatch_size = 33\nepohcs = 2\n[launch]\nworkers = 2\n",
            "run.seed=1",
            "training.epochs=5",
        )
    assert "job.toml: training.epohcs = 2: unknown key" in str(error.value)
    assert "--set" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("s3.endpoint_url='http://jane:secret@host'", "s3.endpoint_url = 'http://\\*\\*\\*@host'"),
        ("data.source='s3://jane:secret@bucket/x'", "data.source"),
        ("model.arguments={urls=['http://h/?X-Amz-Signature=secret']}", "model.arguments.urls"),
    ],
)
def test_credentials_are_refused_and_not_repeated(tmp_path, override, key):
    """A secret key would be stored with the run, in its ConfigMap and in its report."""
    with pytest.raises(config.ConfigError, match=f"^--set: {key}.* contains credentials. Fix: ") as error:
        _load(tmp_path, MINIMAL, override)
    assert "secret" not in str(error.value)
