"""Submitting without a cluster: what goes to it, what is said about it, and what is refused before anything is created."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import cluster, manifests, pods, submit
from jobs.kubernetes import Manifest
from trainer import config
from trainer.exporter import Exporter
from trainer.records import EpochReport

DEMO = ["--config", "jobs/configs/demo.toml", "--image", "registry.example/spikewise:1"]


def _submit(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = submit.main([*DEMO, *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("shape", manifests.SHAPES)
def test_dry_run_prints_manifests(capsys, shape, monkeypatch):
    """What a reviewer or a GitOps repository is given would not be what is applied; or a cluster would be needed for it."""
    monkeypatch.setenv("KUBECONFIG", os.devnull)
    code, out, _ = _submit(capsys, "--overlay", "local", "--shape", shape, "--set", "run.name=first", "--dry-run")
    assert code == 0
    objects = list(yaml.safe_load_all(out))
    assert {each["metadata"]["name"] for each in objects} == {"run-first"}
    text = next(each["data"]["config.toml"] for each in objects if each["kind"] == "ConfigMap")
    assert "\n[run]\n" in text


@pytest.mark.parametrize("file", sorted(Path("jobs/configs").glob("*.toml")), ids=lambda file: file.stem)
def test_configuration_survives(file, tmp_path):
    """The pods would train something else than what was asked for."""
    strange = ['run.name="on"', "data.group_by='^[^\"\\\\/]+(\"|\x7f|ü)/'", "training.learning_rate=1e-7", "s3.max_attempts=7"]
    settings = config.load(file, strange)
    path = tmp_path / "config.toml"
    path.write_text(manifests.write_toml(settings), encoding="utf-8")
    assert config.load(path) == settings


def test_names_that_yaml_reads_otherwise(capsys):
    """A run called `1` or `on` would be refused by the API server, or be labelled `true`."""
    for name in ("1", "on", "null", "1e5"):
        code, out, _ = _submit(capsys, "--overlay", "local", "--set", f"run.name={name!r}", "--dry-run")
        assert code == 0
        assert {each["metadata"]["labels"][manifests.LABEL] for each in yaml.safe_load_all(out)} == {name}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--overlay", "nowhere"], "error: OVERLAY=nowhere: there is no .*: choose gpu, kueue, local, spot or the path"),
        (["--overlay", "gpu"], "error: OVERLAY=gpu takes a GPU for each pod, but launch.gpu = false"),
        (["--overlay", "local", "--set", "launch.gpu=true"], "error: launch.gpu = true, but OVERLAY=local gives no GPU"),
        (["--overlay", "local", "--set", "training.epochs=0"], "error: jobs/configs/demo.toml: training.epochs = 0: .*"),
        (["--overlay", "local", "--set", "run.storage=runs"], "error: run.storage = 'runs': the pods share no folder: .*"),
        (["--overlay", "local", "--set", "metrics.port=0"], "error: metrics.port = 0: Prometheus .*"),
        (["--overlay", "local", "--shape", "rayjob", "--set", f"run.name={'x' * 44}"], "error: run.name = x*: .* at most 43 .*"),
        (["--overlay", "local"], "error: no cluster: the kubeconfig names none .*"),
    ],
)
def test_refused_in_one_line(capsys, monkeypatch, arguments, line):
    """A mistake would be found minutes later, in a pod's log, with objects left on the cluster."""
    monkeypatch.setenv("KUBECONFIG", os.devnull)
    code, _, err = _submit(capsys, *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert re.match(line, err), err


def test_no_answer_in_one_line(capsys, tmp_path, monkeypatch):
    """A cluster that is switched off would look like a mistake in the manifests."""
    path = tmp_path / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "off",
                "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
                "contexts": [{"name": "off", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    monkeypatch.setenv("KUBECONFIG", str(path))
    code, _, err = _submit(capsys, "--overlay", "local")
    assert code == 2
    assert err.startswith("error: the cluster of context off (https://127.0.0.1:1) does not answer")
    assert len(err.splitlines()) == 1


def _pod(index: int, phase: str = "Running", state: dict[str, Any] | None = None, **status: Any) -> Manifest:
    return {
        "metadata": {
            "name": f"run-first-{index}-abcde",
            "creationTimestamp": f"2026-01-01T00:00:0{index}Z",
            "labels": {pods.INDEX: str(index), manifests.LABEL: "first"},
        },
        "spec": {"containers": [{"resources": {"limits": {"memory": "4Gi"}}}]},
        "status": {
            "phase": phase,
            "containerStatuses": [{"image": "registry.example/spikewise:1", "state": state or {"running": {}}}],
            **status,
        },
    }


def _job(*conditions: dict[str, Any]) -> Manifest:
    return {
        "kind": "Job",
        "metadata": {"name": "run-first", "labels": {}},
        "spec": {"activeDeadlineSeconds": 60},
        "status": {"conditions": list(conditions)},
    }


def test_pods_in_a_line():
    """Somebody who waits would not see what for."""
    pending = _pod(1, "Pending")
    pending["status"] = {
        "phase": "Pending",
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/1 nodes are available: 1 Insufficient cpu.",
            }
        ],
    }
    line = pods.summary(_job(), [_pod(0), pending])
    assert line.startswith("pods: 1 pending, 1 running (pod run-first-1-abcde finds no node: 0/1 nodes")
    queued = _job()
    queued["spec"]["suspend"] = True
    queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "spikewise"
    assert pods.summary(queued, []) == "suspended: waiting in Kueue's queue spikewise"


def test_image_that_cannot_be_pulled():
    """The run would wait for an image that does not exist until its deadline."""
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
    assert "image registry.example/spikewise:1 cannot be pulled" in (pods.trouble([_pod(0, "Pending", waiting)]) or "")
    assert pods.trouble([_pod(0, "Pending", {"waiting": {"reason": "ErrImagePull"}})]) is None  # may be better the next time


@pytest.mark.parametrize(
    ("condition", "terminated", "code", "line"),
    [
        ({"type": "Complete", "status": "True", "reason": "SuccessPolicy"}, {"exitCode": 0}, 0, "completed"),
        (
            {"type": "Failed", "status": "True", "reason": "PodFailurePolicy"},
            {"exitCode": 2},
            2,
            "the driver ended with exit code 2",
        ),
        (
            {"type": "Failed", "status": "True", "reason": "MaxFailedIndexesExceeded"},
            {"exitCode": 137, "reason": "OOMKilled"},
            1,
            "out of memory",
        ),
        ({"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}, {"exitCode": 143}, 1, "not done after 60 s"),
    ],
)
def test_end_of_a_job(condition, terminated, code, line):
    """A script that submits would go on after a failed run, or a person would look for the cause in the wrong place."""
    found = pods.end(_job(condition), [_pod(0, "Failed", {"terminated": terminated})])
    assert found is not None
    assert (found.code, found.line.startswith(line)) == (code, True)


def test_running_has_no_end():
    """The watch would stop while the run goes on."""
    criteria = {"type": "FailureTarget", "status": "True", "reason": "PodFailurePolicy"}
    assert pods.end(_job(criteria), [_pod(0)]) is None


def test_status_from_the_metrics():
    """`make status` would say nothing about the training, or something else than Prometheus."""
    from prometheus_client import generate_latest

    exporter = Exporter()
    assert cluster.progress("") == "the driver is starting"
    exporter.describe_run(run="first", model="cnn", precision="float32", epochs=8, workers=2)
    exporter.enter("training")
    report = EpochReport(
        **dict.fromkeys(EpochReport.__dataclass_fields__, 0.5) | {"epoch": 2, "step": 10, "restarts": 0, "seconds": 10.0}
    )
    exporter.update(report, best=report, images=320)
    text = cluster.progress(generate_latest(exporter.registry).decode())
    assert text.splitlines() == [
        "training, 25% done, 1m00s left",
        "epoch 2 of 8: loss 0.5000, of training images in inference mode 0.5000, of validation images 0.5000",
        "lowest validation loss: 0.5000 in epoch 2",
    ]


def test_help_needs_no_tensorflow():
    """Every `make status` would take ten seconds."""
    script = "import sys, jobs.submit, jobs.cluster; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow", "keras", "ray"} & set(loaded)
