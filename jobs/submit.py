"""Runs a job on a Kubernetes cluster: `python -m jobs.submit --config FILE --overlay NAME --image IMAGE`.

Owns: the checks before anything is created, the order of creation, and that nothing stays behind when the run cannot start. What is
created is said in k8s/ and manifests.py; submitting a run's name again resumes it, as everywhere. Ends with the job's result;
Ctrl-C only stops watching.
"""

import argparse
import json
import sys

from jobs.kubernetes import manifests
from jobs.kubernetes.kubectl import Forbidden, Kubectl, KubernetesError, KubernetesObject
from jobs.kubernetes.pods import end
from jobs.kubernetes.watch import StartError, Watch
from trainer import UserError, config

OLDEST = (1, 33)
"""Kubernetes: the first with all that k8s/job uses."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.submit", description="Runs a job on a Kubernetes cluster.")
    parser.add_argument("--config", required=True, metavar="FILE", help="TOML file, such as jobs/configs/gpu.toml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value; may be repeated"
    )
    parser.add_argument(
        "--overlay", required=True, metavar="NAME", help=f"{', '.join(manifests.overlays())}, or the path of your own"
    )
    parser.add_argument("--shape", choices=list(manifests.SHAPES), default="job", help="job needs nothing installed (default)")
    parser.add_argument("--image", required=True, help="what `make image` built, pushed where the cluster's nodes can pull it")
    parser.add_argument("--secret", metavar="NAME", help="Secret with AWS_ACCESS_KEY_ID and so on (default: as the overlay says)")
    parser.add_argument("--namespace", metavar="NAME", help="default: the context's")
    parser.add_argument("--dry-run", action="store_true", help="print the manifests and touch nothing")
    arguments = parser.parse_args(argv)
    try:
        settings, run = _settings(arguments.config, arguments.set)
        rendered = manifests.render(arguments.overlay, arguments.shape)
        objects = manifests.fit(rendered, settings, run, arguments.image, arguments.secret)
        _check_resources(settings, manifests.owner(objects), arguments.overlay)
        if arguments.dry_run:
            print(manifests.to_yaml(objects), end="")
            return 0
        kubectl = Kubectl(arguments.namespace)
        _check_cluster(kubectl, manifests.owner(objects))
        if _check_secrets(kubectl, manifests.owner(objects)):
            _check_bucket(settings, run)
        say(
            f"run {run}: {settings.launch.workers} worker{'s' * (settings.launch.workers > 1)}, image {arguments.image}, overlay "
            f"{arguments.overlay}, {manifests.SHAPES[arguments.shape]} {manifests.object_name(run)}"
        )
        create(kubectl, objects, run)
        return _watch(kubectl, objects, run, settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def say(line: str) -> None:
    print(line, flush=True)


def create(kubectl: Kubectl, objects: list[KubernetesObject], run: str) -> None:
    """Makes way for the run, has the server check everything, and creates it. Leaves nothing behind when that fails."""
    main = manifests.owner(objects)
    _make_way(kubectl, run)
    for warning in kubectl.apply(objects, dry_run=True):
        say(f"warning: {warning}")
    try:
        kubectl.apply(objects)
        uid = kubectl.get(main["kind"], main["metadata"]["name"])["metadata"]["uid"]
        kubectl.apply(manifests.owned(objects, uid))
    except BaseException:
        _undo(kubectl, run)
        raise


def remove(kubectl: Kubectl, run: str, timeout: float = 300) -> None:
    """Deletes all of a run's objects, and returns when its pods are gone: each has its grace period to save a checkpoint."""
    selector, waiting = f"{manifests.LABEL}={run}", f"--timeout={timeout:g}s"
    kinds = "job,service,configmap,serviceaccount,networkpolicy"
    if kubectl.run("api-resources", "--api-group=ray.io", "-o", "name").strip():
        kinds = f"rayjob,{kinds}"
    kubectl.run("delete", kinds, "-l", selector, "--cascade=foreground", waiting, timeout=timeout)
    kubectl.run("wait", "pod", "-l", selector, "--for=delete", waiting, timeout=timeout)


def _undo(kubectl: Kubectl, run: str) -> None:
    """Removes what was created, and keeps the way free for the error that made it necessary."""
    try:
        remove(kubectl, run)
    except KubernetesError as error:
        say(f"warning: what was created is not all gone ({error}): make cancel RUN={run}")


def _settings(path: str, overrides: list[str]) -> tuple[config.Settings, str]:
    """The configuration as the pods get it, with the run's name in it. Raises ConfigError."""
    settings = config.load(path, overrides)
    run = config.run_name(settings, path)
    for key, url in (("data.source", settings.data.source), ("run.storage", settings.run.storage)):
        if not url.startswith("s3://"):
            raise UserError(f"{key} = {url!r}: the pods share no folder: write s3://bucket/prefix")
    if settings.metrics.port == 0:
        raise UserError("metrics.port = 0: Prometheus has to know the port of a pod: choose one, such as 9400")
    everywhere = [f"run.name={json.dumps(run)}", 'metrics.host="0.0.0.0"']  # a pod's own address is known only there
    return config.load(path, [*overrides, *everywhere]), run


