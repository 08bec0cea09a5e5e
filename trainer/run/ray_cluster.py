"""Owns the Ray cluster of a run: connects to one or starts one, checks its size, and describes the machine."""

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

from trainer import UserError, config
from trainer.formatting import one_line


class ClusterError(UserError):
    """The cluster does not answer, or is too small for the job."""


@contextmanager
def connect(launch: config.Launch) -> Iterator[Path]:
    """Connects to the Ray cluster that RAY_ADDRESS names, or starts one on this machine for the time of this job.

    Yields the folder of Ray's logs, which has the same path on every node. Raises ClusterError.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # without it, channels_first does not train on a CPU without AVX-512
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(launch.start_timeout))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths mean the same in the workers and here
    try:
        yield _start(launch)
    finally:
        with suppress(SystemExit):  # Ray raises it when a call to the cluster is still waiting
            ray.shutdown()


def _start(launch: config.Launch) -> Path:
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        problem, fix = f"Cannot connect to the Ray cluster at RAY_ADDRESS = {address}", _correct(address)
        _check_answers(address)
    else:
        cores = max(os.cpu_count() or 1, launch.workers * max(1, launch.cpus_per_worker))
        memory = launch.object_store_bytes
        options |= {"address": "local", "num_cpus": cores, "object_store_memory": memory, "include_dashboard": False}
        os.environ.setdefault(
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0"
        )  # a single node cannot leave on its own; saves an idle process
        problem = f"Ray does not start on this machine with {cores} cores and launch.object_store_bytes = {memory}"
        fix = "try again when the machine is less busy, free memory and disk space, or lower launch.object_store_bytes"
    ours = signal.getsignal(signal.SIGTERM)
    try:
        context: Any = ray.init(**options)
    except Exception as error:  # Ray raises many kinds
        raise ClusterError(f"{problem}: {one_line(error)}. Fix: {fix}.", transient=True) from None
    finally:
        signal.signal(signal.SIGTERM, ours)  # Ray's own handler would end the driver at once
    return Path(context.address_info["session_dir"], "logs")


def _check_answers(address: str) -> None:
    """Fails fast: Ray itself would try for minutes, with warnings that name no setting."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:  # such as "auto", which Ray resolves
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"No Ray cluster answers at RAY_ADDRESS = {address} ({one_line(error)}). Fix: {_correct(address)}.", transient=True
        ) from None


def _correct(address: str) -> str:
    return f"start the cluster at {address}, correct RAY_ADDRESS, or unset it to use this machine alone"


def cores_for_a_worker(launch: config.Launch) -> int:
    """Number of cores for each worker. Raises ClusterError when the cluster has too few cores or GPUs.

    The error is transient when a cluster of several nodes has fewer nodes than workers: one may have left it a moment ago.
    """
    resources = ray.cluster_resources()
    workers, cores, gpus = launch.workers, int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    fewer = "RAY_ADDRESS" in os.environ and sum(node["Alive"] for node in ray.nodes()) < workers
    if launch.gpu and gpus < workers:
        raise ClusterError(
            f"Not enough GPUs: launch.workers = {workers} needs {workers}, the cluster has {gpus}. Fix: lower launch.workers, add "
            "GPU nodes, or set launch.gpu = false.",
            transient=fewer,
        )
    each = launch.cpus_per_worker or max(1, cores // workers)
    if cores < each * workers:
        raise ClusterError(
            f"Not enough cores: launch.workers = {workers} needs {each * workers} ({each} for each worker), the cluster has "
            f"{cores}. Fix: lower launch.workers or launch.cpus_per_worker, or add nodes.",
            transient=fewer,
        )
    return each


def environment(launch: config.Launch) -> dict[str, str]:
    """The software, the machine and the workers of a run, for its report."""
    versions = {name: version(name) for name in ("keras", "ray", "numpy")}
    return {
        "python": platform.python_version(),
        "tensorflow": version(packages_distributions()["tensorflow"][0]),  # the package may be tensorflow-cpu
        **versions,
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "workers": str(launch.workers),
        "gpu": "one for each worker" if launch.gpu else "none",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
