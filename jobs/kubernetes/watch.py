"""A run on a cluster, watched: its pods in a line whenever something changes, the driver's log as it comes, the end.

Owns: how long an odd state is borne before a run that is starting is given up: a pod that finds no node or is not made for
launch.start_timeout, an image that cannot be pulled, a RayJob on which nobody acts. A run is not given up once all its pods ran.
"""

import time
from collections.abc import Callable

from jobs.kubernetes import pods
from jobs.kubernetes.kubectl import Kubectl, KubernetesError, KubernetesObject, Log
from jobs.kubernetes.manifests import LABEL, object_name

POLL_SECONDS = 2.0
UNREACHABLE_SECONDS = 120.0
"""How long the cluster may be silent while a run is watched."""
UNMANAGED_SECONDS = 30.0
"""After which a RayJob without any status has no operator."""
UNMADE_SECONDS = 10.0
"""After which a refusal to make any pod counts; a controller tries again by itself."""
UNCREATED_SECONDS = 60.0
"""After which a container that cannot be started counts; the kubelet tries again by itself."""


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
        self._lost: set[str] = set()
        self._started = False
        self._since: dict[str, float] = {}

    def look(self) -> tuple[KubernetesObject, list[KubernetesObject]]:
        """The run's main object and its pods, now. Raises KubernetesError when there is none."""
        main = self._kubectl.get(self._kind, object_name(self._run))
        found = self._kubectl.get("pods", "-l", f"{LABEL}={self._run}")["items"]
        return main, found

    def refusal(self, main: KubernetesObject, found: list[KubernetesObject]) -> str | None:
        """Why the cluster makes fewer pods than the run needs, as far as it says."""
        if not pods.missing(main, found):
            return None
        try:
            return pods.refusal(main, self._kubectl.get("events")["items"])
        except KubernetesError:  # without that right, or in time, the pods themselves have to tell
            return None

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
            end = pods.end(main, found)
            refused = None if end else self.refusal(main, found)
            self._tell(main, found, refused)
            if end:
                self._log.finish(10)
                return end
            self._started |= pods.all_run(main, found)
            if not self._started:
                self._check_start(main, found, refused, start_timeout, heard - began)
            time.sleep(POLL_SECONDS)

    def follow_log(self) -> None:
        """Starts to tell the driver's log, if there is one."""
        driver = pods.driver_pod(*self.look())
        if driver and pods.has_started(driver):
            self._log.follow(driver)

    def finish(self, seconds: float | None = None) -> None:
        """Waits for the last lines of the log, at most so long."""
        self._log.finish(seconds)

    def _tell(self, main: KubernetesObject, found: list[KubernetesObject], refused: str | None) -> None:
        line = pods.summary(main, found, refused)
        if line != self._said:
            self._said = line
            self._say(line)
        for lost in pods.losses(found):
            if lost not in self._lost:
                self._lost.add(lost)
                self._say(lost)
        driver = pods.driver_pod(main, found)
        if driver and pods.has_started(driver):
            self._log.follow(driver)

    def _check_start(
        self, main: KubernetesObject, found: list[KubernetesObject], refused: str | None, start_timeout: float, age: float
    ) -> None:
        """Raises StartError for what will not get better by itself."""
        if reason := pods.not_pullable(found):
            raise StartError(reason)
        stuck = pods.not_creatable(found)
        if self._lasts("stuck", stuck) > UNCREATED_SECONDS:
            raise StartError(f"{stuck} (for {UNCREATED_SECONDS:g} s)")
        if self._kind == "rayjob" and not main.get("status", {}).get("jobDeploymentStatus") and age > UNMANAGED_SECONDS:
            raise StartError("KubeRay's RayJob is known here, but nobody acts on it: start KubeRay's operator, or use SHAPE=job")
        if refused and not found and age > UNMADE_SECONDS:
            raise StartError(f"the cluster makes no pods: {refused}")
        lacking = pods.unschedulable(found) or refused
        if self._lasts("lacking", lacking) > start_timeout:
            raise StartError(
                f"{lacking} (for {start_timeout:g} s, launch.start_timeout): lower the requests in the overlay or launch.workers, "
                "or add nodes or quota"
            )

    def _lasts(self, what: str, reason: str | None) -> float:
        """Seconds since when there has been a reason for `what`, whichever."""
        if reason is None:
            self._since.pop(what, None)
            return 0.0
        return time.monotonic() - self._since.setdefault(what, time.monotonic())

    def _still_there(self) -> bool:
        try:
            return self._kubectl.exists(self._kind, object_name(self._run))
        except KubernetesError:
            return True
