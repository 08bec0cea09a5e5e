"""jobs.cluster without a cluster: what `status` prints from the driver's metrics and from the bucket."""

import pytest
from prometheus_client import generate_latest

from jobs import cluster
from trainer import UserError, config
from trainer.epoch import EpochReport
from trainer.metrics import Exporter
from trainer.storage import open_store, results

VALUES = dict.fromkeys(EpochReport.__dataclass_fields__, 0.5)
LINES = [
    "epoch 2 of 8: training loss 0.5000 (in inference mode 0.5000), validation loss 0.5000",
    "lowest validation loss: 0.5000 in epoch 2",
]


def test_status_from_the_metrics():
    """`make status` would say nothing about the training, or something else than Prometheus."""
    exporter = Exporter()
    assert cluster.progress("") == "the driver is starting"
    exporter.describe_run(run="first", model="cnn", precision="float32", epochs=8, workers=2)
    exporter.enter("training")
    assert cluster.progress(generate_latest(exporter.registry).decode()) == "training"
    report = EpochReport(**VALUES | {"epoch": 2, "step": 10, "restarts": 0, "seconds": 10.0})
    exporter.update(report, best=report, images=320)
    text = cluster.progress(generate_latest(exporter.registry).decode())
    assert text.splitlines() == ["training, 25% done, 1m00s left", *LINES]


def test_status_from_the_bucket(tmp_path):
    """A user could not see how far a cancelled or week-old run came."""
    store = open_store(str(tmp_path), config.S3())
    with pytest.raises(UserError, match=r"has no run first\. Fix: correct --run or --storage"):
        cluster.stored("first", str(tmp_path), config.S3())
    facts = {"config": {"training": {"epochs": 8}}, "manifest": "m", "environment": {}}
    results.put_run(store, "first", facts)
    assert cluster.stored("first", str(tmp_path), config.S3()).startswith("no outcome stored: ")
    results.put_epoch(store, "first", EpochReport(**VALUES | {"epoch": 2, "step": 20, "restarts": 0}), {})
    results.put_run(store, "first", facts | {"outcome": "interrupted"})
    assert cluster.stored("first", str(tmp_path), config.S3()).splitlines() == ["interrupted", *LINES]
