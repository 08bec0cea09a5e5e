"""What Kubernetes says about a run, understood: where its pods are, what is wrong with them, and how the run ended.

Pure functions of Kubernetes' own JSON. A run's main object is its Job or RayJob.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from jobs.kubernetes.kubectl import KubernetesObject

INDEX = "batch.kubernetes.io/job-completion-index"
SAID_CODES = (1, 2)
"""Exit codes of jobs.train for a run that failed and for what a user has to mend; k8s/job ends the Job on them."""
_NOT_PULLABLE = {"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_NOT_CREATABLE = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_REFUSED = {"FailedCreate", "FailedToCreateWorkerPod", "FailedToCreateHeadPod"}


@dataclass(frozen=True)
class End:
    """How a run ended, for a person and as an exit code."""

    code: int
    line: str


def driver_pod(main: KubernetesObject, pods: list[KubernetesObject]) -> KubernetesObject | None:
    """The newest pod whose log is the driver's: the head of a Job, the submitter of a RayJob."""
    if main["kind"] == "Job":
        found = [pod for pod in pods if _labels(pod).get(INDEX) == "0"]
    else:
        found = [pod for pod in pods if _labels(pod).get("batch.kubernetes.io/job-name") == main["metadata"]["name"]]
    return max(found, key=_created, default=None)


def head_pod(main: KubernetesObject, pods: list[KubernetesObject]) -> KubernetesObject | None:
    """The newest pod in which the driver runs, which serves the metrics."""
    if main["kind"] == "Job":
        return driver_pod(main, pods)
    return max((pod for pod in pods if _labels(pod).get("ray.io/node-type") == "head"), key=_created, default=None)


def has_started(pod: KubernetesObject) -> bool:
    """Whether its container has a log."""
    return any("running" in status["state"] or "terminated" in status["state"] for status in _statuses(pod))


def missing(main: KubernetesObject, pods: list[KubernetesObject]) -> bool:
    """Whether the cluster has made fewer pods than the run needs."""
    there = sum(_place(pod) not in ("ending", "failed", "succeeded") for pod in pods)
    return not main["spec"].get("suspend") and there < _wanted(main)


def all_run(main: KubernetesObject, pods: list[KubernetesObject]) -> bool:
    return sum(_place(pod) == "running" for pod in pods) >= _wanted(main)


def _wanted(main: KubernetesObject) -> int:
    """Pods that have to run; of a RayJob without the submitter, which comes after them."""
    if main["kind"] == "Job":
        return main["spec"]["parallelism"]
    return 1 + sum(group["replicas"] for group in main["spec"]["rayClusterSpec"]["workerGroupSpecs"])


def summary(main: KubernetesObject, pods: list[KubernetesObject], refused: str | None = None) -> str:
    """One line: how many pods are where, and why those that wait do. `refused`: why some are not made."""
    if main["spec"].get("suspend"):
        queue = _labels(main).get("kueue.x-k8s.io/queue-name")
        return f"suspended: waiting in Kueue's queue {queue}" if queue else "suspended"
    counts = Counter(_place(pod) for pod in pods)
    line = ", ".join(f"{count} {place}" for place, count in sorted(counts.items())) or "none yet"
    waiting = unschedulable(pods) or not_pullable(pods) or not_creatable(pods) or (refused and f"more are not made: {refused}")
    return f"pods: {line}" + (f" ({waiting})" if waiting else "")


def unschedulable(pods: list[KubernetesObject]) -> str | None:
    """Why the first pod that finds no node does not."""
    for pod in pods:
        for condition in pod["status"].get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                return f"pod {_name(pod)} finds no node: {condition['message']}"
    return None


def not_pullable(pods: list[KubernetesObject]) -> str | None:
    """Whose image no node gets, with the way out."""
    for pod in pods:
        for status in _statuses(pod):
            reason, message = _waits(status)
            if reason in _NOT_PULLABLE:
                return (
                    f"image {status['image']} cannot be pulled: push it where the nodes can reach it and name it with IMAGE=, "
                    f"or give the ServiceAccount its imagePullSecrets ({reason}: {message or 'no such image on the node'})"
                )
    return None


def not_creatable(pods: list[KubernetesObject]) -> str | None:
    """Which pod's container the node does not start, and why; under load it may go by itself."""
    for pod in pods:
        for status in _statuses(pod):
            reason, message = _waits(status)
            if reason in _NOT_CREATABLE:
                return f"pod {_name(pod)} cannot start: {message} ({reason})"
    return None


def refusal(main: KubernetesObject, events: list[KubernetesObject]) -> str | None:
    """Why no more pods are made: a quota, a limit, the namespace's Pod Security."""
    ray_cluster = main.get("status", {}).get("rayClusterName")
    refused = []
    for event in events:
        about = event["involvedObject"]
        of_this_run = about.get("uid") == main["metadata"]["uid"] or (ray_cluster and about.get("name") == ray_cluster)
        if event.get("reason") in _REFUSED and of_this_run:
            refused.append(event)
    newest = max(refused, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "", default=None)
    return " ".join(newest["message"].split()) if newest else None


