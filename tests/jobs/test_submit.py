"""jobs.submit without a cluster: what it prints, and what it refuses before anything is created."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import submit
from jobs.kubernetes import manifests
from jobs.kubernetes.kubectl import ForbiddenError, KubernetesError
from spikewise.findings import Findings
from trainer import UserError, config
from trainer.epoch import EpochReport
from trainer.storage import results
from trainer.storage.folder import FolderStore

DEMO = ["--config", "jobs/configs/demo.toml", "--image", "registry.example/spikewise:1"]


def _submit(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = submit.main([*DEMO, *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("shape", manifests.SHAPES)
def test_dry_run_prints_manifests(capsys, shape, monkeypatch):
    """A reviewer would see other manifests than those that are applied; or a dry run would need a cluster."""
    monkeypatch.setenv("KUBECONFIG", os.devnull)
    code, out, _ = _submit(capsys, "--overlay", "local", "--shape", shape, "--set", "run.name=first", "--dry-run")
    assert code == 0
    objects = list(yaml.safe_load_all(out))
    assert {each["metadata"]["name"] for each in objects} == {"run-first"}
    text = next(each["data"]["config.toml"] for each in objects if each["kind"] == "ConfigMap")
    assert "\n[run]\n" in text


@pytest.mark.parametrize("shape", manifests.SHAPES)
def test_the_users_network_travels(capsys, shape, tmp_path, monkeypatch):
    """A reviewer would not see the code that a run executes; or the pods would not have it."""
    monkeypatch.setenv("KUBECONFIG", os.devnull)
    configuration = tmp_path / "mine.toml"
    configuration.write_text(Path("jobs/configs/demo.toml").read_text())
    (tmp_path / "my_module.py").write_text("from blocks.dense import *\ndef build(): ...\n")
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "dense.py").write_text("units = 3\n")
    arguments = ["--config", str(configuration), "--overlay", "local", "--shape", shape, "--dry-run"]
    code, out, _ = _submit(capsys, *arguments, "--set", "run.name=first", "--set", "model.network=my_module:build")
    assert code == 0
    data = next(each["data"] for each in yaml.safe_load_all(out) if each["kind"] == "ConfigMap")
    assert data.keys() == {"config.toml", "my_module.py", "blocks.dense.py"}
    assert data["blocks.dense.py"] == "units = 3\n"
    assert "path: blocks/dense.py" in out


def test_any_working_directory(capsys, tmp_path):
    """In the image, where the working directory is /tmp, neither the configurations nor k8s/ would be found."""
    arguments = ["--overlay", "local", "--image", "i", "--set", "run.name=first", "--dry-run"]
    assert submit.main(["--config", "jobs/configs/demo.toml", *arguments]) == 0
    command = [sys.executable, "-m", "jobs.submit", "--config", str(Path("jobs/configs/demo.toml").absolute()), *arguments]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == capsys.readouterr().out


def test_names_that_yaml_reads_otherwise(capsys):
    """The API server would reject a run called `1` or `on`, or label it `true`."""
    for name in ("1", "on", "null", "1e5"):
        code, out, _ = _submit(capsys, "--overlay", "local", "--set", f"run.name={name!r}", "--dry-run")
        assert code == 0
        assert {each["metadata"]["labels"][manifests.LABEL] for each in yaml.safe_load_all(out)} == {name}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--overlay", "nowhere"],
            "error: --overlay nowhere: .* does not exist. Fix: use cpu, gpu, kueue, local, spot, or the path",
        ),
        (["--overlay", "gpu"], "error: launch.gpu = false, but --overlay gpu requests a GPU for each pod. Fix: "),
        (
            ["--overlay", "local", "--set", "launch.gpu=true"],
            "error: launch.gpu = true, but --overlay local requests no GPU. Fix: use --overlay gpu, combine both in an overlay of",
        ),
        (["--overlay", "local", "--set", "training.epochs=0"], r"error: --set training\.epochs=0: .*"),
        (["--overlay", "local", "--set", "run.storage=runs"], "error: run.storage = 'runs' is a folder, .* Fix: use s3://"),
        (
            ["--overlay", "local", "--set", "model.weights=best.keras"],
            "error: model.weights = 'best.keras' is a local file, but pods share no folder. Fix: use s3://",
        ),
        (["--overlay", "local", "--set", "model.network=nowhere:build"], "error: model.network = .*: no nowhere.py in .* Fix: "),
        (["--overlay", "local", "--set", "data.test=unseen"], "error: data.test = 'unseen' is a folder, .* Fix: use s3://"),
        (["--overlay", "local", "--set", "metrics.port=0"], "error: metrics.port = 0 picks a free port, .* Fix: "),
        (
            ["--overlay", "local", "--shape", "rayjob", "--set", f"run.name={'x' * 44}"],
            "error: run.name = x* is too .* at most 43 ",
        ),
        (["--overlay", "local"], "error: The kubeconfig names no cluster .*"),
    ],
)
def test_refused_in_one_line(capsys, monkeypatch, arguments, line):
    """A mistake would show minutes later, in a pod's log, and objects would be left on the cluster."""
    monkeypatch.setenv("KUBECONFIG", os.devnull)
    code, _, err = _submit(capsys, *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert re.match(line, err), err


class _Secrets:
    """A cluster with these Secrets and their keys; None: the user may not read the Secret."""

    namespace = "training"

    def __init__(self, keys: dict[str, str | None]) -> None:
        self.keys = keys

    def run(self, _get: str, _kind: str, name: str, *_: str) -> str:
        if self.keys.get(name, "") is None:
            raise ForbiddenError('User "jane" may not get secrets.')
        return f"{name} {self.keys[name]}" if name in self.keys else ""


@pytest.mark.parametrize(
    ("keys", "optional", "same", "line"),
    [
        ({"s": "AWS_ACCESS_KEY_ID"}, False, True, ""),
        ({"s": ""}, False, True, ""),
        ({"s": "AWS_ENDPOINT_URL AWS_ACCESS_KEY_ID"}, False, False, ""),
        ({}, True, True, "no Secret s: the pods use the identity"),
        ({"s": None}, False, False, 'Secret s and the bucket are not checked: User "jane" may not get secrets'),
    ],
)
def test_secrets_that_may_not_be_read(capsys, keys, optional, same, line):
    """A user who may not read Secrets could not submit; or another bucket than the pods' would be checked."""
    container = {"envFrom": [{"secretRef": {"name": "s", "optional": optional}}]}
    main = {"spec": {"template": {"spec": {"containers": [container]}}}}
    assert submit._check_secrets(_Secrets(keys), main) is same
    assert re.match(line, capsys.readouterr().out)
    if not optional:
        with pytest.raises(KubernetesError, match=r"Namespace training has no Secret s, .* Fix: "):
            submit._check_secrets(_Secrets({}), main)


def test_a_bucket_that_only_the_cluster_reaches(capsys, monkeypatch):
    """A bucket inside the cluster's own network could not be used; or only the pods would notice a misspelt bucket."""
    from trainer.run import plan
    from trainer.storage import s3

    errors = [s3.StoreError("no answer", transient=True), s3.StoreError("no such bucket")]

    def refuse(*_: Any) -> str:
        raise errors.pop(0)

    monkeypatch.setattr(s3, "has_credentials", lambda: True)
    monkeypatch.setattr(plan, "plan", refuse)
    settings = config.load("jobs/configs/demo.toml")
    assert not submit._check_bucket(settings, "first", None)
    assert capsys.readouterr().out == "warning: the bucket is not checked: no answer\n"
    with pytest.raises(UserError, match="no such bucket"):
        submit._check_bucket(settings, "first", None)


def test_a_complete_run_starts_no_pods(capsys, monkeypatch, tmp_path):
    """Pods would be scheduled, and would "resume in epoch 16 of 15"."""
    from trainer.storage import s3

    settings = config.load("jobs/configs/demo.toml", ["run.name=first", f"run.storage={tmp_path}"])
    store = FolderStore(tmp_path)
    facts = {"config": settings.as_dict(), "manifest": "m", "environment": {}, "outcome": "completed"}
    results.put_run(store, "first", facts)
    for epoch in range(1, settings.training.epochs + 1):
        report = EpochReport(
            **dict.fromkeys(EpochReport.__dataclass_fields__, 0.5) | {"epoch": epoch, "step": 10 * epoch, "restarts": 0}
        )
        results.put_epoch(store, "first", report, {})
    results.put_findings(store, "first", Findings())
    monkeypatch.setattr(s3, "has_credentials", lambda: True)
    assert submit._check_bucket(settings, "first", None)
    out = capsys.readouterr().out
    assert out.startswith(f"Run first is complete: completed after 12 epochs; its report and model are in {tmp_path}/runs/first. ")
    assert "raise training.epochs (now 12)" in out


def test_help_needs_no_tensorflow():
    """Every `make status` would take ten seconds."""
    script = "import sys, jobs.submit, jobs.cluster; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow", "keras", "ray"} & set(loaded)
