"""Interprets the Kubernetes objects of a run: the states of its pods, what is wrong with them, and how the run ended.

Pure functions of objects as Kubernetes' API returns them. `main` is the run's Job or RayJob, `pods` are the run's pods.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from jobs.kubernetes.kubectl import KubernetesObject

INDEX = "batch.kubernetes.io/job-completion-index"
FINAL_CODES = (1, 2)
"""Exit codes of jobs.train that a retry would not change (1: the run failed, 2: the user has to correct something). k8s/job ends
the Job on them."""
_NOT_PULLABLE = {"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_NOT_CREATABLE = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_REFUSED = {"FailedCreate", "FailedToCreateWorkerPod", "FailedToCreateHeadPod"}


@dataclass(frozen=True)
class End:
    """How a run ended."""

    code: int
    """Exit code for the command that submitted it; 0: success."""
    line: str
    """For a person."""


def driver_pod(main: KubernetesObject, pods: list[KubernetesObject]) -> KubernetesObject | None:
    """The newest pod that has the driver's log: the head of a Job, the submitter of a RayJob."""
    if main["kind"] == "Job":
        found = [pod for pod in pods if _labels(pod).get(INDEX) == "0"]
    else:
        found = [pod for pod in pods if _labels(pod).get("batch.kubernetes.io/job-name") == main["metadata"]["name"]]
    return max(found, key=_created, default=None)


def head_pod(main: KubernetesObject, pods: list[KubernetesObject]) -> KubernetesObject | None:
    """The newest pod of Ray's head, in which the driver runs and serves the metrics."""
    if main["kind"] == "Job":
        return driver_pod(main, pods)
    return max((pod for pod in pods if _labels(pod).get("ray.io/node-type") == "head"), key=_created, default=None)


def has_started(pod: KubernetesObject) -> bool:
    """Whether its container has started, and so has a log."""
    return any("running" in status["state"] or "terminated" in status["state"] for status in _statuses(pod))


def incomplete(main: KubernetesObject, pods: list[KubernetesObject]) -> bool:
    """Whether the cluster has created fewer pods than the run needs."""
    there = sum(_state(pod) not in ("terminating", "failed", "succeeded") for pod in pods)
    return not main["spec"].get("suspend") and there < _wanted(main)


def all_running(main: KubernetesObject, pods: list[KubernetesObject]) -> bool:
    return sum(_state(pod) == "running" for pod in pods) >= _wanted(main)


def _wanted(main: KubernetesObject) -> int:
    """Number of pods that have to run; for a RayJob without the submitter, which starts after them."""
    if main["kind"] == "Job":
        return main["spec"]["parallelism"]
    return 1 + sum(group["replicas"] for group in main["spec"]["rayClusterSpec"]["workerGroupSpecs"])


def summary(main: KubernetesObject, pods: list[KubernetesObject], refused: str | None = None) -> str:
    """One line: the number of pods in each state, and why some are waiting. `refused`: why the cluster creates no more pods."""
    if main["spec"].get("suspend"):
        queue = _labels(main).get("kueue.x-k8s.io/queue-name")
        return f"suspended: waiting in Kueue's queue {queue}" if queue else "suspended"
    counts = Counter(_state(pod) for pod in pods)
    line = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none yet"
    reason = unschedulable(pods) or not_pullable(pods) or not_creatable(pods) or (refused and f"no more are created: {refused}")
    return f"pods: {line}" + (f" ({reason})" if reason else "")


def unschedulable(pods: list[KubernetesObject]) -> str | None:
    """The first pod that cannot be scheduled, with the scheduler's reason."""
    for pod in pods:
        for condition in pod["status"].get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                return f"pod {_name(pod)} cannot be scheduled: {condition['message']}"
    return None


def not_pullable(pods: list[KubernetesObject]) -> str | None:
    """The first image that cannot be pulled, with the kubelet's reason and a fix."""
    for pod in pods:
        for status in _statuses(pod):
            reason, message = _waits(status)
            if reason in _NOT_PULLABLE:
                return (
                    f"image {status['image']} cannot be pulled ({reason}: {message or 'no such image on the node'}). Fix: push it "
                    "to a registry that the nodes can reach and pass that name as --image, or add imagePullSecrets to the "
                    "ServiceAccount."
                )
    return None


def not_creatable(pods: list[KubernetesObject]) -> str | None:
    """The first pod whose container the node cannot start, with its reason. On a busy node this may pass."""
    for pod in pods:
        for status in _statuses(pod):
            reason, message = _waits(status)
            if reason in _NOT_CREATABLE:
                return f"pod {_name(pod)} cannot start: {message} ({reason})"
    return None


