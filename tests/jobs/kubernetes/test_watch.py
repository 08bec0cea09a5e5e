"""jobs.kubernetes.watch: what a watched run reports, and when a start counts as failed. Kubernetes' answers are given."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.kubernetes import pods, watch
from jobs.kubernetes.kubectl import KubernetesError, KubernetesObject
from tests.jobs.kubernetes.objects import exited, job, pod, refusal, unscheduled, waiting


class _Cluster:
    """Answers with the run's main object, the next list of pods, and the events; None: the user may not list events."""

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
    """The reported lines, and how the watch ended. The clock advances by 40 s between two looks. Logs are not followed."""
    clock, lines = [0.0], []
    time = SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda _: clock.__setitem__(0, clock[0] + 40))
    monkeypatch.setattr(watch, "time", time)
    monkeypatch.setattr(pods, "has_started", lambda _: False)
    try:
        end = watch.Watch(cluster, "first", "job", lines.append).until_end(start_timeout)
    except (KubernetesError, KeyboardInterrupt) as error:
        return lines, str(error) or "continues"
    return lines, end.line


def test_a_run_that_has_started_is_never_given_up(monkeypatch):
    """After forty hours a run would be deleted because a spot node is gone or a registry fails for a moment."""
    running = [pod(0), pod(1)]
    unpullable, uncreatable = waiting(1, "ImagePullBackOff"), waiting(1, "CreateContainerError")
    for bad in ([pod(0), unscheduled(1)], [pod(0), unpullable], [pod(0), uncreatable], [pod(0)]):
        cluster = _Cluster(job(), running, *[bad] * 5, running, events=[refusal("exceeded quota")])
        lines, end = _watched(monkeypatch, cluster)
        assert end == "continues"
        assert re.search("cannot be scheduled|cannot be pulled|cannot start|no more are created: exceeded quota", lines[1]), lines
        assert lines[-1] == lines[0] == "pods: 2 running"


def test_what_keeps_a_run_from_starting(monkeypatch):
    """A run that gets only some of its pods would hold them idle for two days; or one slow pod would end the run at once."""
    uncreatable = waiting(1, "CreateContainerError", "busy")
    for looks, events, end in (
        ([[pod(0)]] * 3, [refusal("exceeded quota")], r"exceeded quota \(for 60 s, launch.start_timeout\)\. Fix: .* quota\."),
        ([[pod(0)]] * 9, None, "continues"),
        ([[]] * 2, [refusal("exceeded quota")], r"The cluster creates no pods: exceeded quota\. Fix: .*"),
        ([[pod(0), unscheduled(1)]] * 3, [], "pod run-first-1-abcde cannot be scheduled: .*"),
        ([[pod(0), unscheduled(1)], [pod(0)]] * 4, [], "continues"),
        ([[pod(0), uncreatable]] * 3, [], r"pod run-first-1-abcde cannot start: busy \(CreateContainerError\), for 60 s\. Fix: .*"),
        ([[pod(0), uncreatable], [pod(0)]] * 4, [], "continues"),
    ):
        ended = _watched(monkeypatch, _Cluster(job(), *looks, events=events), 60.0)[1]
        assert re.fullmatch(end, ended), ended


def test_a_slow_start_is_not_silent(monkeypatch):
    """While the nodes pull an image of 7 GB, the user would see nothing for minutes and take the command for dead."""
    starting = [waiting(0, "ContainerCreating"), waiting(1, "ContainerCreating")]
    lines, _ = _watched(monkeypatch, _Cluster(job(), *[starting] * 3, [pod(0), pod(1)], [pod(0), pod(1)], events=[]), 600.0)
    assert lines == [
        "pods: 2 starting",
        "pods: 2 starting, for 40.0 s",
        "pods: 2 starting, for 1m20s",
        "pods: 2 running",
    ]


def test_lost_pods_are_reported_once(monkeypatch):
    """A run whose worker runs out of memory again and again would look like a slow start; or its output would repeat the line."""
    lost = exited(1, 137, "OOMKilled")
    lines, _ = _watched(monkeypatch, _Cluster(job(), [pod(0), pod(1)], *[[pod(0), lost]] * 2, events=[]))
    assert [line for line in lines if line.startswith("pod run-first-1-abcde ran out of memory (limit: 4Gi)")] == lines[-1:]
