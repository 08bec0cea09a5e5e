"""Parts of the driver that need no workers. Whole runs are in tests/integration."""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import training
from tests.support.epochs import report
from trainer.metrics import Exporter
from trainer.run.console import Console, RunLog
from trainer.run.driver import HOUR, Stopped, _Run
from trainer.run.events import Finished
from trainer.run.monitoring import Monitoring
from trainer.storage.checkpoint import SaveStats
from trainer.storage.files import PARTIAL
from trainer.storage.folder import FolderStore
from trainer.storage.lease import Lease


@pytest.fixture
def run(tmp_path: Path) -> _Run:
    store = FolderStore(tmp_path / "storage")
    settings = training.settings(run={"output": str(tmp_path / "runs")})
    log, monitoring = RunLog(Console(), "first", 3), Monitoring(Exporter(), 32, 0.0)
    return _Run("first", settings, None, store, log, monitoring, threading.Event(), Lease(store, "first", 30))


def test_a_starting_run_sweeps_what_no_one_writes(run):
    """A run that is resumed while one of its spikes is trained again would delete what the replay is uploading; or the parts of
    killed uploads would stay in the bucket for good."""
    root = run.storage.root
    new = [f"runs/first/checkpoints/a/{PARTIAL}1", f"runs/first/replays/0003/control/{PARTIAL}2", f"runs/first/{PARTIAL}3"]
    old = [f"runs/first/replays/0003/{PARTIAL}4", f"shards/a/{PARTIAL}5"]
    other = f"runs/second/checkpoints/{PARTIAL}6"
    for name in (*new, *old, other):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"part")
    before = time.time() - HOUR - 60
    for name in old:
        os.utime(root / name, (before, before))
    with run.lease:
        run._sweep()
    left = {path.relative_to(root).as_posix() for path in root.rglob(f"{PARTIAL}*")}
    assert left == {*new[1:], old[1], other}


def test_a_request_to_stop_ends_the_listing_of_the_images(run, tmp_path):
    """Kubernetes would kill a driver that lists a large bucket, and count it as a failure."""
    (tmp_path / "images").mkdir()
    settings = run.settings.model_copy(update={"data": run.settings.data.model_copy(update={"source": str(tmp_path / "images")})})
    run.settings = settings
    run.stop.set()
    with run.lease, pytest.raises(Stopped):
        run.execute()


@pytest.mark.parametrize(("outcome", "state"), [("completed", "proving"), ("interrupted", "training")])
def test_proving_is_a_state_of_its_own(run, outcome, state):
    """While remedies are proven after the last epoch, nothing is saved: an alert about old checkpoints would wake somebody."""
    run.monitoring.exporter.enter("training")
    run.status.history = [report(3)]
    run.status.finished = Finished(outcome, 3, SaveStats())
    images = SimpleNamespace(validation=[0])
    run._prove(SimpleNamespace(rows=SimpleNamespace(groups=[""]), split=images, pack=None))
    value = run.monitoring.exporter.registry.get_sample_value
    assert value("spikewise_state", {"state": state}) == 1
