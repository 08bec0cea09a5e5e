"""Follows and ends runs on a Kubernetes cluster: `python -m jobs.cluster status|logs|cancel`, from any machine with its kubeconfig.

Sources: Kubernetes for the state of the pods and the driver's log; the driver's metrics, through the API server, for training
progress; and the bucket for a run that has ended or is no longer on the cluster.
"""

import argparse
import os
import sys

from jobs.command_line import add_namespace, report_error, say
from jobs.kubernetes import pods, runs
from jobs.kubernetes.kubectl import Kubectl, KubernetesError, KubernetesObject
from jobs.kubernetes.manifests import LABEL, METRICS_PORT
from jobs.kubernetes.watch import Watch
from trainer import UserError, config
from trainer.epoch import best as best_epoch
from trainer.formatting import duration


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.cluster", description="Follows and ends runs on a Kubernetes cluster.")
    parser.add_argument(
        "command",
        choices=["status", "logs", "cancel"],
        help="status: pods and progress; logs: the driver's log; cancel: save a checkpoint, then remove the run from the cluster",
    )
    parser.add_argument("--run", metavar="NAME", help="name of the run (default, except for cancel: the newest in the namespace)")
    add_namespace(parser)
    parser.add_argument("--storage", metavar="URL", help="for status: run.storage, read if the cluster does not have the run")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "cancel" and not arguments.run:
            raise UserError("cancel ends a run, so it must be named. Fix: make cancel RUN=NAME; make status shows the newest run.")
        try:
            kubectl = Kubectl(arguments.namespace)
            found = runs.find(kubectl, arguments.run)
        except KubernetesError as error:
            if not (arguments.command == "status" and arguments.run and arguments.storage):
                raise
            say(f"{str(error).partition(' Fix: ')[0]} From the bucket:")
            # Most S3 servers other than AWS need the bucket's name in the path.
            say(stored(arguments.run, arguments.storage, config.S3(path_style="AWS_ENDPOINT_URL" in os.environ)))
            return 0
        run, kind = found["metadata"]["labels"][LABEL], found["kind"].lower()
        match arguments.command:
            case "status":
                return status(kubectl, kind, run)
            case "logs":
                watch = Watch(kubectl, run, kind, say)
                watch.follow_log()
                watch.finish()
            case "cancel":
                cancel(kubectl, kind, run)
    except UserError as error:
        report_error(error)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def status(kubectl: Kubectl, kind: str, run: str) -> int:
    """Prints the state of the run. Returns 0, or the exit code of a run that failed. Raises KubernetesError."""
    main, found = runs.look(kubectl, kind, run)
    say(f"run {run} in namespace {kubectl.namespace} of context {kubectl.context}, since {main['metadata']['creationTimestamp']}")
    if ended := pods.end(main, found):
        say(pods.summary(main, found))
        say(f"{'failed: ' * bool(ended.code)}{ended.line}")
        try:
            settings = runs.settings(kubectl, run)
            say(f"results: {settings.run.storage}/runs/{run}")
            say(stored(run, settings.run.storage, settings.s3))
        except UserError as error:
            say(f"no training results: {error}")
        return ended.code
    say(pods.summary(main, found, runs.refusal(kubectl, main, found)))
    head = pods.head_pod(main, found)
    if head and pods.has_started(head):
        try:
            say(progress(_metrics(kubectl, head)))
        except KubernetesError as error:
            say(f"no training progress: the driver's metrics cannot be read: {error}")
    for line in pods.lost(found):
        say(line)
    return 0


def cancel(kubectl: Kubectl, kind: str, run: str) -> None:
    """Ends the run after its driver has saved a checkpoint. Prints the rest of the log. Of a run that has ended, removes the
    objects. Raises KubernetesError."""
    place = _place(kubectl, run)
    if ended := pods.end(*runs.look(kubectl, kind, run)):
        runs.remove(kubectl, run)
        say(f"run {run} had already ended ({ended.line}) and is removed from the cluster; its results stay in {place}")
        return
    watch = Watch(kubectl, run, kind, say)
    watch.follow_log()
    runs.remove(kubectl, run)
    watch.finish(5)
    say(f"run {run} is cancelled; its checkpoints stay in {place}. To resume it, submit it again under the same name.")


