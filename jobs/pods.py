"""What Kubernetes says about a run, understood: where its pods are, what is wrong with them, and how the run ended.

Pure functions of Kubernetes' own JSON. A run's main object is its Job or RayJob.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from jobs.kubernetes import Manifest

INDEX = "batch.kubernetes.io/job-completion-index"
_NOT_PULLABLE = {"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_NOT_CREATABLE = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


@dataclass(frozen=True)
class End:
    """How a run ended, for a person and as an exit code."""

    code: int
    line: str


def driver_pod(main: Manifest, pods: list[Manifest]) -> Manifest | None:
    """The newest pod whose log is the driver's: the head of a Job, the submitter of a RayJob."""
    if main["kind"] == "Job":
        found = [pod for pod in pods if _labels(pod).get(INDEX) == "0"]
    else:
        found = [pod for pod in pods if _labels(pod).get("batch.kubernetes.io/job-name") == main["metadata"]["name"]]
    return max(found, key=_created, default=None)


def head_pod(main: Manifest, pods: list[Manifest]) -> Manifest | None:
    """The newest pod in which the driver runs, which serves the metrics."""
    if main["kind"] == "Job":
        return driver_pod(main, pods)
    return max((pod for pod in pods if _labels(pod).get("ray.io/node-type") == "head"), key=_created, default=None)


def has_started(pod: Manifest) -> bool:
    """Whether its container has a log."""
    return any("running" in status["state"] or "terminated" in status["state"] for status in _statuses(pod))


def summary(main: Manifest, pods: list[Manifest]) -> str:
    """One line: how many pods are where, and why those that wait do."""
    if main["spec"].get("suspend"):
        queue = _labels(main).get("kueue.x-k8s.io/queue-name")
        return f"suspended: waiting in Kueue's queue {queue}" if queue else "suspended"
    counts = Counter(_place(pod) for pod in pods)
    line = ", ".join(f"{count} {place}" for place, count in sorted(counts.items())) or "none yet"
    waiting = unschedulable(pods)
    return f"pods: {line}" + (f" ({waiting})" if waiting else "")


def unschedulable(pods: list[Manifest]) -> str | None:
    """Why the first pod that finds no node does not."""
    for pod in pods:
        for condition in pod["status"].get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                return f"pod {_name(pod)} finds no node: {condition['message']}"
    return None


def trouble(pods: list[Manifest]) -> str | None:
    """What keeps a pod from starting for good, with the way out."""
    for pod in pods:
        for status in _statuses(pod):
            waiting = status["state"].get("waiting", {})
            reason, message = waiting.get("reason"), " ".join(waiting.get("message", "").split())
            if reason in _NOT_PULLABLE:
                return (
                    f"image {status['image']} cannot be pulled: push it where the nodes can reach it and name it with IMAGE=, "
                    f"or give the ServiceAccount its imagePullSecrets ({reason}: {message or 'no such image on the node'})"
                )
            if reason in _NOT_CREATABLE:
                return f"pod {_name(pod)} cannot start: {message} ({reason})"
    return None


def refusal(events: list[Manifest]) -> str | None:
    """Why no pod is made: a quota, a limit, the namespace's Pod Security."""
    refused = [
        event for event in events if event.get("reason") in ("FailedCreate", "FailedToCreateWorkerPod", "FailedToCreateHeadPod")
    ]
    return " ".join(refused[-1]["message"].split()) if refused else None


def end(main: Manifest, pods: list[Manifest]) -> End | None:
    """How the run ended; None while it goes on."""
    return _end_of_job(main, pods) if main["kind"] == "Job" else _end_of_rayjob(main, pods)


def _end_of_job(main: Manifest, pods: list[Manifest]) -> End | None:
    conditions = {each["type"]: each for each in main.get("status", {}).get("conditions", ()) if each["status"] == "True"}
    if "Complete" in conditions:
        return End(0, "completed")
    if "Failed" not in conditions:
        return None
    failed = conditions["Failed"]
    if failed["reason"] == "DeadlineExceeded":
        return _deadline(main)
    return _out_of_memory(pods) or _of_driver(driver_pod(main, pods)) or End(1, f"{failed.get('message', failed['reason'])}")


def _end_of_rayjob(main: Manifest, pods: list[Manifest]) -> End | None:
    status = main.get("status", {})
    match status.get("jobDeploymentStatus"):
        case "Complete" if status.get("jobStatus") == "SUCCEEDED":
            return End(0, "completed")
        case "Complete" | "Failed" | "ValidationFailed":
            if status.get("reason") == "DeadlineExceeded":
                return _deadline(main)
            said = " ".join(status.get("message", "").split())
            return _out_of_memory(pods) or End(1, said or status.get("reason") or "failed")
    return None


def _deadline(main: Manifest) -> End:
    seconds = main["spec"].get("activeDeadlineSeconds")
    return End(1, f"not done after {seconds} s (activeDeadlineSeconds): submit it again under its name to go on, or raise that")


def _out_of_memory(pods: list[Manifest]) -> End | None:
    for pod in sorted(pods, key=_created, reverse=True):
        for status in _statuses(pod):
            if _terminated(status).get("reason") == "OOMKilled":
                limit = pod["spec"]["containers"][0]["resources"].get("limits", {}).get("memory", "the node's memory")
                return End(
                    1, f"out of memory: pod {_name(pod)} needed more than {limit}: raise resources.limits.memory in the overlay"
                )
        if pod["status"].get("reason") == "Evicted":
            return End(1, f"pod {_name(pod)} was evicted: {pod['status'].get('message', '')}")
    return None


def _of_driver(pod: Manifest | None) -> End | None:
    for status in _statuses(pod) if pod else ():
        if code := _terminated(status).get("exitCode"):
            return End(code, f"the driver ended with exit code {code}; why is in its log: make logs")
    return None


def _terminated(status: dict[str, Any]) -> dict[str, Any]:
    return status["state"].get("terminated") or status.get("lastState", {}).get("terminated") or {}


def _place(pod: Manifest) -> str:
    if "deletionTimestamp" in pod["metadata"]:
        return "ending"
    for status in _statuses(pod):
        reason = status["state"].get("waiting", {}).get("reason")
        if reason:
            return "starting" if reason in ("ContainerCreating", "PodInitializing") else f"waiting: {reason}"
    return pod["status"]["phase"].lower()


def _statuses(pod: Manifest) -> list[dict[str, Any]]:
    return pod["status"].get("containerStatuses", [])


def _labels(pod: Manifest) -> dict[str, str]:
    return pod["metadata"].get("labels", {})


def _name(pod: Manifest) -> str:
    return pod["metadata"]["name"]


def _created(pod: Manifest) -> str:
    return pod["metadata"]["creationTimestamp"]
