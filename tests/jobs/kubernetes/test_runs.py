"""jobs.kubernetes.runs: finding and removing a run's objects. Kubernetes' answers are given."""

from typing import Any

import pytest

from jobs.kubernetes import runs
from jobs.kubernetes.kubectl import ForbiddenError, KubernetesError, KubernetesObject, WaitError
from jobs.kubernetes.manifests import LABEL
from tests.jobs.kubernetes.objects import pod
from trainer import UserError


def _main(kind: str, name: str, created: int, **metadata: Any) -> KubernetesObject:
    labels = {LABEL: name.removeprefix("run-")}
    return {
        "kind": kind,
        "metadata": {"name": name, "labels": labels, "creationTimestamp": f"2026-01-01T00:00:0{created}Z"} | metadata,
    }


class _Cluster:
    """A cluster with these objects of each kind; a kind that is absent is unknown to it."""

    namespace, context = "training", "here"

    def __init__(self, **objects: list[KubernetesObject]) -> None:
        self.objects = objects

    def check_namespace(self) -> None:
        if self.namespace == "missing":
            raise KubernetesError("no namespace missing")

    def get(self, kind: str, *_: str) -> Any:
        if kind not in self.objects:
            raise KubernetesError(f"unknown kind {kind}")
        return {"items": self.objects[kind]}

    def run(self, *_: str, timeout: float = 0) -> str:  # noqa: ARG002
        raise KubernetesError("did not answer `kubectl delete` within 300 s")


def test_the_newest_run_is_found():
    """`make status` without RUN= would show an old run, or the Job that KubeRay creates to submit a RayJob."""
    submitter = _main("Job", "run-second", 4, ownerReferences=[{"kind": "RayJob"}])
    cluster = _Cluster(job=[_main("Job", "run-first", 1), submitter], rayjob=[_main("RayJob", "run-second", 3)])
    assert runs.find(cluster, None)["kind"] == "RayJob"
    assert runs.find(cluster, "first")["kind"] == "Job"


def test_a_cluster_without_kuberay():
    """Nothing would work on a cluster that only knows Jobs; or a cluster that does not answer would look empty."""
    assert runs.find(_Cluster(job=[_main("Job", "run-first", 1)]), None)["kind"] == "Job"
    with pytest.raises(runs.RunNotFoundError, match=r"Namespace training of context here has no run first\. Fix: "):
        runs.find(_Cluster(job=[]), "first")
    with pytest.raises(KubernetesError, match="unknown kind job"):
        runs.find(_Cluster(), None)


def test_a_missing_namespace_is_named():
    """A user who misspelt the namespace would look for the run."""
    cluster = _Cluster(job=[])
    cluster.namespace = "missing"
    with pytest.raises(KubernetesError, match="no namespace missing"):
        runs.find(cluster, "first")


class _Recorder:
    """A cluster without a run that records what is applied and removed."""

    namespace, context = "training", "here"

    def __init__(self) -> None:
        self.applied: list[list[KubernetesObject]] = []
        self.ran: list[tuple[str, ...]] = []

    def exists(self, *_: str) -> bool:
        return False

    def get(self, *_: str) -> Any:
        return {"metadata": {"uid": "u"}}

    def apply(self, objects: list[KubernetesObject], *, dry_run: bool = False) -> list[str]:
        if not dry_run:
            self.applied.append(objects)
        return []

    def run(self, *arguments: str, timeout: float = 0) -> str:  # noqa: ARG002
        self.ran.append(arguments)
        if arguments[:2] == ("delete", "secret"):
            raise ForbiddenError("may not delete secrets")
        return ""


def test_each_job_has_a_token_of_its_own():
    """Any pod that reaches Ray's ports could run code in the pods and use the bucket's credentials."""
    tokens = []
    for _ in range(2):
        cluster = _Recorder()
        runs.create(
            cluster, [_main("ConfigMap", "run-first", 1), {"apiVersion": "batch/v1"} | _main("Job", "run-first", 1)], "first", print
        )
        created, owned = cluster.applied
        assert [each["kind"] for each in created] == ["Secret", "ConfigMap", "Job"]  # before the pods, which read it once
        assert [each["kind"] for each in owned] == ["Secret", "ConfigMap"]
        assert owned[0]["metadata"]["ownerReferences"][0]["uid"] == "u"
        assert owned[0]["stringData"] == created[0]["stringData"]
        assert created[0]["stringData"]["RAY_AUTH_MODE"] == "token"
        tokens.append(created[0]["stringData"]["RAY_AUTH_TOKEN"])
    assert len({*tokens}) == 2
    assert min(map(len, tokens)) >= 32
    cluster = _Recorder()
    rayjob = {"apiVersion": "ray.io/v1"} | _main("RayJob", "run-first", 1)
    runs.create(cluster, [rayjob], "first", print)  # KubeRay creates its token
    assert [each["kind"] for each in cluster.applied[0]] == ["RayJob"]


def test_a_run_is_removed_without_rights_on_secrets():
    """Users with an earlier role could not cancel a run."""
    cluster = _Recorder()
    runs.remove(cluster, "first")
    assert cluster.ran[-2][:3] == ("delete", "secret", "run-first")
    assert cluster.ran[-1][:2] == ("wait", "pod")


class _LostNode(_Cluster):
    """A cluster whose pods stay, because the node of one does not answer."""

    def run(self, *arguments: str, timeout: float = 0) -> str:
        if "--timeout=5s" in arguments:
            assert timeout > 5  # else kubectl is killed before it says what it waited for
            raise WaitError("The cluster of context here: timed out waiting for the condition on jobs/run-first. Fix: wait.")
        return ""


def test_a_pod_on_a_lost_node_is_named():
    """`make cancel` would end in kubectl's own words after five minutes; the user would not learn that it can be repeated, or which
    pod holds it up."""
    stuck = pod(1)
    stuck["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:09Z"
    stuck["spec"]["nodeName"] = "node-7"
    with pytest.raises(KubernetesError) as error:
        runs.remove(_LostNode(pods=[pod(0), stuck]), "first", 5)
    line = str(error.value)
    assert line.startswith(
        "Run first is being removed, but after 5 s still terminating: pod run-first-1-abcde on node node-7. Fix: "
    )
    assert "repeat `make cancel RUN=first`" in line
    assert "kubectl delete pod NAME -n training --force" in line
    with pytest.raises(WaitError, match="condition on jobs/run-first"):  # no pod is the reason
        runs.remove(_LostNode(pods=[pod(0)]), "first", 5)


@pytest.mark.parametrize("data", [None, {}, {"config.toml": "no TOML ["}, {"config.toml": "[run]\ncolour = 1"}])
def test_a_configuration_that_cannot_be_read(data):
    """`make status` would end with a traceback if somebody edited the ConfigMap, or if another version wrote it."""

    class Edited(_Cluster):
        def get(self, kind: str, *_: str) -> Any:
            assert kind == "configmap"
            return {"metadata": {}} if data is None else {"data": data}

    with pytest.raises(UserError, match=r"run-first holds no configuration .*\. Fix: |configuration of run first: .*"):
        runs.settings(Edited(), "first")


def test_the_reason_survives_the_clean_up():
    """A user would read about a deletion that timed out and not why the run did not start."""
    lines: list[str] = []
    runs.clean_up(_Cluster(), "first", lines.append)
    (line,) = lines
    assert "could be removed (did not answer `kubectl delete` within 300 s). Fix: run `make cancel RUN=first`." in line
