"""A run on a cluster, watched: its pods in a line whenever something changes, the driver's log as it comes, the end.

Owns: how long an odd state is borne before the run is given up: a pod that finds no node for launch.start_timeout, an image that
cannot be pulled, a RayJob on which nobody acts.
"""

import time
from collections.abc import Callable

from jobs import pods
from jobs.kubernetes import Kubectl, KubernetesError, Log, Manifest
from jobs.manifests import LABEL, object_name

POLL_SECONDS = 2.0
UNREACHABLE_SECONDS = 120.0
"""How long the cluster may be silent while a run is watched."""
UNMANAGED_SECONDS = 30.0
"""After which a RayJob without any status has no operator."""
UNMADE_SECONDS = 10.0
"""After which a refusal to make pods counts; a controller tries again by itself."""


class StartError(KubernetesError):
    """The run cannot start on this cluster as it is asked for; one line."""


class Watch:
    def __init__(self, kubectl: Kubectl, run: str, kind: str, say: Callable[[str], None]) -> None:
        self._kubectl = kubectl
        self._run = run
        self._kind = kind
        self._say = say
        self._log = Log(kubectl, say)
        self._said = ""
        self._wanting: float | None = None

    def look(self) -> tuple[Manifest, list[Manifest]]:
        """The run's main object and its pods, now. Raises KubernetesError when there is none."""
        main = self._kubectl.get(self._kind, object_name(self._run))
        found = self._kubectl.get("pods", "-l", f"{LABEL}={self._run}")["items"]
        return main, found

    def until_end(self, start_timeout: float) -> pods.End:
        """Tells how the run goes until it ends. Raises StartError, and KubernetesError when the cluster or the run is gone."""
        began = heard = time.monotonic()
        while True:
            try:
                main, found = self.look()
                heard = time.monotonic()
            except KubernetesError:
                if time.monotonic() - heard > UNREACHABLE_SECONDS:
                    raise
                if not self._still_there():
                    raise KubernetesError(
                        f"run {self._run} is no longer on the cluster: somebody cancelled it; submitting it under its name goes "
                        "on from its last checkpoint"
                    ) from None
                time.sleep(POLL_SECONDS)
                continue
            self._tell(main, found)
            if end := pods.end(main, found):
                self._log.finish(10)
                return end
            self._check_start(main, found, start_timeout, heard - began)
            time.sleep(POLL_SECONDS)

    def follow_log(self) -> None:
        """Starts to tell the driver's log, if there is one."""
        driver = pods.driver_pod(*self.look())
        if driver and pods.has_started(driver):
            self._log.follow(driver)

    def finish(self, seconds: float | None = None) -> None:
        """Waits for the last lines of the log, at most so long."""
        self._log.finish(seconds)

    def _tell(self, main: Manifest, found: list[Manifest]) -> None:
        line = pods.summary(main, found)
        if line != self._said:
            self._said = line
            self._say(line)
        driver = pods.driver_pod(main, found)
        if driver and pods.has_started(driver):
            self._log.follow(driver)

    def _check_start(self, main: Manifest, found: list[Manifest], start_timeout: float, age: float) -> None:
        if reason := pods.trouble(found):
            raise StartError(reason)
        if self._kind == "rayjob" and not main.get("status", {}).get("jobDeploymentStatus") and age > UNMANAGED_SECONDS:
            raise StartError("KubeRay's RayJob is known here, but nobody acts on it: start KubeRay's operator, or use SHAPE=job")
        if not found and not main["spec"].get("suspend") and age > UNMADE_SECONDS and (reason := self._refusal()):
            raise StartError(f"the cluster makes no pods: {reason}")
        lacking = pods.unschedulable(found)
        if not lacking:
            self._wanting = None
        elif self._wanting is None:
            self._wanting = time.monotonic()
        elif time.monotonic() - self._wanting > start_timeout:
            raise StartError(
                f"{lacking} (for {start_timeout:g} s, launch.start_timeout): lower the requests in the overlay or launch.workers, "
                "or add nodes"
            )

    def _refusal(self) -> str | None:
        events = self._kubectl.get("events")["items"]
        return pods.refusal([each for each in events if each["involvedObject"]["name"].startswith(object_name(self._run))])

    def _still_there(self) -> bool:
        try:
            return self._kubectl.exists(self._kind, object_name(self._run))
        except KubernetesError:
            return True
