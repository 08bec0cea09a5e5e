"""Watches a run on a cluster: a line whenever its pods change, the driver's log as it is written, and the end.

Owns how long a starting run may be stuck before it counts as failed. A pod that cannot be scheduled or created has
launch.start_timeout; for other problems see the constants below. Once all pods have run, none of this ends the run.
"""

import time
from collections.abc import Callable

from jobs.kubernetes import pods, runs
from jobs.kubernetes.kubectl import Kubectl, KubernetesError, KubernetesObject, Log
from jobs.kubernetes.manifests import object_name
from trainer.formatting import duration

POLL_SECONDS = 2.0
REMIND_SECONDS = 30.0
"""How long a starting run may be silent, for example while the nodes pull the image."""
UNREACHABLE_SECONDS = 120.0
"""How long the cluster may be unreachable while a run is watched."""
UNMANAGED_SECONDS = 30.0
"""How long a RayJob may be without a status before KubeRay's operator counts as absent."""
NO_POD_SECONDS = 10.0
"""How long the cluster may create no pod at all, for a reason that it reports; controllers retry."""
NOT_CREATABLE_SECONDS = 60.0
"""How long a node may be unable to start a container; the kubelet retries."""


class StartError(KubernetesError):
    """The cluster cannot start the run as requested. The message is one line."""


class Watch:
    """Watches one run. `kind`: its shape, job or rayjob; `say`: takes each line of output."""

    def __init__(self, kubectl: Kubectl, run: str, kind: str, say: Callable[[str], None]) -> None:
        self._kubectl = kubectl
        self._run = run
        self._kind = kind
        self._say = say
        self._log = Log(kubectl, say)
        self._summary = ""
        self._said = 0.0
        """When the summary was last printed, in seconds of the monotonic clock."""
        self._lost: set[str] = set()
        self._started = False
        self._since: dict[str, float] = {}
        """Problem -> when it began, in seconds of the monotonic clock."""

    def until_end(self, start_timeout: float) -> pods.End:
        """Reports on the run until it ends. `start_timeout`: in seconds, launch.start_timeout.

        Raises StartError if the run cannot start, and KubernetesError if the cluster does not answer or the run is deleted.
        """
        began = heard = time.monotonic()
        while True:
            try:
                main, found = runs.look(self._kubectl, self._kind, self._run)
                heard = time.monotonic()
            except KubernetesError:
                if time.monotonic() - heard > UNREACHABLE_SECONDS:
                    raise
                if not self._still_there():
                    raise KubernetesError(
                        f"Run {self._run} is no longer on the cluster: it was cancelled. Fix: submit it again under the same name "
                        "to resume from its last checkpoint."
                    ) from None
                time.sleep(POLL_SECONDS)
                continue
            end = pods.end(main, found)
            refused = None if end else runs.refusal(self._kubectl, main, found)
            self._report(main, found, refused)
            if end:
                self._log.finish(10)
                return end
            self._started |= pods.all_running(main, found)
            if not self._started:
                self._check_start(main, found, refused, start_timeout, heard - began)
            time.sleep(POLL_SECONDS)

    def follow_log(self) -> None:
        """Follows the driver's log if it exists. Raises KubernetesError."""
        self._follow(*runs.look(self._kubectl, self._kind, self._run))

    def finish(self, seconds: float | None = None) -> None:
        """Waits for the end of the log, at most `seconds`; None: without a limit."""
        self._log.finish(seconds)

    def _report(self, main: KubernetesObject, found: list[KubernetesObject], refused: str | None) -> None:
        line, now = pods.summary(main, found, refused), time.monotonic()
        if line != self._summary:
            self._summary, self._said = line, now
            self._since.pop("summary", None)
            self._lasts("summary", line)
            self._say(line)
        elif not self._started and now - self._said >= REMIND_SECONDS:
            self._said = now
            self._say(f"{line}, for {duration(self._lasts('summary', line))}")
        for lost in pods.lost(found):
            if lost not in self._lost:
                self._lost.add(lost)
                self._say(lost)
        self._follow(main, found)

    def _follow(self, main: KubernetesObject, found: list[KubernetesObject]) -> None:
        driver = pods.driver_pod(main, found)
        if driver and pods.has_started(driver):
            self._log.follow(driver)

    def _check_start(
        self, main: KubernetesObject, found: list[KubernetesObject], refused: str | None, start_timeout: float, age: float
    ) -> None:
        """Raises StartError for a problem that waiting will not solve. `age`: seconds since the watch began."""
        if reason := pods.not_pullable(found):
            raise StartError(reason)
        stuck = pods.not_creatable(found)
        if self._lasts("stuck", stuck) > NOT_CREATABLE_SECONDS:
            raise StartError(
                f"{stuck}, for {NOT_CREATABLE_SECONDS:g} s. Fix: correct what this names, such as a missing Secret or ConfigMap."
            )
        if self._kind == "rayjob" and not main.get("status", {}).get("jobDeploymentStatus") and age > UNMANAGED_SECONDS:
            raise StartError(
                f"KubeRay's operator has not acted on the RayJob for {UNMANAGED_SECONDS:g} s. Fix: start it, or use --shape job."
            )
        if refused and not found and age > NO_POD_SECONDS:
            raise StartError(f"The cluster creates no pods: {refused}. Fix: correct what this names, such as a quota or a limit.")
        lacking = pods.unschedulable(found) or refused
        if self._lasts("lacking", lacking) > start_timeout:
            raise StartError(
                f"{lacking} (for {start_timeout:g} s, launch.start_timeout). Fix: lower launch.workers or the resource requests in "
                "the overlay, or add nodes or quota."
            )

    def _lasts(self, problem: str, reason: str | None) -> float:
        """Seconds since `problem` began, even if its reason has changed since. `reason` None: there is no such problem now."""
        if reason is None:
            self._since.pop(problem, None)
            return 0.0
        return time.monotonic() - self._since.setdefault(problem, time.monotonic())

    def _still_there(self) -> bool:
        try:
            return self._kubectl.exists(self._kind, object_name(self._run))
        except KubernetesError:
            return True
