"""The dry run."""

import pytest

from jobs import train
from tests import jobs
from trainer import config, model
from trainer.plan import parameters


def test_a_dry_run_says_what_would_be_done_and_touches_nothing(tmp_path, capsys):
    """Somebody who asks first would have written to the bucket already, or would not learn what the job is about to do."""
    jobs.put_images(str(tmp_path), images=60)
    configuration = jobs.write_config(tmp_path, str(tmp_path), workers=2)
    before = sorted(tmp_path.rglob("*"))
    assert train.main(["--config", str(configuration), "--set", "run.name=first", "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    shown = capsys.readouterr().out
    for part in (
        "first in",
        "60 images",
        "authentic 30, fake 30",
        "30% for validation",
        "about 42 to train on",
        "4 epochs of 1 steps",
        "2, 16 images",
    ):
        assert part in shown


def test_a_dry_run_refuses_what_the_run_would(tmp_path, capsys):
    """It would promise epochs of 0 steps, and the run end with an error."""
    jobs.put_images(str(tmp_path), images=60)
    configuration = jobs.write_config(tmp_path, str(tmp_path))
    assert train.main(["--config", str(configuration), "--set", "training.batch_size=64", "--dry-run"]) == 2
    assert "training.batch_size = 64 is larger than the training set of about 42 images" in capsys.readouterr().err


@pytest.mark.parametrize(("shape", "classes"), [((64, 64, 3), 2), ((33, 50, 1), 5)])
def test_the_parameters_are_counted_as_keras_does(shape, classes):
    """The memory that a dry run promises would be wrong."""
    assert parameters(shape, classes) == model.build(shape, classes, config.Model(), seed=0).count_params()