def _place(kubectl: Kubectl, run: str) -> str:
    """Where the run's results are, for a message."""
    try:
        return f"{runs.settings(kubectl, run).run.storage}/runs/{run}"
    except UserError:  # its ConfigMap is gone, or was written by another version
        return f"runs/{run} below its run.storage"


def progress(text: str) -> str:
    """The driver's metrics, in Prometheus' text format, as lines for a person."""
    from trainer.metrics import samples

    values = {(sample.name, *sample.labels.values()): sample.value for sample in samples(text)}
    state = next((key[1] for key, on in values.items() if key[0] == "spikewise_state" and on), None)
    if state is None:
        return "the driver is starting"
    lines = [state]
    if (fraction := values.get(("spikewise_progress_ratio",))) is not None:
        lines[0] += f", {fraction:.0%} done"
    if (epoch := values.get(("spikewise_epoch",))) is not None:
        lines[0] += f", {duration(values.get(('spikewise_eta_seconds',), 0))} left"
        losses = [values["spikewise_loss", split] for split in ("train", "train_inference", "validation")]
        lines.append(_epoch(epoch, values["spikewise_epochs_planned",], *losses))
        if (best := values.get(("spikewise_best_epoch",))) is not None:
            lines.append(_best(values["spikewise_best_validation_loss",], best))
    if count := int(values.get(("spikewise_roll_backs_total",), 0)):
        lines.append(_went_back(count))
    return "\n".join(lines)


def stored(run: str, storage: str, s3: config.S3) -> str:
    """What the bucket holds about the run, as lines for a person. `storage`: run.storage of its configuration.

    Raises StoreError, and UserError if the bucket holds nothing about it.
    """
    from trainer.storage import open_store, results

    store = open_store(storage, s3.model_copy(update={"max_attempts": 2}))
    facts = results.get_run(store, run)
    if facts is None:
        raise UserError(f"{store.url} has no run {run}. Fix: correct --run or --storage; a run is stored once training has begun.")
    lines = [facts.get("outcome", "no outcome stored: the run is still training, or it was lost")]
    if history := results.get_history(store, run):
        last, best = history[-1], best_epoch(history)
        losses = last.train_loss, last.train_loss_inference, last.validation_loss
        lines.append(_epoch(last.epoch, facts["config"]["training"]["epochs"], *losses))
        if best:
            lines.append(_best(best.validation_loss, best.epoch))
    if back := results.get_roll_backs(store, run):
        lines.append(_went_back(len(back)))
    return "\n".join(lines)


def _epoch(epoch: float, planned: float, train: float, inference: float, validation: float) -> str:
    return (
        f"epoch {epoch:.0f} of {planned:.0f}: training loss {train:.4f} (in inference mode {inference:.4f}), validation loss "
        f"{validation:.4f}"
    )


def _best(loss: float, epoch: float) -> str:
    return f"lowest validation loss: {loss:.4f} in epoch {epoch:.0f}"


def _went_back(count: int) -> str:
    return f"training diverged, and the run went back to a checkpoint before: {count} time{'s' * (count > 1)}"


def _metrics(kubectl: Kubectl, head: KubernetesObject) -> str:
    """The metrics in Prometheus' text format; empty before the driver serves them. Raises KubernetesError."""
    ports = (port for container in head["spec"]["containers"] for port in container.get("ports", ()))
    port = next((port["containerPort"] for port in ports if port.get("name") == METRICS_PORT), None)
    if port is None:
        raise KubernetesError(f"Pod {head['metadata']['name']} has no port named {METRICS_PORT}. Fix: keep it in the overlay.")
    pod = f"/api/v1/namespaces/{kubectl.namespace}/pods/{head['metadata']['name']}:{port}"
    try:
        return kubectl.run("get", "--raw", f"{pod}/proxy/status")  # every path serves them; /metrics would count as a scrape
    except KubernetesError as error:
        if "connection refused" not in str(error):
            raise
        return ""


if __name__ == "__main__":
    sys.exit(main())
