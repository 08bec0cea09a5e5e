"""Follows the runs on a Kubernetes cluster, from any machine with its kubeconfig: `python -m jobs.cluster status|logs|cancel`.

What is asked: Kubernetes about the pods, the driver's metrics (through the API server) about the training, and the driver's log;
about a run that has ended or is gone from the cluster, its bucket.
"""

import argparse
import os
import re
import sys
import tomllib
from typing import Any

from jobs.kubernetes import pods
from jobs.kubernetes.kubectl import Kubectl, KubernetesError, KubernetesObject
from jobs.kubernetes.manifests import LABEL, SHAPES, object_name
from jobs.kubernetes.watch import Watch
from jobs.submit import remove, say
from trainer import UserError, config
from trainer.epoch import best as best_epoch
from trainer.formatting import duration

METRIC = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)


class NoRun(KubernetesError):  # noqa: N818
    """The cluster knows no such run."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.cluster", description="Follows the runs on a Kubernetes cluster.")
    parser.add_argument("command", choices=["status", "logs", "cancel"])
    parser.add_argument("--run", metavar="NAME", help="default: the newest one in the namespace")
    parser.add_argument("--namespace", metavar="NAME", help="default: the context's")
    parser.add_argument("--storage", metavar="URL", help="run.storage of a run that is no longer on the cluster, for its status")
    arguments = parser.parse_args(argv)
    try:
        kubectl = Kubectl(arguments.namespace)
        try:
            found = _find(kubectl, arguments.run)
        except NoRun as error:
            if not (arguments.command == "status" and arguments.run and arguments.storage):
                raise
            say(f"{error}; its bucket says:")
            # Most servers other than AWS want the bucket's name in the path.
            say(stored(arguments.run, arguments.storage, config.S3(path_style="AWS_ENDPOINT_URL" in os.environ)))
            return 0
        run = found["metadata"]["labels"][LABEL]
        watch = Watch(kubectl, run, found["kind"].lower(), say)
        match arguments.command:
            case "status":
                return status(kubectl, run, watch)
            case "logs":
                watch.follow_log()
                watch.finish()
            case "cancel":
                cancel(kubectl, run, watch)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def status(kubectl: Kubectl, run: str, watch: Watch) -> int:
    """Prints how the run is. Returns 0, or the code of a run that failed."""
    main, found = watch.look()
    say(f"run {run} in namespace {kubectl.namespace} of context {kubectl.context}, since {main['metadata']['creationTimestamp']}")
    if ended := pods.end(main, found):
        say(pods.summary(main, found))
        say(f"{'failed: ' * bool(ended.code)}{ended.line}")
        try:
            settings = _settings(kubectl, run)
            say(stored(run, settings.run.storage, settings.s3))
        except UserError as error:
            say(f"nothing to learn from its bucket: {error}")
        return ended.code
    say(pods.summary(main, found, watch.refusal(main, found)))
    head = pods.head_pod(main, found)
    if head and pods.has_started(head):
        try:
            say(progress(_metrics(kubectl, head)))
        except KubernetesError as error:
            say(f"its metrics cannot be read from here: {error}")
    for line in pods.losses(found):
        say(line)
    return 0


def cancel(kubectl: Kubectl, run: str, watch: Watch) -> None:
    """Ends the run; its driver saves a checkpoint first."""
    storage = _settings(kubectl, run).run.storage
    watch.follow_log()
    remove(kubectl, run)
    watch.finish(5)
    say(f"run {run} is cancelled; its checkpoints stay in {storage}, and submitting it under this name goes on from the last one")


def progress(text: str) -> str:
    """The driver's metrics, in Prometheus' text format, as lines for people."""
    values = {(match["name"], match["labels"] or ""): float(match["value"]) for match in METRIC.finditer(text)}

    def value(name: str, labels: str = "") -> float | None:
        return values.get((name, labels))

    state = next(
        (re.findall('"(.*)"', labels)[0] for (name, labels), on in values.items() if name == "spikewise_state" and on), None
    )
    if state is None:
        return "the driver is starting"
    lines = [state]
    epoch, planned = value("spikewise_epoch"), value("spikewise_epochs_planned")
    if (fraction := value("spikewise_progress_ratio")) is not None:
        lines[0] += f", {fraction:.0%} done"
    if epoch is not None:
        lines[0] += f", {duration(value('spikewise_eta_seconds') or 0)} left"
        losses = [value("spikewise_loss", f'split="{split}"') for split in ("train", "train_inference", "validation")]
        lines.append(_epoch(epoch, planned, *losses))
        if (best := value("spikewise_best_epoch")) is not None:
            lines.append(_best(value("spikewise_best_validation_loss"), best))
    return "\n".join(lines)


def stored(run: str, storage: str, s3: config.S3) -> str:
    """What the run's bucket knows of it, as lines for people. Raises StoreError, and UserError when it knows nothing."""
    from trainer.storage import open_store, results

    store = open_store(storage, s3.model_copy(update={"max_attempts": 2}))
    facts = results.get_run(store, run)
    if facts is None:
        raise UserError(f"{store.url} holds no run {run}: correct RUN= or STORAGE=, or the run has not begun to train")
    lines = [facts.get("outcome", "no outcome: it goes on, or has ended without a word")]
    if history := results.get_history(store, run):
        last, best = history[-1], best_epoch(history)
        losses = last.train_loss, last.train_loss_inference, last.validation_loss
        lines.append(_epoch(last.epoch, facts["config"]["training"]["epochs"], *losses))
        if best:
            lines.append(_best(best.validation_loss, best.epoch))
    return "\n".join(lines)


