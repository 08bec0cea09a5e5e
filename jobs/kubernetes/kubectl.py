"""The only door to kubectl, and through it to a Kubernetes cluster.

Owns the choice of cluster and namespace (KUBECONFIG and its current context, as for kubectl itself), and turns kubectl's error
output into one line with a fix.

Why kubectl and not the client library `kubernetes`: rendering k8s/ needs kubectl in any case (kustomize). It also applies a list of
objects of any kind on the server, forwards ports and follows logs, and it starts faster than the library can be imported.
"""

import json
import re
import shutil
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer import UserError
from trainer.formatting import masked

KubernetesObject = dict[str, Any]
"""An object as Kubernetes' API represents it in JSON."""
_TIMEOUT = 60.0
"""Seconds for one request."""
_UNREACHABLE = re.compile(r"Unable to connect|was refused|i/o timeout|no such host|TLS handshake|deadline exceeded", re.IGNORECASE)


class KubernetesError(UserError):
    """The cluster cannot be reached or rejects a request. The message is one line."""


class ForbiddenError(KubernetesError):
    """The user lacks the permission for a request."""


class WaitError(KubernetesError):
    """What kubectl was asked to do, or to wait for, did not happen in time."""


def kubectl_program() -> str:
    """Path of kubectl: the one installed with Python's packages, or the one in PATH. Raises KubernetesError."""
    program = shutil.which("kubectl", path=sysconfig.get_path("scripts")) or shutil.which("kubectl")
    if program is None:
        raise KubernetesError("The program kubectl is not installed. Fix: run `make install`, or use the image.")
    return program


def kustomize(folder: Path) -> str:
    """Renders a kustomization to YAML; needs no cluster. Raises KubernetesError."""
    done = subprocess.run([kubectl_program(), "kustomize", str(folder)], capture_output=True, text=True, timeout=_TIMEOUT)
    if done.returncode:
        raise KubernetesError(f"kubectl kustomize cannot render {folder}: {_last_line(done.stderr)}. Fix: correct that folder.")
    return done.stdout


class Kubectl:
    """kubectl in one namespace of the kubeconfig's current context."""

    def __init__(self, namespace: str | None = None) -> None:
        """Reads only the kubeconfig. `namespace` defaults to the context's. Raises KubernetesError without a current context."""
        self._program = kubectl_program()
        view = subprocess.run([self._program, "config", "view", "--minify", "-o", "json"], capture_output=True, text=True)
        if view.returncode:
            raise KubernetesError(
                f"The kubeconfig names no cluster ({_last_line(view.stderr)}). Fix: set KUBECONFIG, or choose a context with "
                "`kubectl config use-context NAME`."
            )
        config = json.loads(view.stdout)
        self.context: str = config["current-context"]
        self.server: str = config["clusters"][0]["cluster"]["server"]
        self.namespace = namespace or config["contexts"][0]["context"].get("namespace") or "default"

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = _TIMEOUT) -> str:
        """Runs kubectl for at most `timeout` seconds and returns its standard output. Raises KubernetesError."""
        return self._run(arguments, stdin, timeout)[0]

    def get(self, *arguments: str) -> Any:
        """The JSON that `kubectl get` prints. Raises KubernetesError."""
        return json.loads(self.run("get", *arguments, "-o", "json"))

    def exists(self, kind: str, name: str) -> bool:
        """Raises KubernetesError."""
        return bool(self.run("get", kind, name, "--ignore-not-found", "-o", "name").strip())

    def check_namespace(self) -> None:
        """Raises KubernetesError if the namespace does not exist. Without the permission to look, it counts as there."""
        try:
            there = self.exists("namespace", self.namespace)
        except ForbiddenError:
            return
        if not there:
            raise self._no_namespace()

    def apply(self, objects: Sequence[KubernetesObject], *, dry_run: bool = False) -> list[str]:
        """Applies the objects on the server, in their order, and returns the server's warnings. Raises KubernetesError.

        `dry_run`: the server validates everything and changes nothing.
        """
        arguments = ["apply", "--server-side", "--force-conflicts", "--field-manager=spikewise", "-f", "-"]
        bundle = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        stderr = self._run([*arguments, *(["--dry-run=server"] if dry_run else [])], bundle, _TIMEOUT)[1]
        return [line.removeprefix("Warning: ") for line in stderr.splitlines() if line.startswith("Warning: ")]

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Starts a long-running command, such as `logs --follow`. Its standard output is a pipe."""
        command = [self._program, f"--namespace={self.namespace}", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace")

    def _run(self, arguments: Sequence[str], stdin: str | None, timeout: float) -> tuple[str, str]:
        command = [self._program, f"--namespace={self.namespace}", f"--request-timeout={timeout:g}s", *arguments]
        try:
            done = subprocess.run(command, input=stdin or "", capture_output=True, text=True, timeout=timeout + 10)
        except subprocess.TimeoutExpired:
            raise WaitError(
                f"{self._cluster()} did not answer `kubectl {arguments[0]}` within {timeout:g} s. Fix: try again later."
            ) from None
        if done.returncode:
            raise self._explain(done.stderr)
        return done.stdout, done.stderr

    def _cluster(self) -> str:
        return f"The cluster of context {self.context} ({masked(self.server)})"

    def _no_namespace(self) -> KubernetesError:
        fix = f"run `kubectl create namespace {self.namespace}`, or choose another --namespace"
        return KubernetesError(f"{self._cluster()} has no namespace {self.namespace}. Fix: {fix}.")

    def _explain(self, stderr: str) -> KubernetesError:
        """kubectl's error output as one line with a fix."""
        line = _last_line(stderr)
        if _UNREACHABLE.search(line):
            return KubernetesError(f"{self._cluster()} does not answer ({line}). Fix: start it, or choose another in KUBECONFIG.")
        if re.search(r'namespaces "[^"]*" not found', line):
            return self._no_namespace()
        if kind := re.search(r'no matches for kind "(\w+)"|doesn\'t have a resource type "(\w+)"', stderr):
            return KubernetesError(_not_installed(next(filter(None, kind.groups()))))
        if denied := re.search(r'User "([^"]*)" cannot (\w+) resource "([^"]*)"', line):
            user, verb, resource = denied.groups()
            return ForbiddenError(
                f'User "{user}" may not {verb} {resource} in namespace {self.namespace}. Fix: ask an administrator for the '
                "permissions of k8s/submitter-role.yaml, or use another context."
            )
        if "Unauthorized" in line or "provide credentials" in line:
            return KubernetesError(f"{self._cluster()} rejects the kubeconfig's credentials ({line}). Fix: log in again.")
        if "timed out waiting" in stderr:
            return WaitError(f"{self._cluster()}: {line}. Fix: `kubectl describe` shows the reason; then run the command again.")
        return KubernetesError(f"{self._cluster()}: {line.rstrip('.')}. Fix: correct what this names, or ask an administrator.")