def _check_resources(settings: config.Settings, main: KubernetesObject, overlay: str) -> None:
    if settings.launch.gpu and not manifests.gpus(main):
        raise UserError(
            f"launch.gpu = true, but OVERLAY={overlay} gives no GPU to a pod: OVERLAY=gpu does, or set launch.gpu=false"
        )
    if manifests.gpus(main) and not settings.launch.gpu:
        raise UserError(f"OVERLAY={overlay} takes a GPU for each pod, but launch.gpu = false: set it, or choose another overlay")


def _check_cluster(kubectl: Kubectl, main: KubernetesObject) -> None:
    """Raises KubernetesError."""
    server = json.loads(kubectl.run("version", "-o", "json"))["serverVersion"]
    say(f"context {kubectl.context} ({kubectl.server}), namespace {kubectl.namespace}, Kubernetes {server['gitVersion']}")
    version = int(server["major"]), int(server["minor"].rstrip("+"))
    if main["kind"] == "Job" and version < OLDEST:
        raise KubernetesError(
            f"Kubernetes {version[0]}.{version[1]}: an Indexed Job with a success policy needs {OLDEST[0]}.{OLDEST[1]}: "
            "upgrade the cluster, or use KubeRay with SHAPE=rayjob"
        )
    if (queue := manifests.queue(main)) and not kubectl.exists("localqueue.kueue.x-k8s.io", queue):
        raise KubernetesError(
            f"namespace {kubectl.namespace} has no LocalQueue {queue} of Kueue: create it, or choose another OVERLAY"
        )


def _check_secrets(kubectl: Kubectl, main: KubernetesObject) -> bool:
    """Whether the pods' bucket is the one that this environment reaches, as far as their Secrets tell. Raises KubernetesError."""
    ours = True
    for secret, optional in manifests.secrets(main).items():
        try:
            keys = _keys(kubectl, secret)
        except Forbidden as error:
            say(f"Secret {secret}: not looked at, nor the bucket that it may lead to: {error}")
            ours = False
            continue
        if keys is None and not optional:
            raise KubernetesError(
                f"namespace {kubectl.namespace} has no Secret {secret}, from which the pods take their credentials for the bucket: "
                "create it as docs/cluster.md says, or name another with SECRET="
            )
        if keys is None:
            say(f"no Secret {secret}: the pods rely on the identity of their ServiceAccount")
        elif "AWS_ENDPOINT_URL" in keys:  # such as the cluster's own object store
            ours = False
    return ours


def _keys(kubectl: Kubectl, secret: str) -> list[str] | None:
    """None: there is no such Secret."""
    template = "go-template={{.metadata.name}}{{range $key, $_ := .data}} {{$key}}{{end}}"
    found = kubectl.run("get", "secret", secret, "--ignore-not-found", "-o", template).split()
    return found[1:] if found else None


def _check_bucket(settings: config.Settings, run: str) -> None:
    """Reads what can be read from here. Raises UserError for what the pods would not get any further with either."""
    from trainer.run.plan import plan
    from trainer.storage import StoreError
    from trainer.storage.s3 import has_credentials

    if not has_credentials():
        say("bucket: not looked at, there are no AWS credentials in this environment")
        return
    hasty = settings.model_copy(update={"s3": settings.s3.model_copy(update={"max_attempts": 2})})
    try:
        say(plan(hasty, run))
    except StoreError as error:
        if not error.transient:
            raise
        say(f"warning: the bucket was not looked at: {error}")  # it may answer the cluster alone


def _make_way(kubectl: Kubectl, run: str) -> None:
    """What is left of an earlier job of this name goes; one that still runs stays. Raises KubernetesError for that."""
    for kind in manifests.SHAPES:
        try:
            if not kubectl.exists(kind, manifests.object_name(run)):
                continue
        except KubernetesError:
            if kind == "job":
                raise
            continue  # a cluster without KubeRay
        there, pods = Watch(kubectl, run, kind, say).look()
        if not end(there, pods) and "deletionTimestamp" not in there["metadata"]:
            raise KubernetesError(
                f"run {run} is on this cluster already: make status RUN={run}, make cancel RUN={run}, or choose another run.name"
            )
        remove(kubectl, run)


def _watch(kubectl: Kubectl, objects: list[KubernetesObject], run: str, settings: config.Settings) -> int:
    kind = manifests.owner(objects)["kind"].lower()
    try:
        ended = Watch(kubectl, run, kind, say).until_end(settings.launch.start_timeout)
    except StartError:
        _undo(kubectl, run)
        raise
    except KeyboardInterrupt:
        say(f"the run goes on: make status RUN={run}, make logs RUN={run}, make cancel RUN={run}")
        raise
    if ended.code:
        print(f"error: run {run}: {ended.line}", file=sys.stderr)
    else:
        say(f"run {run}: {ended.line}; report and model are at {settings.run.storage}/runs/{run}")
    return ended.code


if __name__ == "__main__":
    sys.exit(main())
