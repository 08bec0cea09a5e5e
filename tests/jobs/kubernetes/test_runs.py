"""jobs.kubernetes.runs: finding and removing a run's objects. Kubernetes' answers are given."""

from typing import Any

import pytest

from jobs.kubernetes import runs
from jobs.kubernetes.kubectl import KubernetesError, KubernetesObject
from jobs.kubernetes.manifests import LABEL


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
    with pytest.raises(runs.RunNotFoundError, match=r"Namespace training of context here has no run first\."):
        runs.find(_Cluster(job=[]), "first")
    with pytest.raises(KubernetesError, match="unknown kind job"):
        runs.find(_Cluster(), None)


def test_the_reason_survives_the_clean_up():
    """A user would read about a deletion that timed out and not why the run did not start."""
    lines: list[str] = []
    runs.clean_up(_Cluster(), "first", lines.append)
    (line,) = lines
    assert "could be removed (did not answer `kubectl delete` within 300 s). Fix: run `make cancel RUN=first`." in line
