"""Finds, reads, creates and removes the objects of one run on a cluster.

Owns the order of creation and deletion. A failed start leaves nothing behind, and no run replaces one that is still running.
"""

import tomllib
from collections.abc import Callable
from contextlib import suppress

from jobs.kubernetes import manifests, pods
from jobs.kubernetes.kubectl import ForbiddenError, Kubectl, KubernetesError, KubernetesObject, WaitError
from jobs.kubernetes.manifests import LABEL, SHAPES, object_name
from trainer import config
from trainer.formatting import one_line


class RunNotFoundError(KubernetesError):
    """The cluster has no such run."""


def find(kubectl: Kubectl, run: str | None) -> KubernetesObject:
    """The Job or RayJob of the run; None: of the newest run in the namespace. Raises RunNotFoundError, KubernetesError."""
    found: list[KubernetesObject] = []
    for kind in SHAPES:
        try:
            found += kubectl.get(kind, "-l", f"{LABEL}={run}" if run else LABEL)["items"]
        except KubernetesError:
            if kind == "job":
                raise  # other kinds may be unknown to the cluster
    mains = [each for each in found if not each["metadata"].get("ownerReferences")]  # without the Job that submits a RayJob
    if run:
        mains = [each for each in mains if each["metadata"]["name"] == object_name(run)]
    if not mains:
        kubectl.check_namespace()
        what = f"no run {run}" if run else "no run"
        raise RunNotFoundError(
            f"Namespace {kubectl.namespace} of context {kubectl.context} has {what}. Fix: correct --run or --namespace; "
            "--storage shows a run that has left the cluster."
        )
    return max(mains, key=lambda each: each["metadata"]["creationTimestamp"])


def look(kubectl: Kubectl, kind: str, run: str) -> tuple[KubernetesObject, list[KubernetesObject]]:
    """The run's Job or RayJob and its pods, as they are now. Raises KubernetesError, also if the run does not exist."""
    return kubectl.get(kind, object_name(run)), kubectl.get("pods", "-l", f"{LABEL}={run}")["items"]


def refusal(kubectl: Kubectl, main: KubernetesObject, found: list[KubernetesObject]) -> str | None:
    """Why the cluster creates fewer pods than the run needs; None if all exist, or if the reason is not known."""
    if not pods.incomplete(main, found):
        return None
    try:
        return pods.refusal(main, kubectl.get("events")["items"])
    except KubernetesError:  # reading events may be forbidden
        return None


def settings(kubectl: Kubectl, run: str) -> config.Settings:
    """The configuration with which the run was submitted. Raises KubernetesError, ConfigError."""
    name = object_name(run)
    data = kubectl.get("configmap", name).get("data") or {}
    try:
        values = tomllib.loads(data["config.toml"])
    except (KeyError, ValueError) as error:  # of TOML: ValueError
        raise KubernetesError(f"ConfigMap {name} holds no configuration ({one_line(error)}). Fix: submit the run again.") from None
    return config.parse(values, f"configuration of run {run}")


def create(kubectl: Kubectl, objects: list[KubernetesObject], run: str, say: Callable[[str], None]) -> None:
    """Removes an ended run of this name, lets the server validate everything, then creates the objects of `manifests.fit`, and a
    Job's Secret with the token of its Ray cluster.

    Raises KubernetesError, also if a run of this name is still running. After an error nothing is left behind.
    """
    main = manifests.owner(objects)
    if main["kind"] == "Job":  # for a RayJob, KubeRay does this
        objects = [manifests.token(run), *objects]
    _make_way(kubectl, run)
    for warning in kubectl.apply(objects, dry_run=True):
        say(f"warning: {warning}")
    try:
        kubectl.apply(objects)
        uid = kubectl.get(main["kind"], main["metadata"]["name"])["metadata"]["uid"]
        kubectl.apply(manifests.owned(objects, uid))
    except BaseException:
        clean_up(kubectl, run, say)
        raise


def remove(kubectl: Kubectl, run: str, timeout: float = 300) -> None:
    """Deletes all objects of a run and waits until its pods are gone: each has its grace period to save a checkpoint.

    Raises KubernetesError, also after `timeout` seconds.
    """
    selector, waiting = f"{LABEL}={run}", f"--timeout={timeout:g}s"
    answer = timeout + 30  # kubectl then gives up by itself, and says what it waited for
    kinds = "job,service,configmap,serviceaccount,networkpolicy"
    if kubectl.run("api-resources", "--api-group=ray.io", "-o", "name").strip():
        kinds = f"rayjob,{kinds}"
    try:
        kubectl.run("delete", kinds, "-l", selector, "--cascade=foreground", waiting, timeout=answer)
        with suppress(ForbiddenError):  # it usually goes with its Job. By name: a selector needs the permission to list Secrets
            kubectl.run("delete", "secret", object_name(run), "--ignore-not-found", "--wait=false")
        kubectl.run("wait", "pod", "-l", selector, "--for=delete", waiting, timeout=answer)
    except WaitError:
        left = pods.terminating(kubectl.get("pods", "-l", selector)["items"])
        if not left:
            raise
        raise KubernetesError(
            f"Run {run} is being removed, but after {timeout:g} s still terminating: {', '.join(left)}. Fix: repeat `make cancel "
            f"RUN={run}` later; if a node is lost for good, use `kubectl delete pod NAME -n {kubectl.namespace} --force`."
        ) from None


def clean_up(kubectl: Kubectl, run: str, say: Callable[[str], None]) -> None:
    """Removes a run that cannot start. Reports an error instead of raising it, so that the original error reaches the user."""
    try:
        remove(kubectl, run)
    except KubernetesError as error:
        reason = str(error).partition(". Fix: ")[0]
        say(f"warning: not all objects of run {run} could be removed ({reason}). Fix: run `make cancel RUN={run}`.")


def _make_way(kubectl: Kubectl, run: str) -> None:
    """Removes an ended run of this name. Raises KubernetesError if it is still running."""
    for kind in SHAPES:
        try:
            if not kubectl.exists(kind, object_name(run)):
                continue
        except KubernetesError:
            if kind == "job":
                raise
            continue  # a cluster without KubeRay
        main, found = look(kubectl, kind, run)
        if not pods.end(main, found) and "deletionTimestamp" not in main["metadata"]:
            raise KubernetesError(
                f"Run {run} is already on this cluster. Fix: follow it with `make status RUN={run}`, end it with `make cancel "
                f"RUN={run}`, or choose another run.name."
            )
        remove(kubectl, run)
