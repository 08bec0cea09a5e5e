"""Submitting without a cluster: what goes to it, what is said about it, and what is refused before anything is created."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from jobs import cluster, submit
from jobs.kubernetes import manifests, pods, watch
from jobs.kubernetes.kubectl import Forbidden, KubernetesError, KubernetesObject
from trainer import UserError, config
from trainer.epoch import EpochReport
from trainer.metrics import Exporter

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
        (["--overlay", "local", "--set", "training.epochs=0"], r"error: --set training\.epochs=0: should be .*"),
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


def _pod(index: int, phase: str = "Running", state: dict[str, Any] | None = None, **status: Any) -> KubernetesObject:
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


def _job(*conditions: dict[str, Any]) -> KubernetesObject:
    return {
        "kind": "Job",
        "metadata": {"name": "run-first", "uid": "u", "labels": {}},
        "spec": {"activeDeadlineSeconds": 60, "parallelism": 2},
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
    assert "image registry.example/spikewise:1 cannot be pulled" in (pods.not_pullable([_pod(0, "Pending", waiting)]) or "")
    assert pods.not_pullable([_pod(0, "Pending", {"waiting": {"reason": "ErrImagePull"}})]) is None  # may be better the next time


def test_refusals_of_this_run_alone():
    """A run would be given up because of an event of another run, or of an earlier one of its name."""

    def event(name: str, uid: str, message: str, time: str = "2026-01-01T00:00:01Z") -> KubernetesObject:
        return {
            "reason": "FailedCreate",
            "involvedObject": {"name": name, "uid": uid},
            "message": message,
            "lastTimestamp": time,
        }

    others = [event("run-first", "earlier", "no"), event("run-first-two", "v", "no"), event("run-first-x1y2z", "w", "no")]
    assert pods.refusal(_job(), others) is None
    newest = event("run-first", "u", "exceeded quota:\n  pods", "2026-01-01T00:00:03Z")
    assert pods.refusal(_job(), [newest, event("run-first", "u", "old"), *others]) == "exceeded quota: pods"
    rayjob = _job() | {"kind": "RayJob", "status": {"rayClusterName": "run-first-x1y2z"}}
    assert pods.refusal(rayjob, others) == "no"


class _Cluster:
    """Answers what a test says, a list for each look: the run's main object, its pods and the events."""

    def __init__(
        self, main: KubernetesObject, *looks: list[KubernetesObject], events: list[KubernetesObject] | None = None
    ) -> None:
        self.main, self.looks, self.events = main, list(looks), events

    def get(self, kind: str, *_: str) -> Any:
        if kind == "job":
            return self.main
        if kind == "events" and self.events is None:
            raise KubernetesError("may not list events")
        if kind == "pods" and not self.looks:
            raise KeyboardInterrupt
        return {"items": self.looks.pop(0) if kind == "pods" else self.events}


def _watched(monkeypatch: pytest.MonkeyPatch, cluster: _Cluster, start_timeout: float = 0.0) -> tuple[list[str], str]:
    """What is said until it ends, and how; time goes by 40 s from one look to the next. Logs are not followed."""
    clock, said = [0.0], []
    time = SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda _: clock.__setitem__(0, clock[0] + 40))
    monkeypatch.setattr(watch, "time", time)
    monkeypatch.setattr(pods, "has_started", lambda _: False)
    try:
        end = watch.Watch(cluster, "first", "job", said.append).until_end(start_timeout)
    except (KubernetesError, KeyboardInterrupt) as error:
        return said, str(error) or "goes on"
    return said, end.line


def _homeless() -> KubernetesObject:
    pod = _pod(1, "Pending")
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient cpu."}
    pod["status"] = {"phase": "Pending", "conditions": [condition]}
    return pod


