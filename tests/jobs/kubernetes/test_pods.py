"""jobs.kubernetes.pods: what is reported about a run's pods and its end."""

import pytest

from jobs.kubernetes import pods
from jobs.kubernetes.kubectl import KubernetesObject
from tests.jobs.kubernetes.objects import exited, job, pod, refusal, unscheduled, waiting


def test_summary_of_pods():
    """A user who waits for a run would not see what it waits for."""
    line = pods.summary(job(), [pod(0), unscheduled(1, "0/1 nodes are available: 1 Insufficient cpu.")])
    assert line == (
        "pods: 1 pending, 1 running (pod run-first-1-abcde cannot be scheduled: 0/1 nodes are available: 1 Insufficient cpu.)"
    )
    assert pods.summary(job(), [pod(0)], "exceeded quota") == "pods: 1 running (no more are created: exceeded quota)"


def test_summary_of_a_queued_run():
    """A user would think that a run in Kueue's queue hangs."""
    queued = job()
    queued["spec"]["suspend"] = True
    assert pods.summary(queued, []) == "suspended"
    queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "spikewise"
    assert pods.summary(queued, []) == "suspended: waiting in Kueue's queue spikewise"


def test_image_that_cannot_be_pulled():
    """The run would wait for an image that does not exist until its deadline; or give up after the first failed attempt."""
    assert "image registry.example/spikewise:1 cannot be pulled" in (pods.not_pullable([waiting(0, "ImagePullBackOff")]) or "")
    assert pods.not_pullable([waiting(0, "ErrImagePull")]) is None  # the next attempt may succeed


def test_refusals_of_this_run_only():
    """A run would end because of an event of another run, or of an earlier run of the same name."""
    others = [refusal("no", "earlier"), refusal("no", "v", "run-first-two"), refusal("no", "w", "run-first-x1y2z")]
    assert pods.refusal(job(), others) is None
    newest = refusal("exceeded quota:\n  pods", time="2026-01-01T00:00:03Z")
    assert pods.refusal(job(), [newest, refusal("old"), *others]) == "exceeded quota: pods"
    rayjob = job() | {"kind": "RayJob", "status": {"rayClusterName": "run-first-x1y2z"}}
    assert pods.refusal(rayjob, others) == "no"


@pytest.mark.parametrize(
    ("type_", "reason", "last", "code", "line"),
    [
        ("Complete", "SuccessPolicy", exited(0, 0), 0, "completed"),
        ("Failed", "PodFailurePolicy", exited(0, 2), 2, "the driver exited with code 2; its log gives the reason: make logs"),
        (
            "Failed",
            "MaxFailedIndexesExceeded",
            exited(0, 137, "OOMKilled"),
            1,
            "pod run-first-0-abcde ran out of memory (limit: 4Gi)",
        ),
        ("Failed", "DeadlineExceeded", exited(0, 143), 1, "not finished within 60 s"),
    ],
)
def test_end_of_a_job(type_, reason, last, code, line):
    """A script would continue after a failed run, or a user would look for the cause in the wrong place."""
    found = pods.end(job({"type": type_, "status": "True", "reason": reason}), [last])
    assert found is not None
    assert (found.code, found.line[: len(line)]) == (code, line)


@pytest.mark.parametrize(
    ("status", "end"),
    [
        ({"jobDeploymentStatus": "Running"}, None),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, pods.End(0, "completed")),
        ({"jobDeploymentStatus": "Failed", "message": "exit\n code 1"}, pods.End(1, "exit code 1")),
        ({"jobDeploymentStatus": "Failed", "reason": "AppFailed"}, pods.End(1, "AppFailed")),
    ],
)
def test_end_of_a_rayjob(status, end):
    """The watch would stop while the RayJob runs, or report a failed one as a success."""
    assert pods.end(job() | {"kind": "RayJob", "status": status}, []) == end


def test_the_end_is_explained_by_its_cause():
    """A user would give more memory to a run whose images are missing, because a pod ran out of memory hours ago."""
    policy, backoff = (
        job({"type": "Failed", "status": "True", "reason": reason, "message": "too often"})
        for reason in ("PodFailurePolicy", "FailedIndexes")
    )
    survived = exited(0, 137, "OOMKilled")

    def ended(index: int, code: int) -> KubernetesObject:
        last = exited(index, code)
        return last | {"metadata": last["metadata"] | {"creationTimestamp": "2026-01-01T00:00:09Z"}}

    driver, log = "the driver exited with code", "its log gives the reason: make logs"
    assert pods.end(policy, [survived, ended(0, 2)]) == pods.End(2, f"{driver} 2; {log}")
    worker = pods.end(policy, [ended(0, 143), ended(1, 2)])
    name = "run-first-1-abcde"
    assert worker == pods.End(2, f"pod {name} exited with code 2; its log gives the reason: kubectl logs {name}")
    assert pods.end(backoff, [survived, ended(0, 75)]) == pods.End(1, f"{driver} 75; {log}")
    assert pods.end(backoff, [ended(0, 143), ended(1, 137)]) == pods.End(1, "too often")


def test_a_running_job_has_no_end():
    """The watch would stop while the run continues."""
    criteria = {"type": "FailureTarget", "status": "True", "reason": "PodFailurePolicy"}
    assert pods.end(job(criteria), [pod(0)]) is None