class Log:
    """Passes on the lines of pods' logs as they arrive, across lost connections, until the container has ended."""

    def __init__(self, kubectl: Kubectl, say: Callable[[str], None]) -> None:
        self._kubectl = kubectl
        self._say = say
        self._threads: dict[str, threading.Thread] = {}
        """By the pod's UID."""

    def follow(self, pod: KubernetesObject) -> None:
        """Follows the log of `pod` from its first line. Does nothing if that log is followed already."""
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        if uid not in self._threads:
            self._threads[uid] = threading.Thread(target=self._read, args=(name,), daemon=True, name=f"log-{name}")
            self._threads[uid].start()

    def finish(self, seconds: float | None = None) -> None:
        """Waits for the last lines of each log, at most `seconds`; None: without a limit."""
        for thread in self._threads.values():
            thread.join(seconds)

    def _read(self, pod: str) -> None:
        last = ""
        while True:
            since = [f"--since-time={last}"] if last else []
            process = self._kubectl.start("logs", "--follow", "--timestamps", *since, pod)
            assert process.stdout is not None
            for line in process.stdout:
                stamp, _, text = line.rstrip("\n").partition(" ")
                if stamp > last:  # timestamps have a fixed length, so strings compare like times
                    last = stamp
                    self._say(text)
            process.wait()
            try:
                phase = self._kubectl.run("get", "pod", pod, "--ignore-not-found", "-o", "jsonpath={.status.phase}")
            except KubernetesError:
                phase = "Running"
            if phase != "Running":
                return
            threading.Event().wait(1)


def _not_installed(kind: str) -> str:
    if kind.lower().startswith("ray"):
        return "KubeRay is not installed on this cluster. Fix: install it, or use --shape job, which does not need it."
    if kind.lower().startswith("localqueue"):
        return "Kueue is not installed on this cluster. Fix: install it, or choose another --overlay."
    return f"The cluster does not know objects of kind {kind}. Fix: install what defines them, or remove them from the overlay."


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Warning: ")]
    return re.sub(r"^(error|Error from server( \(\w+\))?): ", "", lines[-1]) if lines else "kubectl printed no error message"