def test_a_run_that_has_started_is_never_given_up(monkeypatch):
    """After forty hours the run would be deleted because a spot node is gone or a registry hiccups."""
    unpullable, uncreatable = (
        _pod(1, "Pending", {"waiting": {"reason": reason, "message": "m"}})
        for reason in ("ImagePullBackOff", "CreateContainerError")
    )
    refusal = {"reason": "FailedCreate", "involvedObject": {"uid": "u"}, "message": "exceeded quota"}
    running = [_pod(0), _pod(1)]
    for bad in ([_pod(0), _homeless()], [_pod(0), unpullable], [_pod(0), uncreatable], [_pod(0)]):
        said, how = _watched(monkeypatch, _Cluster(_job(), running, *[bad] * 5, running, events=[refusal]))
        assert how == "goes on"
        assert re.search("finds no node|cannot be pulled|cannot start|not made: exceeded quota", said[1]), said
        assert said[-1] == said[0] == "pods: 2 running"


def test_what_keeps_a_run_from_starting(monkeypatch):
    """A run that is admitted in part would hold its pods idle for two days; one pod that is slow would end it at once."""
    refusal = {"reason": "FailedCreate", "involvedObject": {"uid": "u"}, "message": "exceeded quota"}
    uncreatable = _pod(1, "Pending", {"waiting": {"reason": "CreateContainerError", "message": "busy"}})
    for looks, events, how in (
        ([[_pod(0)]] * 3, [refusal], r"exceeded quota \(for 60 s, launch.start_timeout\): .* quota"),
        ([[_pod(0)]] * 9, None, "goes on"),
        ([[]] * 2, [refusal], "the cluster makes no pods: exceeded quota"),
        ([[_pod(0), _homeless()]] * 3, [], "pod run-first-1-abcde finds no node: .*"),
        ([[_pod(0), _homeless()], [_pod(0)]] * 4, [], "goes on"),
        ([[_pod(0), uncreatable]] * 3, [], "pod run-first-1-abcde cannot start: busy .*"),
        ([[_pod(0), uncreatable], [_pod(0)]] * 4, [], "goes on"),
    ):
        ended = _watched(monkeypatch, _Cluster(_job(), *looks, events=events), 60.0)[1]
        assert re.fullmatch(how, ended), ended


def test_losses_are_said_when_they_happen(monkeypatch):
    """A run whose worker runs out of memory again and again would look as if it only started slowly."""
    lost = _pod(1, "Failed", {"terminated": {"exitCode": 137, "reason": "OOMKilled"}})
    said, _ = _watched(monkeypatch, _Cluster(_job(), [_pod(0), _pod(1)], *[[_pod(0), lost]] * 2, events=[]))
    assert [line for line in said if "out of memory: pod run-first-1-abcde needed more than 4Gi" in line] == said[-1:]


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


def test_the_end_is_named_by_its_cause():
    """A person would give memory to a run whose images are missing, because a pod of hours ago ran out of it."""
    policy, backoff = (
        _job({"type": "Failed", "status": "True", "reason": reason, "message": "too often"})
        for reason in ("PodFailurePolicy", "FailedIndexes")
    )
    survived = _pod(0, "Failed", {"terminated": {"exitCode": 137, "reason": "OOMKilled"}})
    later = {"creationTimestamp": "2026-01-01T00:00:09Z"}

    def ended(index: int, code: int) -> KubernetesObject:
        pod = _pod(index, "Failed", {"terminated": {"exitCode": code}})
        return pod | {"metadata": pod["metadata"] | later}

    driver, log = "the driver ended with exit code", "why is in its log: make logs"
    assert pods.end(policy, [survived, ended(0, 2)]) == pods.End(2, f"{driver} 2; {log}")
    worker = pods.end(policy, [ended(0, 143), ended(1, 2)])
    assert worker == pods.End(2, "pod run-first-1-abcde ended with exit code 2; why is in its log: kubectl logs run-first-1-abcde")
    assert pods.end(backoff, [survived, ended(0, 75)]) == pods.End(1, f"{driver} 75; {log}")
    assert pods.end(backoff, [ended(0, 143), ended(1, 137)]) == pods.End(1, "too often")


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


