"""Objects as Kubernetes' API returns them, for a run named `first` with two workers."""

from typing import Any

from jobs.kubernetes import manifests, pods
from jobs.kubernetes.kubectl import KubernetesObject


def pod(index: int, phase: str = "Running", state: dict[str, Any] | None = None, **status: Any) -> KubernetesObject:
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


def waiting(index: int, reason: str, message: str = "m") -> KubernetesObject:
    """A pod whose container waits."""
    return pod(index, "Pending", {"waiting": {"reason": reason, "message": message}})


def exited(index: int, code: int, reason: str = "Error") -> KubernetesObject:
    return pod(index, "Failed", {"terminated": {"exitCode": code, "reason": reason}})


def unscheduled(index: int, message: str = "Insufficient cpu.") -> KubernetesObject:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(index) | {"status": {"phase": "Pending", "conditions": [condition]}}


def job(*conditions: dict[str, Any]) -> KubernetesObject:
    return {
        "kind": "Job",
        "metadata": {"name": "run-first", "uid": "u", "labels": {}},
        "spec": {"activeDeadlineSeconds": 60, "parallelism": 2},
        "status": {"conditions": list(conditions)},
    }


def refusal(message: str, uid: str = "u", name: str = "run-first", time: str = "2026-01-01T00:00:01Z") -> KubernetesObject:
    """The event of a pod that was not created."""
    about = {"name": name, "uid": uid}
    return {"reason": "FailedCreate", "involvedObject": about, "message": message, "lastTimestamp": time}
