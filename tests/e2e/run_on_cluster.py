"""Runs on a real Kubernetes cluster, that of the current context. Only `make e2e` collects this file.

The cluster's nodes need two images, SPIKEWISE_IMAGE and SPIKEWISE_S3_SERVER_IMAGE. Everything happens in the namespace
`spikewise-e2e`, which enforces Pod Security "restricted"; it is created by the tests and deleted at the end.

Optional: SPIKEWISE_PROMETHEUS names the Service of a Prometheus that uses monitors and rules of all namespaces, such as
monitoring/prometheus-operated:9090. The tests then also look for the runs there.
"""

import io
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import yaml

from benchmarks.support.job import Job
from jobs import cluster_data
from jobs.kubernetes.kubectl import Kubectl, KubernetesObject
from jobs.kubernetes.manifests import FOLDER, LABEL, SHAPES, fit, overlays, owner, pod_templates, render
from tests.support import jobs
from trainer import __version__, config
from trainer.storage import open_store

pytestmark = [pytest.mark.usefixtures("storage"), pytest.mark.timeout(1800)]

NAMESPACE = "spikewise-e2e"
IMAGE = os.environ.get("SPIKEWISE_IMAGE", f"localhost/spikewise:{__version__}")
S3_SERVER_IMAGE = os.environ.get("SPIKEWISE_S3_SERVER_IMAGE", f"localhost/spikewise-s3-server:{__version__}")
PROMETHEUS = os.environ.get("SPIKEWISE_PROMETHEUS")
STORAGE = "s3://spikewise/e2e"
RESTORED = r"resumed from the checkpoint of step \d+"
SAVED = r"checkpoint of step \d+ saved"
EPOCH = r"epoch +\d+/1000  loss"
ENDLESS = "training.epochs=1000"
"""For runs that are cancelled: the number of epochs until then depends on the machine."""
NETWORK = """
import keras
from blocks.dense import name

def build(image_shape, classes, units):
    inputs = keras.Input(image_shape)
    outputs = keras.layers.AveragePooling2D(8)(keras.layers.Rescaling(1 / 255)(inputs))
    outputs = keras.layers.Dense(units, activation="relu", name=name)(keras.layers.Flatten()(outputs))
    return keras.Model(inputs, keras.layers.Dense(classes)(outputs))
"""
"""my_network.py: a user's own network."""
SAME = 1e-6
"""Relative tolerance for equal losses."""


@pytest.fixture(scope="module")
def kubectl() -> Iterator[Kubectl]:
    everywhere = Kubectl()
    everywhere.run("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=180s", timeout=180)
    # For a Job whose pods it would reject, the server only prints a warning.
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    everywhere.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}])
    here = Kubectl(NAMESPACE)
    if PROMETHEUS:
        here.run("apply", "--server-side", "-k", "k8s/monitoring")
    yield here
    everywhere.run("delete", "namespace", NAMESPACE, "--timeout=180s", timeout=180)


@pytest.fixture(scope="module")
def storage(kubectl: Kubectl) -> Iterator[str]:
    """The URL of images on the S3 server in the cluster; the environment has its credentials."""
    cluster_data.start(kubectl, S3_SERVER_IMAGE)
    with cluster_data.forwarded(kubectl) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        jobs.put_images(STORAGE)
        yield STORAGE


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("e2e") / "job.toml"
    path.write_text(jobs.CONFIG.format(storage=STORAGE, folder="/tmp", workers=2))
    return path


class Submission(Job):
    """`python -m jobs.submit`, running."""

    deadline = 600.0

    def __init__(self, configuration: Path, name: str, *overrides: str, overlay: str = "local", image: str = IMAGE) -> None:
        self.name = name
        linger = 60 if PROMETHEUS else 0  # the monitor scrapes every 15 s
        values = (f"run.name={name}", "metrics.port=9400", f"metrics.linger={linger}", *overrides)
        self._start(
            [
                *[sys.executable, "-m", "jobs.submit", "--config", str(configuration), "--overlay", overlay, "--image", image],
                *[argument for value in ("data.image_size=[64, 64]", *values) for argument in ("--set", value)],
                *["--namespace", NAMESPACE],
            ]
        )

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in list(self.lines))

    def await_count(self, pattern: str, count: int) -> None:
        """Waits until `count` lines match."""
        end = time.monotonic() + Submission.deadline
        while self.count(pattern) < count:
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {count} x {pattern!r}:\n{self.output}"
            assert time.monotonic() < end, f"not {count} lines {pattern!r} within {Submission.deadline} s:\n{self.output}"
            time.sleep(0.2)

    def cancel(self) -> None:
        cancelled = command("cancel", self.name)
        assert cancelled.returncode == 0, cancelled.stderr
        assert self.wait() == 2
        assert f"error: Run {self.name} is no longer on the cluster" in self.output
        assert re.search(SAVED, cancelled.stdout + self.output)


