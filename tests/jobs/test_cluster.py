"""jobs.cluster without a cluster: what `status` prints from the driver's metrics and from the bucket."""

import os

import pytest
from prometheus_client import generate_latest

from jobs import cluster
from jobs.kubernetes import manifests
from jobs.kubernetes.kubectl import KubernetesError
from tests.jobs.kubernetes.objects import job
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
    exporter.update_roll_backs(2)
    text = cluster.progress(generate_latest(exporter.registry).decode())
    assert text.splitlines()[-1] == "training diverged, and the run went back to a checkpoint before: 2 times"


def test_cancel_names_its_run(capsys, monkeypatch):
    """`make cancel` without RUN= would end the newest run of the namespace, even one of another user."""
    monkeypatch.setattr(cluster, "Kubectl", lambda _: pytest.fail("the cluster was asked"))
    assert cluster.main(["cancel"]) == 2
    assert capsys.readouterr().err.startswith("error: cancel ends a run, so it must be named. Fix: make cancel RUN=NAME")


def test_status_needs_no_kubeconfig(capsys, monkeypatch, tmp_path):
    """A colleague who may read the bucket, but has no access to the cluster, could not see how a run ended."""
    monkeypatch.setenv("KUBECONFIG", os.devnull)
    facts = {"config": {"training": {"epochs": 8}}, "manifest": "m", "environment": {}, "outcome": "failed: \x1b[2Jno"}
    results.put_run(open_store(str(tmp_path), config.S3()), "first", facts)
    assert cluster.main(["status", "--run", "first", "--storage", str(tmp_path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("The kubeconfig names no cluster")
    assert second == "failed: \\x1b[2Jno"
    assert cluster.main(["status", "--run", "first"]) == 2


class _Ended:
    """A cluster with a run that has completed."""

    namespace, context = "training", "here"

    def __init__(self, storage: str) -> None:
        settings = config.load("jobs/configs/demo.toml", ["run.name=first", f"run.storage={storage}"])
        self.data: dict[str, str] | None = {"config.toml": manifests.to_toml(settings)}
        self.removed = False

    def get(self, kind: str, *_: str) -> object:
        if kind == "configmap":
            if self.data is None:
                raise KubernetesError('configmaps "run-first" not found')
            return {"data": self.data}
        main = job({"type": "Complete", "status": "True"})
        main["metadata"] |= {"creationTimestamp": "2026-01-01T00:00:00Z"}
        return main if kind == "job" else {"items": []}

    def run(self, *arguments: str, timeout: float = 0) -> str:  # noqa: ARG002
        self.removed |= arguments[0] == "delete"
        return ""


def test_a_run_that_has_ended(capsys, tmp_path):
    """`make cancel` would claim to have stopped a completed run; `make status` would not say where its results are."""
    ended = _Ended(str(tmp_path))
    assert cluster.status(ended, "job", "first") == 0
    assert f"results: {tmp_path}/runs/first" in capsys.readouterr().out.splitlines()
    cluster.cancel(ended, "job", "first")
    assert ended.removed
    line = f"run first had already ended (completed) and is removed from the cluster; its results stay in {tmp_path}/runs/first"
    assert capsys.readouterr().out.splitlines() == [line]


@pytest.mark.parametrize("data", [None, {}, {"config.toml": "[run]\nstorage = 's3://b'\ncolour = 1\n"}, {"config.toml": "["}])
def test_no_configuration_keeps_a_run_from_being_cancelled(capsys, data):
    """A colleague with an older checkout could not end a run on expensive nodes; nor anybody, once its ConfigMap is gone."""
    ended = _Ended("s3://bucket")
    ended.data = data
    cluster.cancel(ended, "job", "first")
    assert ended.removed
    assert capsys.readouterr().out.endswith("its results stay in runs/first below its run.storage\n")


@pytest.mark.parametrize("names", [("ray", "metrics"), (None, "metrics"), (None,)])
def test_the_port_of_the_metrics_is_found_by_its_name(names):
    """`make status` would end with a traceback for an overlay with a port without a name, or show no progress."""

    class Serving:
        namespace = "training"

        def run(self, *arguments: str) -> str:
            return arguments[-1]

    ports = [{"containerPort": number, **({"name": name} if name else {})} for number, name in enumerate(names, 9400)]
    head = {"metadata": {"name": "run-first-0-a"}, "spec": {"containers": [{"name": "proxy"}, {"ports": ports}]}}
    if "metrics" in names:
        assert "/pods/run-first-0-a:9401/proxy/" in cluster._metrics(Serving(), head)
    else:
        with pytest.raises(KubernetesError, match=r"has no port named metrics\. Fix: "):
            cluster._metrics(Serving(), head)


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
    back = {"epoch": 2, "found": 2, "what": "it", "settings": "", "before": {}, "to_epoch": 1, "to_step": 10}
    results.put_roll_backs(store, "first", [back])
    line = "training diverged, and the run went back to a checkpoint before: 1 time"
    assert cluster.stored("first", str(tmp_path), config.S3()).splitlines() == ["interrupted", *LINES, line]
