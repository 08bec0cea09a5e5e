"""Ray as this job uses it: a cluster, what it has room for, a mailbox on the head, and workers that know each other.

The backend does what Ray's own for TensorFlow does, but importing that one imports TensorFlow into the driver, which needs
neither the ten seconds nor the 600 MB, and it sends `keras` users to the legacy package.
"""

import json
import logging
import os
import platform
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainer import UserError, config
from trainer.formatting import one_line


class ClusterError(UserError):
    """The cluster cannot run the job as asked; one line."""


@contextmanager
def connect(settings: config.Settings) -> Iterator[None]:
    """A Ray cluster: the one that RAY_ADDRESS names, or one on this machine for the time of this job. Raises ClusterError."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # without it, where a CPU lacks AVX-512, channels_first does not train
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(settings.launch.start_timeout))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        _start(settings)
        yield
    finally:
        with suppress(SystemExit):  # of Ray, when something was still waiting for it
            ray.shutdown()


def _start(settings: config.Settings) -> None:
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        failed, way_out = f"RAY_ADDRESS = {address}", "correct it, or unset it to use this machine alone"
        _check_answers(address, way_out)
    else:
        cores = max(os.cpu_count() or 1, settings.launch.workers * max(1, settings.launch.cpus_per_worker))
        store = settings.launch.object_store_bytes
        options |= {"address": "local", "num_cpus": cores, "object_store_memory": store, "include_dashboard": False}
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # no node can go alone; an idle process less
        failed, way_out = "Ray does not start on this machine", f"launch.object_store_bytes = {store}, {cores} cores"
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except Exception as error:  # of many kinds
        raise ClusterError(f"{failed}: {one_line(error)} ({way_out})", transient=True) from None
    finally:
        signal.signal(signal.SIGTERM, ours)  # Ray has put its own there, which ends the driver on the spot


def _check_answers(address: str, way_out: str) -> None:
    """Ray itself would try for minutes, with warnings that name no setting."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:  # such as auto: left to Ray
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"RAY_ADDRESS = {address}: no cluster answers there ({one_line(error)}): start it, {way_out}", transient=True
        ) from None


def cores_for_a_worker(settings: config.Settings) -> int:
    """Cores for each worker; raises ClusterError when the cluster has too few cores or GPUs for all of them, for now where it has
    fewer machines than workers: one may have left it that moment."""
    have = ray.cluster_resources()
    fewer = "RAY_ADDRESS" in os.environ and sum(node["Alive"] for node in ray.nodes()) < settings.launch.workers
    workers = settings.launch.workers
    cores = settings.launch.cpus_per_worker or max(1, int(have.get("CPU", 0)) // workers)
    gpus, all_cores = have.get("GPU", 0), have.get("CPU", 0)
    if settings.launch.gpu and gpus < workers:
        raise ClusterError(
            f"launch.workers = {workers} need a GPU each, and the cluster has {gpus:.0f}: lower it, add machines or set "
            "launch.gpu = false",
            transient=fewer,
        )
    if all_cores < cores * workers:
        raise ClusterError(
            f"launch.workers = {workers} need {cores * workers} cores, {cores} each, and the cluster has {all_cores:.0f}: lower it "
            "or launch.cpus_per_worker, or add machines",
            transient=fewer,
        )
    return cores


class Mailbox:
    """A Ray actor on the head: workers post events, the driver takes them; the answer to a post says whether to stop."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._stop = False
        self._failed = False

    def post(self, event: dict[str, Any]) -> bool:
        self._events.append(event)
        self._failed |= event["kind"] == "failed"
        return self._stop

    def failed(self) -> bool:
        """Whether a worker has said that training cannot go on."""
        return self._failed

    def take(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    def ask_to_stop(self) -> None:
        self._stop = True


def mailbox() -> Any:
    """Starts the mailbox on the node of the caller, which is the head."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()


def environment(settings: config.Settings) -> dict[str, str]:
    versions = {name: version(name) for name in ("keras", "ray", "numpy")}
    return {
        "python": platform.python_version(),
        "tensorflow": version(packages_distributions()["tensorflow"][0]),  # of the package tensorflow-cpu as well
        **versions,
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "workers": str(settings.launch.workers),
        "gpu": "one for each worker" if settings.launch.gpu else "none",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


class TensorFlowBackend(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return _Backend


class _Backend(Backend):
    def on_start(self, worker_group, backend_config) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG002
        addresses = worker_group.execute(_free_address)
        ray.get([worker_group.execute_single_async(rank, _join, addresses, rank) for rank in range(len(addresses))])


def _free_address() -> str:
    host = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _join(addresses: list[str], rank: int) -> None:
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}})
