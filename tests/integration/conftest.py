"""A finished run that several modules look at: it is trained once per session."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.support.job import Job
from tests.support import jobs
from trainer import config
from trainer.storage import open_store
from trainer.storage.store import Store

SPIKE = ("optimizer.learning_rate=1e-3", "model.momentum=0.98", "training.epochs=4", "diagnosis.sensitivity=10")
"""With 10 steps an epoch the moving statistics lag far behind at first, as in the demo."""


class Place(NamedTuple):
    folder: Path
    configuration: Path
    store: Store


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder with images and storage, and a configuration."""
    folder = tmp_path_factory.mktemp("spiked")
    jobs.put_images(str(folder))
    return Place(folder, jobs.write_config(folder, str(folder)), open_store(f"{folder}/storage", config.S3()))


@pytest.fixture(scope="session")
def spiked(workplace: Place) -> Job:
    """A finished run named `spiked` with a spike. It measured the parts of the loss in every epoch and proved its remedy. Tests of
    replay change its report; `reports/spiked` keeps the first one."""
    job = Job(workplace.configuration, "spiked", *SPIKE, "diagnosis.budget=1", "diagnosis.prove=100")
    job.succeed()
    shutil.copytree(workplace.folder / "runs/spiked", workplace.folder / "reports/spiked")
    return job