def command(name: str, run: str, *options: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "jobs.cluster", name, "--run", run, "--namespace", NAMESPACE, *options]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300)


def pod(kubectl: Kubectl, run: str, index: int) -> str:
    """The name of the live pod with this index."""
    selector = f"{LABEL}={run},batch.kubernetes.io/job-completion-index={index}"
    found: list[KubernetesObject] = kubectl.get("pods", "-l", selector, "--field-selector=status.phase=Running")["items"]
    return next(each["metadata"]["name"] for each in found if "deletionTimestamp" not in each["metadata"])


def query(kubectl: Kubectl, expression: str) -> list[dict[str, Any]]:
    """Prometheus' answer to a query: its series."""
    namespace, _, service = (PROMETHEUS or "").partition("/")
    path = f"/api/v1/namespaces/{namespace}/services/{service}/proxy/api/v1/query?query={quote(expression)}"
    found: list[dict[str, Any]] = json.loads(kubectl.run("get", "--raw", path))["data"]["result"]
    return found


def until(look: Callable[[], list[dict[str, Any]]], what: str) -> list[dict[str, Any]]:
    """Calls `look` until it returns something, and returns that. `what`: for the error."""
    end = time.monotonic() + Submission.deadline
    while not (found := look()):
        assert time.monotonic() < end, f"not within {Submission.deadline} s: {what}"
        time.sleep(1)
    return found


def left(kubectl: Kubectl, run: str) -> list[str]:
    """The objects of a run that exist on the cluster."""
    return kubectl.run(
        "get", "job,pod,service,configmap,serviceaccount,networkpolicy", "-l", f"{LABEL}={run}", "-o", "name"
    ).split()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("overlay", overlays())
def test_accepted_by_the_server(kubectl, configuration, overlay, shape):
    """The server would reject a field that the schemas allow; or the namespace's Pod Security would reject every pod."""
    if shape == "rayjob" and not kubectl.run("api-resources", "--api-group=ray.io", "-o", "name").strip():
        pytest.skip("This cluster has no RayJob resource: KubeRay is not installed. SHAPE=job does not need it.")
    gpu = f"launch.gpu={'true' if overlay == 'gpu' else 'false'}"
    printed = subprocess.run(
        [
            *[sys.executable, "-m", "jobs.submit", "--config", str(configuration), "--overlay", overlay, "--shape", shape],
            *["--image", IMAGE, "--set", "run.name=dry", "--set", "metrics.port=9400", "--set", gpu, "--dry-run"],
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    objects = list(yaml.safe_load_all(printed))
    pods = [  # the server checks Pod Security on pods, not in a RayJob; the run's ServiceAccount does not exist in a dry run
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"dry-{number}"}}
        | {"spec": template["spec"] | {"serviceAccountName": "default"}}
        for number, template in enumerate(pod_templates(objects[-1]["spec"]))
    ]
    assert kubectl.apply([*objects, *pods], dry_run=True) == []


@pytest.fixture(scope="module")
def stormy(kubectl: Kubectl, storage: str, configuration: Path) -> Submission:  # noqa: ARG001
    """A run that loses a worker, its head and a drained worker, resumes after each, and is cancelled a few epochs later."""
    run = Submission(configuration, "stormy", ENDLESS)
    run.await_count(EPOCH, 2)
    if PROMETHEUS:  # it cannot count a first restart without a sample from before
        until(lambda: query(kubectl, 'spikewise_restarts_total{run="stormy"} == 0'), "the run's metrics in Prometheus")
    for index, gently in ((1, False), (0, False), (1, True)):
        restored, saved = run.count(RESTORED), run.count(SAVED)
        how = ["--wait=false"] if gently else ["--force", "--grace-period=0"]  # SIGTERM, as when a node is drained
        kubectl.run("delete", "pod", pod(kubectl, "stormy", index), *how)
        if gently:
            run.await_count(SAVED, saved + 1)
        run.await_count(RESTORED, restored + 1)
        run.await_count(EPOCH, run.count(EPOCH) + 3)
        status = command("status", "stormy")
        assert re.search(r"training, \d+% done", status.stdout), status.stdout + status.stderr
    if PROMETHEUS:
        until(lambda: query(kubectl, 'spikewise_restarts_total{run="stormy"} >= 3'), "three restarts in Prometheus")
    run.cancel()
    return run


