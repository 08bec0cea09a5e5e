"""What the driver decides before anything is started; whole runs are in integration/."""

from types import SimpleNamespace

import pytest

from tests import jobs
from trainer import config, launch
from trainer.objectstore import open_store


def test_a_resumed_run_whose_images_have_changed_is_refused(tmp_path):
    """It would go on with other images than it learned, and other validation images than its losses are of."""
    jobs.put_images(str(tmp_path), images=40)
    settings = config.load(jobs.write_config(tmp_path, str(tmp_path)))
    run = SimpleNamespace(name="first", settings=settings, storage=open_store(settings.run.storage, settings.s3))
    manifest = launch._manifest(run, None)
    assert launch._manifest(run, {"manifest": manifest.digest}).digest == manifest.digest
    jobs.put_images(str(tmp_path), images=42)
    with pytest.raises(launch.LaunchError, match="run first began with other images than are at"):
        launch._manifest(run, {"manifest": manifest.digest})
