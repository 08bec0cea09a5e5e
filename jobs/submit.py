"""Runs a job on a Kubernetes cluster: `python -m jobs.submit --config FILE --overlay NAME --image IMAGE`.

Owns the checks before anything is created. Submitting an ended run again resumes it. The exit code is the driver's (of a RayJob
1 for every failure), or 2 for an error that the user can correct. Ctrl-C stops watching; the run continues.
"""

import argparse
import json
import sys

from jobs.command_line import add_configuration, add_namespace, find_module, report_error, say
from jobs.kubernetes import manifests, runs
from jobs.kubernetes.kubectl import ForbiddenError, Kubectl, KubernetesError, KubernetesObject
from jobs.kubernetes.watch import StartError, Watch
from trainer import UserError, config
from trainer.formatting import masked
from trainer.model.module import Module

OLDEST = (1, 33)
"""The first version of Kubernetes that supports all of k8s/job."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.submit", description="Runs a job on a Kubernetes cluster.")
    add_configuration(parser, "TOML file, such as jobs/configs/gpu.toml")
    parser.add_argument(
        "--overlay", required=True, metavar="NAME", help=f"{', '.join(manifests.overlays())}, or the path of your own overlay"
    )
    parser.add_argument("--shape", choices=list(manifests.SHAPES), default="job", help="rayjob needs KubeRay (default: job)")
    parser.add_argument("--image", required=True, help="the image that `make image` built, in a registry that the nodes can reach")
    parser.add_argument("--secret", metavar="NAME", help="Secret with AWS_ACCESS_KEY_ID and so on (default: the overlay's)")
    add_namespace(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the manifests and change nothing")
    arguments = parser.parse_args(argv)
    try:
        settings, run = _settings(arguments.config, arguments.set)
        module = find_module(settings, arguments.config)
        rendered = manifests.render(arguments.overlay, arguments.shape)
        objects = manifests.fit(rendered, settings, run, arguments.image, arguments.secret, module)
        main = manifests.owner(objects)
        _check_gpus(settings.launch.gpu, main, arguments.overlay)
        if arguments.dry_run:
            print(manifests.to_yaml(objects), end="")
            return 0
        kubectl = Kubectl(arguments.namespace)
        _check_cluster(kubectl, main)
        if _check_secrets(kubectl, main) and _check_bucket(settings, run, module):
            return 0
        say(
            f"run {run}: {settings.launch.workers} worker{'s' * (settings.launch.workers > 1)}, image {arguments.image}, overlay "
            f"{arguments.overlay}, {main['kind']} {main['metadata']['name']}"
        )
        runs.create(kubectl, objects, run, say)
        return _watch(kubectl, arguments.shape, run, settings)
    except UserError as error:
        report_error(error)
        return 2
    except KeyboardInterrupt:
        return 130


def _settings(path: str, overrides: list[str]) -> tuple[config.Settings, str]:
    """The configuration for the pods, and the run's name, which it contains. Raises UserError if pods cannot use it."""
    settings = config.load(path, overrides)
    run = config.run_name(settings, path)
    urls = {f"data.{key}": getattr(settings.data, key) for key in ("source", "validation", "test", "labels")}
    for key, url in {**urls, "run.storage": settings.run.storage}.items():
        if url is not None and not url.startswith("s3://"):
            raise UserError(f"{key} = {url!r} is a folder, but pods share no folder. Fix: use s3://bucket/prefix.")
    weights = settings.model.weights
    if weights and not weights.startswith("s3://"):
        raise UserError(f"model.weights = {weights!r} is a local file, but pods share no folder. Fix: use s3://bucket/key.")
    if settings.metrics.port == 0:
        raise UserError("metrics.port = 0 picks a free port, but Prometheus needs a fixed one. Fix: choose a port, such as 9400.")
    in_pods = [f"run.name={json.dumps(run)}", 'metrics.host="0.0.0.0"']  # a pod's own address is not known here
    return config.load(path, [*overrides, *in_pods]), run


def _check_gpus(gpu: bool, main: KubernetesObject, overlay: str) -> None:
    """`gpu`: launch.gpu. Raises UserError if the overlay does not match it."""
    if gpu and not manifests.gpus(main):
        raise UserError(
            f"launch.gpu = true, but --overlay {overlay} requests no GPU. Fix: use --overlay gpu, combine both in an overlay of "
            "your own (docs/cluster.md), or set launch.gpu=false."
        )
    if manifests.gpus(main) and not gpu:
        raise UserError(
            f"launch.gpu = false, but --overlay {overlay} requests a GPU for each pod. Fix: set launch.gpu=true, or choose another "
            "--overlay."
        )