@pytest.fixture(scope="module")
def calm(storage: str, configuration: Path, stormy: Submission) -> Submission:
    """An undisturbed run with as many epochs as the disturbed one."""
    run = Submission(configuration, "calm", f"training.epochs={len(jobs.curves(storage, stormy.name))}")
    run.succeed()
    return run


def test_success(storage, calm):
    """A run on a cluster would not produce what it produces on a laptop."""
    last = len(jobs.curves(storage, "calm"))
    last_epoch = rf"epoch +{last}/{last}  loss"
    calm.await_line(last_epoch)
    calm.await_line(rf"run calm: completed; report and model are at {STORAGE}/storage/runs/calm")
    keys = {each.key for each in open_store(f"{storage}/storage/runs/calm", config.S3(path_style=True)).list()}
    assert {"model.keras", "report.html", "report.json"} <= keys
    status = command("status", "calm")
    assert (status.returncode, "completed" in status.stdout) == (0, True), status.stdout + status.stderr
    assert f"epoch {last} of {last}: training loss " in status.stdout, status.stdout
    logs = command("logs", "calm")
    assert re.search(last_epoch, logs.stdout)


def test_pods_die(storage, stormy, calm):
    """A lost node would end the run, or the losses after it would differ."""
    assert stormy.count(RESTORED) >= 3
    np.testing.assert_allclose(jobs.curves(storage, stormy.name), jobs.curves(storage, calm.name), rtol=SAME)


@pytest.mark.usefixtures("calm")
def test_cancel_and_resume(kubectl, storage, configuration):
    """Training would be lost when the nodes are needed for something else; or its progress could not be seen."""
    run = Submission(configuration, "stopped", ENDLESS)
    run.await_line(r"epoch +3/1000  loss")
    again = Submission(configuration, "stopped")
    assert again.wait() == 2
    assert "error: Run stopped is already on this cluster." in again.output
    run.cancel()
    assert left(kubectl, "stopped") == []
    assert command("status", "stopped").returncode == 2
    status = command("status", "stopped", "--storage", f"{STORAGE}/storage")
    assert re.search(r"interrupted\nepoch \d+ of 1000: training loss ", status.stdout), status.stdout + status.stderr
    done = len(jobs.curves(storage, "stopped"))
    resumed = Submission(configuration, "stopped", f"training.epochs={done + 2}")
    resumed.await_line(RESTORED)
    resumed.succeed()
    before, after = jobs.curves(storage, "calm"), jobs.curves(storage, "stopped")
    assert len(after) == done + 2
    np.testing.assert_allclose(after[: len(before)], before[: len(after)], rtol=SAME)


def test_a_network_of_the_users_own(storage, tmp_path):
    """A user's network would train on a laptop only; or a run would go on with another network than the one that it began with."""
    name, mine, blocks = "mine", tmp_path / "mine.toml", tmp_path / "blocks"
    mine.write_text(jobs.CONFIG.format(storage=STORAGE, folder="/tmp", workers=2))
    (tmp_path / "my_network.py").write_text(NETWORK)
    blocks.mkdir()
    (blocks / "dense.py").write_text('name = "first_version"\n')
    values = ["training.epochs=2", "model.network=my_network:build", "model.arguments.units=8"]
    Submission(mine, name, *values).succeed()
    runs = open_store(f"{storage}/storage/runs/{name}", config.S3(path_style=True))
    with zipfile.ZipFile(io.BytesIO(runs.get("model.keras"))) as model:
        assert '"first_version"' in model.read("config.json").decode()
    before = runs.get("run.json")
    (blocks / "dense.py").write_text('name = "second_version"\n')
    changed = Submission(mine, name, *values, "training.epochs=3")
    assert changed.wait() == 2
    line = rf"error: Run {name} was started with another version of module my_network .* Fix: restore its files"
    assert re.search(line, changed.output), changed.output
    assert runs.get("run.json") == before
    (blocks / "dense.py").write_text('name = "first_version"\n')
    resumed = Submission(mine, name, *values, "training.epochs=3")
    resumed.await_line(RESTORED)
    resumed.succeed()