def refusal(main: KubernetesObject, events: list[KubernetesObject]) -> str | None:
    """Why the cluster creates no more pods of this run, such as a quota, a limit, or the namespace's Pod Security."""
    ray_cluster = main.get("status", {}).get("rayClusterName")
    refused = []
    for event in events:
        about = event["involvedObject"]
        of_this_run = about.get("uid") == main["metadata"]["uid"] or (ray_cluster and about.get("name") == ray_cluster)
        if event.get("reason") in _REFUSED and of_this_run:
            refused.append(event)
    newest = max(refused, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "", default=None)
    return " ".join(newest["message"].split()) if newest else None


def lost(pods: list[KubernetesObject]) -> list[str]:
    """A line for each pod that ran out of memory or was evicted, newest first."""
    return [line for pod in sorted(pods, key=_created, reverse=True) if (line := _why_lost(pod))]


def terminating(pods: list[KubernetesObject]) -> list[str]:
    """The pods that are being deleted, each with its node, which may no longer answer."""
    return [
        f"pod {_name(pod)} on node {pod['spec'].get('nodeName', 'none')}" for pod in pods if "deletionTimestamp" in pod["metadata"]
    ]


def end(main: KubernetesObject, pods: list[KubernetesObject]) -> End | None:
    """How the run ended; None if it has not."""
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
        ended = [pod for pod in pods if _exit_code(pod) in FINAL_CODES]
        return _of_exit(max(ended, key=_created, default=None)) or End(1, _reason(failed))
    # An index has lost too many pods. Its newest pod is the cause: earlier ones were replaced.
    newest = {_labels(pod).get(INDEX): pod for pod in sorted(pods, key=_created)}
    lines = lost(list(newest.values()))
    return End(1, lines[0]) if lines else _of_exit(newest.get("0")) or End(1, _reason(failed))


def _reason(condition: dict[str, Any]) -> str:
    return condition.get("message") or condition["reason"]


def _end_of_rayjob(main: KubernetesObject, pods: list[KubernetesObject]) -> End | None:
    status = main.get("status", {})
    match status.get("jobDeploymentStatus"):
        case "Complete" if status.get("jobStatus") == "SUCCEEDED":
            return End(0, "completed")
        case "Complete" | "Failed" | "ValidationFailed":
            if status.get("reason") == "DeadlineExceeded":
                return _deadline(main)
            message = " ".join(status.get("message", "").split())
            return End(1, next(iter(lost(pods)), message or status.get("reason") or "failed"))
    return None


def _deadline(main: KubernetesObject) -> End:
    seconds = main["spec"].get("activeDeadlineSeconds")
    fix = "submit it again under the same name to resume it, or raise activeDeadlineSeconds in the overlay"
    return End(1, f"not finished within {seconds} s (activeDeadlineSeconds). Fix: {fix}.")


def _why_lost(pod: KubernetesObject) -> str | None:
    if any(_terminated(status).get("reason") == "OOMKilled" for status in _statuses(pod)):
        limit = pod["spec"]["containers"][0]["resources"].get("limits", {}).get("memory", "the node's memory")
        return f"pod {_name(pod)} ran out of memory (limit: {limit}). Fix: raise resources.limits.memory in the overlay."
    if pod["status"].get("reason") == "Evicted":
        return f"pod {_name(pod)} was evicted: {pod['status'].get('message', '')}"
    return None


def _of_exit(pod: KubernetesObject | None) -> End | None:
    """How the run ended, judged by the exit code of a pod's own program; None if the program was ended from outside."""
    code = _exit_code(pod) if pod else None
    if pod is None or not code or code > 128:
        return None
    who, log = (
        ("the driver", "make logs") if _labels(pod).get(INDEX) == "0" else (f"pod {_name(pod)}", f"kubectl logs {_name(pod)}")
    )
    return End(code if code in FINAL_CODES else 1, f"{who} exited with code {code}; its log gives the reason: {log}")


def _exit_code(pod: KubernetesObject) -> int | None:
    return next((_terminated(status).get("exitCode") for status in _statuses(pod)), None)


def _terminated(status: dict[str, Any]) -> dict[str, Any]:
    return status["state"].get("terminated") or status.get("lastState", {}).get("terminated") or {}


def _waits(status: dict[str, Any]) -> tuple[str | None, str]:
    """Reason and message of a waiting container; (None, "") if it is not waiting."""
    waiting = status["state"].get("waiting", {})
    return waiting.get("reason"), " ".join(waiting.get("message", "").split())


def _state(pod: KubernetesObject) -> str:
    if "deletionTimestamp" in pod["metadata"]:
        return "terminating"
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