def _check_cluster(kubectl: Kubectl, main: KubernetesObject) -> None:
    """Raises KubernetesError if the cluster does not answer, is too old, or lacks the namespace or the queue."""
    server = json.loads(kubectl.run("version", "-o", "json"))["serverVersion"]
    say(f"context {kubectl.context} ({masked(kubectl.server)}), namespace {kubectl.namespace}, Kubernetes {server['gitVersion']}")
    kubectl.check_namespace()
    version = int(server["major"]), int(server["minor"].rstrip("+"))
    if main["kind"] == "Job" and version < OLDEST:
        raise KubernetesError(
            f"Kubernetes {version[0]}.{version[1]} is too old: --shape job needs {OLDEST[0]}.{OLDEST[1]} for its success policy. "
            "Fix: upgrade the cluster, or install KubeRay and use --shape rayjob."
        )
    if (queue := manifests.queue(main)) and not kubectl.exists("localqueue.kueue.x-k8s.io", queue):
        raise KubernetesError(
            f"Namespace {kubectl.namespace} has no Kueue LocalQueue {queue}. Fix: create it (k8s/overlays/kueue/local-queue.yaml), "
            "or choose another --overlay."
        )


def _check_secrets(kubectl: Kubectl, main: KubernetesObject) -> bool:
    """Whether the pods use the same bucket as this environment, as far as their Secrets show. Raises KubernetesError if a Secret
    that the pods need does not exist."""
    same = True
    for secret, optional in manifests.secrets(main).items():
        try:
            keys = _keys(kubectl, secret)
        except ForbiddenError as error:
            say(f"Secret {secret} and the bucket are not checked: {error}")
            same = False
            continue
        if keys is None and not optional:
            raise KubernetesError(
                f"Namespace {kubectl.namespace} has no Secret {secret}, which holds the pods' credentials for the bucket. Fix: "
                "create it as docs/cluster.md shows, or name another one with --secret."
            )
        if keys is None:
            say(f"no Secret {secret}: the pods use the identity of their ServiceAccount")
        elif "AWS_ENDPOINT_URL" in keys:  # such as the S3 server in the cluster
            same = False
    return same


def _keys(kubectl: Kubectl, secret: str) -> list[str] | None:
    """The keys of a Secret; None if it does not exist. Raises ForbiddenError."""
    template = "go-template={{.metadata.name}}{{range $key, $_ := .data}} {{$key}}{{end}}"
    found = kubectl.run("get", "secret", secret, "--ignore-not-found", "-o", template).split()
    return found[1:] if found else None


def _check_bucket(settings: config.Settings, run: str, module: Module | None) -> bool:
    """Prints the plan of the run, from what the bucket holds. Returns whether the run is complete, so that it needs no pods.

    Raises UserError for errors that the pods would meet as well.
    """
    from trainer.run.plan import finished, plan
    from trainer.storage import StoreError
    from trainer.storage.s3 import has_credentials

    if not has_credentials():
        say("the bucket is not checked: this environment has no AWS credentials")
        return False
    impatient = settings.model_copy(update={"s3": settings.s3.model_copy(update={"max_attempts": 2})})
    try:
        if settings.run.name and (line := finished(impatient, run)):
            say(line)
            return True
        say(plan(impatient, run, module))
    except StoreError as error:
        if not error.transient:
            raise
        say(f"warning: the bucket is not checked: {error}")  # it may be reachable from the cluster only
    return False


def _watch(kubectl: Kubectl, shape: str, run: str, settings: config.Settings) -> int:
    """Watches the run until it ends; returns its exit code. Removes it and raises StartError if it cannot start."""
    try:
        ended = Watch(kubectl, run, shape, say).until_end(settings.launch.start_timeout)
    except StartError:
        runs.clean_up(kubectl, run, say)
        raise
    except KeyboardInterrupt:
        say(f"run {run} continues on the cluster: make status RUN={run}, make logs RUN={run}, make cancel RUN={run}")
        raise
    if ended.code:
        report_error(f"run {run}: {ended.line}")
    else:
        say(f"run {run}: {ended.line}; report and model are at {settings.run.storage}/runs/{run}")
    return ended.code


if __name__ == "__main__":
    sys.exit(main())