def test_submit_from_the_image(kubectl):
    """A user without a checkout could not submit: configurations, k8s/ or kubectl would be missing in the image."""
    config_file = "/opt/spikewise/app/jobs/configs/demo.toml"
    command = ["python", "-m", "jobs.submit", "--config", config_file, "--overlay", "local", "--image", "spikewise:1"]
    objects = fit(render("local", "job"), config.load("jobs/configs/demo.toml"), "image", IMAGE, None)
    (template,) = pod_templates(owner(objects)["spec"])
    (container,) = template["spec"]["containers"]
    spec = {
        "restartPolicy": "Never",
        "securityContext": template["spec"]["securityContext"],
        "containers": [
            {
                "name": "submit",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": [*command, "--set", "run.name=image", "--dry-run"],
                "env": [{"name": "HOME", "value": "/tmp"}],
                "securityContext": container["securityContext"],
                "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
            }
        ],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    }
    kubectl.apply([{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "submit"}, "spec": spec}])
    kubectl.run("wait", "pod/submit", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s", timeout=120)
    printed = list(yaml.safe_load_all(kubectl.run("logs", "submit")))
    assert {each["metadata"]["name"] for each in printed} == {"run-image"}
    assert printed[-1]["kind"] == "Job"


def huge(folder: Path) -> Path:
    """An overlay whose pods fit on no node."""
    parts = os.path.relpath(FOLDER, folder)
    patch = [
        {"op": "replace", "path": f"/spec/template/spec/containers/0/resources/{which}/cpu", "value": "100000"}
        for which in ("requests", "limits")
    ]
    kustomization = {
        "resources": [f"{parts}/pod"],
        "components": [f"{parts}/job"],
        "patches": [{"target": {"kind": "Job"}, "patch": json.dumps(patch)}],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    return folder


@pytest.mark.parametrize(
    ("overrides", "options", "code", "line"),
    [
        (["training.epochs=0"], {}, 2, r"error: --set training\.epochs=0: "),
        ([], {"image": "localhost/spikewise:never-built"}, 2, r"error: image localhost/spikewise:never-built cannot be pulled"),
        (["launch.start_timeout=5"], {}, 2, r"error: pod run-\S+ cannot be scheduled: .*for 5 s, launch"),
        (["data.source=s3://spikewise/nothing"], {}, 2, r"error: run .*: the driver exited with code 2"),
    ],
    ids=["configuration", "image", "request", "data"],
)
def test_mistakes_end_in_a_line(kubectl, configuration, tmp_path, request, overrides, options, code, line):
    """A user would not learn what to correct, or would find leftovers of the mistake a week later."""
    name = f"mistake-{request.node.callspec.id}"
    if name == "mistake-request":
        options = {"overlay": str(huge(tmp_path))}
    run = Submission(configuration, name, *overrides, **options)
    assert run.wait() == code, run.output
    assert re.search(line, run.output), run.output
    if name != "mistake-data":  # the objects of a run that has started stay, for its log
        assert left(kubectl, name) == []


@pytest.mark.skipif(not PROMETHEUS, reason="SPIKEWISE_PROMETHEUS is not set: it names the Service of a Prometheus")
def test_prometheus(kubectl, storage, stormy, calm):
    """The losses would not show, or a run that restarts again and again would raise no alert, or an ended run would raise one."""
    (found,) = query(kubectl, 'last_over_time(spikewise_loss{split="validation", run="stormy"}[1h])')[-1:]
    assert any(np.isclose(float(found["value"][1]), losses[2]) for losses in jobs.curves(storage, stormy.name))
    firing = 'ALERTS{run="stormy", alertname="SpikewiseRestarts", alertstate="firing"}'
    alert = until(lambda: query(kubectl, firing), "an alert of the restarts")[0]
    assert alert["metric"]["namespace"] == NAMESPACE
    for run, state in ((calm.name, "completed"), (stormy.name, "interrupted")):
        assert query(kubectl, f'last_over_time(spikewise_state{{run="{run}", state="{state}"}}[1h]) == 1'), run
    rules = yaml.safe_load((FOLDER / "monitoring/prometheusrule.yaml").read_text())["spec"]["groups"][0]["rules"]
    (expression,) = [rule["expr"] for rule in rules if rule["alert"] == "SpikewiseNoProgress"]
    assert "> 900" in expression
    stuck = query(kubectl, expression.replace("> 900", "> 1"))  # the alert itself takes 15 minutes
    assert not {each["metric"]["run"] for each in stuck} & {calm.name, stormy.name}
