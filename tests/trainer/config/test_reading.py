"""trainer.config.reading: from the file to the settings."""

import pytest

from tests.trainer.config.files import MINIMAL, load
from trainer import config


def test_a_resolved_configuration_reads_back(tmp_path):
    """The configuration stored with a run could not start the run again."""
    settings = load(tmp_path, MINIMAL, "run.name=first", "data.image_size=[32, 48]")
    assert config.parse(settings.as_dict()) == settings


def test_files_that_cannot_be_read(tmp_path):
    """A wrong path or a broken file would end in a traceback."""
    with pytest.raises(config.ConfigError, match="cannot be read: No such file"):
        config.load(tmp_path / "none.toml")
    with pytest.raises(config.ConfigError, match="is not valid TOML"):
        load(tmp_path, "[data")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(config.ConfigError, match="is not valid TOML"):
        config.load(tmp_path / "binary.toml")


def test_the_shipped_question_is_the_question():
    """The first command in README would train another network, or in another way, than the question asks about."""
    settings = config.load("jobs/configs/question.toml")
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
    ("override", "key"),
    [
        ("s3.endpoint_url='http://jane:secret@host'", "s3.endpoint_url = 'http://\\*\\*\\*@host'"),
        ("data.source='s3://jane:secret@bucket/x'", "data.source"),
        ("run.storage='s3://jane:very/secret@bucket/x'", "run.storage = 's3://\\*\\*\\*@bucket/x'"),
        ("run.storage='s3:jane:secret@bucket'", "run.storage"),
        ("s3.endpoint_url='https://host/?aws_access_key_id=secret'", "s3.endpoint_url"),
        ("model.arguments={urls=['http://h/?X-Amz-Signature=secret']}", "model.arguments.urls"),
    ],
)
def test_credentials_are_refused_and_not_repeated(tmp_path, override, key):
    """A secret key would be stored with the run, in its ConfigMap and in its report."""
    with pytest.raises(config.ConfigError, match=f"^--set: {key}.* contains credentials. Fix: ") as error:
        load(tmp_path, MINIMAL, override)
    assert "secret" not in str(error.value)