def losses(pods: list[KubernetesObject]) -> list[str]:
    """A line for each pod that ran out of memory or was evicted, the newest first."""
    return [line for pod in sorted(pods, key=_created, reverse=True) if (line := _loss(pod))]


def end(main: KubernetesObject, pods: list[KubernetesObject]) -> End | None:
    """How the run ended; None while it goes on."""
    return _end_of_job(main, pods) if main["kind"] == "Job" else _end_of_rayjob(main, pods)


def _end_of_job(main: KubernetesObject, pods: list[KubernetesObject]) -> End | None:
    conditions = {each["type"]: each for each in main.get("status", {}).get("conditions", ()) if each["status"] == "True"}
    if "Complete" in conditions:
        return End(0, "completed")
    if "Failed" not in conditions:
        return None
    failed = conditions["Failed"]
    if failed["reason"] == "DeadlineExceeded":
        return _deadline(main)
    if failed["reason"] == "PodFailurePolicy":
        ended = [pod for pod in pods if _exit_code(pod) in SAID_CODES]
        return _of_exit(max(ended, key=_created, default=None)) or End(1, _said_by(failed))
    # An index has lost its pod too often. What happened to pods that were replaced since is not the cause.
    newest = {_labels(pod).get(INDEX): pod for pod in sorted(pods, key=_created)}
    lost = losses(list(newest.values()))
    return End(1, lost[0]) if lost else _of_exit(newest.get("0")) or End(1, _said_by(failed))


def _said_by(condition: dict[str, Any]) -> str:
    return condition.get("message") or condition["reason"]


def _end_of_rayjob(main: KubernetesObject, pods: list[KubernetesObject]) -> End | None:
    status = main.get("status", {})
    match status.get("jobDeploymentStatus"):
        case "Complete" if status.get("jobStatus") == "SUCCEEDED":
            return End(0, "completed")
        case "Complete" | "Failed" | "ValidationFailed":
            if status.get("reason") == "DeadlineExceeded":
                return _deadline(main)
            said = " ".join(status.get("message", "").split())
            return End(1, next(iter(losses(pods)), said or status.get("reason") or "failed"))
    return None


def _deadline(main: KubernetesObject) -> End:
    seconds = main["spec"].get("activeDeadlineSeconds")
    return End(1, f"not done after {seconds} s (activeDeadlineSeconds): submit it again under its name to go on, or raise that")


def _loss(pod: KubernetesObject) -> str | None:
    if any(_terminated(status).get("reason") == "OOMKilled" for status in _statuses(pod)):
        limit = pod["spec"]["containers"][0]["resources"].get("limits", {}).get("memory", "the node's memory")
        return f"out of memory: pod {_name(pod)} needed more than {limit}: raise resources.limits.memory in the overlay"
    if pod["status"].get("reason") == "Evicted":
        return f"pod {_name(pod)} was evicted: {pod['status'].get('message', '')}"
    return None


def _of_exit(pod: KubernetesObject | None) -> End | None:
    """What the exit code of a pod's own program says; None if it was ended from outside."""
    code = _exit_code(pod) if pod else None
    if pod is None or not code or code > 128:
        return None
    who, log = (
        ("the driver", "make logs") if _labels(pod).get(INDEX) == "0" else (f"pod {_name(pod)}", f"kubectl logs {_name(pod)}")
    )
    return End(code if code in SAID_CODES else 1, f"{who} ended with exit code {code}; why is in its log: {log}")


def _exit_code(pod: KubernetesObject) -> int | None:
    return next((_terminated(status).get("exitCode") for status in _statuses(pod)), None)


def _terminated(status: dict[str, Any]) -> dict[str, Any]:
    return status["state"].get("terminated") or status.get("lastState", {}).get("terminated") or {}


def _waits(status: dict[str, Any]) -> tuple[str | None, str]:
    """Why a container waits: the reason and the message."""
    waiting = status["state"].get("waiting", {})
    return waiting.get("reason"), " ".join(waiting.get("message", "").split())


def _place(pod: KubernetesObject) -> str:
    if "deletionTimestamp" in pod["metadata"]:
        return "ending"
    for status in _statuses(pod):
        reason, _ = _waits(status)
        if reason:
            return "starting" if reason in ("ContainerCreating", "PodInitializing") else f"waiting: {reason}"
    return pod["status"]["phase"].lower()


def _statuses(pod: KubernetesObject) -> list[dict[str, Any]]:
    return pod["status"].get("containerStatuses", [])


def _labels(pod: KubernetesObject) -> dict[str, str]:
    return pod["metadata"].get("labels", {})


def _name(pod: KubernetesObject) -> str:
    return pod["metadata"]["name"]


def _created(pod: KubernetesObject) -> str:
    return pod["metadata"]["creationTimestamp"]