def _epoch(epoch: Any, planned: Any, train: Any, inference: Any, validation: Any) -> str:
    return (
        f"epoch {epoch:.0f} of {planned:.0f}: loss {train:.4f}, of training images in inference mode {inference:.4f}, "
        f"of validation images {validation:.4f}"
    )


def _best(loss: Any, epoch: Any) -> str:
    return f"lowest validation loss: {loss:.4f} in epoch {epoch:.0f}"


def _metrics(kubectl: Kubectl, head: KubernetesObject) -> str:
    """Empty while the driver does not serve them. Raises KubernetesError."""
    container = head["spec"]["containers"][0]
    port = next(port["containerPort"] for port in container["ports"] if port["name"] == "metrics")
    pod = f"/api/v1/namespaces/{kubectl.namespace}/pods/{head['metadata']['name']}:{port}"
    try:
        return kubectl.run("get", "--raw", f"{pod}/proxy/status")  # any path serves them, but /metrics counts as a scrape
    except KubernetesError as error:
        if "connection refused" not in str(error):
            raise
        return ""


def _find(kubectl: Kubectl, run: str | None) -> KubernetesObject:
    """The main object of the run, or the newest one. Raises NoRun when there is none."""
    selector = f"{LABEL}={run}" if run else LABEL
    found: list[dict[str, Any]] = []
    for kind in SHAPES:
        try:
            found += kubectl.get(kind, "-l", selector)["items"]
        except KubernetesError:
            if kind == "job":
                raise
    if run:
        found = [each for each in found if each["metadata"]["name"] == object_name(run)]
    mains = [each for each in found if not each["metadata"].get("ownerReferences")]
    if not mains:
        what = f"there is no run {run}" if run else "there is no run"
        raise NoRun(f"{what} in namespace {kubectl.namespace} of context {kubectl.context}")
    return max(mains, key=lambda each: each["metadata"]["creationTimestamp"])


def _settings(kubectl: Kubectl, run: str) -> config.Settings:
    text = kubectl.get("configmap", object_name(run))["data"]["config.toml"]
    return config.parse(tomllib.loads(text), f"configuration of run {run}")


if __name__ == "__main__":
    sys.exit(main())