def test_status_from_the_bucket(tmp_path):
    """Of a run that is cancelled or a week old nobody could say how far it came."""
    from trainer.storage import open_store, results

    store = open_store(str(tmp_path), config.S3())
    with pytest.raises(UserError, match=r"holds no run first: correct RUN= or STORAGE="):
        cluster.stored("first", str(tmp_path), config.S3())
    facts = {"config": {"training": {"epochs": 8}}, "manifest": "m", "environment": {}}
    results.put_run(store, "first", facts)
    assert cluster.stored("first", str(tmp_path), config.S3()) == "no outcome: it goes on, or has ended without a word"
    values = dict.fromkeys(EpochReport.__dataclass_fields__, 0.5) | {"epoch": 1}
    results.put_epoch(store, "first", EpochReport(**values), {})
    results.put_run(store, "first", facts | {"outcome": "interrupted"})
    assert cluster.stored("first", str(tmp_path), config.S3()).splitlines() == [
        "interrupted",
        "epoch 1 of 8: loss 0.5000, of training images in inference mode 0.5000, of validation images 0.5000",
        "lowest validation loss: 0.5000 in epoch 1",
    ]


class _Secrets:
    """A cluster with these Secrets and their keys; None: the user may not look."""

    namespace = "training"

    def __init__(self, keys: dict[str, str | None]) -> None:
        self.keys = keys

    def run(self, _get: str, _kind: str, name: str, *_: str) -> str:
        if self.keys.get(name, "") is None:
            raise Forbidden('user "jane" may not get secrets')
        return f"{name} {self.keys[name]}" if name in self.keys else ""


@pytest.mark.parametrize(
    ("keys", "optional", "ours", "line"),
    [
        ({"s": "AWS_ACCESS_KEY_ID"}, False, True, ""),
        ({"s": ""}, False, True, ""),
        ({"s": "AWS_ENDPOINT_URL AWS_ACCESS_KEY_ID"}, False, False, ""),
        ({}, True, True, "no Secret s: the pods rely on the identity"),
        ({"s": None}, False, False, 'Secret s: not looked at, .* user "jane" may not get secrets'),
    ],
)
def test_secrets_that_may_not_be_read(capsys, keys, optional, ours, line):
    """Where people may not read Secrets nobody could submit; or another bucket than the pods' would be looked at."""
    container = {"envFrom": [{"secretRef": {"name": "s", "optional": optional}}]}
    main = {"spec": {"template": {"spec": {"containers": [container]}}}}
    assert submit._check_secrets(_Secrets(keys), main) is ours
    assert re.match(line, capsys.readouterr().out)
    if not optional:
        with pytest.raises(KubernetesError, match="namespace training has no Secret s"):
            submit._check_secrets(_Secrets({}), main)


def test_a_bucket_for_the_cluster_alone(capsys, monkeypatch):
    """A bucket behind the cluster's own network could not be used; or a misspelt one would be found out by the pods."""
    from trainer.run import plan
    from trainer.storage import s3

    said = [s3.StoreError("no answer", transient=True), s3.StoreError("no such bucket")]

    def refuse(*_: Any) -> str:
        raise said.pop(0)

    monkeypatch.setattr(s3, "has_credentials", lambda: True)
    monkeypatch.setattr(plan, "plan", refuse)
    settings = config.load("jobs/configs/demo.toml")
    submit._check_bucket(settings, "first")
    assert capsys.readouterr().out == "warning: the bucket was not looked at: no answer\n"
    with pytest.raises(UserError, match="no such bucket"):
        submit._check_bucket(settings, "first")


def test_the_reason_outlives_the_removal(capsys, monkeypatch):
    """A person would read of a deletion that timed out, and not why the run did not start."""

    def remove(*_: Any) -> None:
        raise KubernetesError("did not answer `kubectl delete` within 300 s")

    monkeypatch.setattr(submit, "remove", remove)
    submit._undo(None, "first")
    assert "not all gone (did not answer `kubectl delete` within 300 s): make cancel RUN=first" in capsys.readouterr().out


def test_help_needs_no_tensorflow():
    """Every `make status` would take ten seconds."""
    script = "import sys, jobs.submit, jobs.cluster; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow", "keras", "ray"} & set(loaded)
