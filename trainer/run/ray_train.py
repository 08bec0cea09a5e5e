"""Owns the use of Ray Train: starts a run's workers, restarts all of them when one dies, and gives TensorFlow their addresses."""

import json
import logging
import os
import socket
import threading
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from trainer import config
from trainer.run.mailbox import WarningHandler
from trainer.run.task import Task


class WorkerGroup:
    """The workers of a run, from their first start to their end. Ray Train runs in a thread of its own."""

    def __init__(self, task: Task, launch: config.Launch, folder: Path) -> None:
        """Starts the workers. `folder`: local folder where Ray Train keeps its own files."""
        resources = {"CPU": task.threads} | ({"GPU": 1} if launch.gpu else {})
        self._trainer = DataParallelTrainer(
            _work,
            backend_config=TensorFlowBackend(),
            train_loop_config={"task": task},
            scaling_config=ScalingConfig(num_workers=launch.workers, use_gpu=launch.gpu, resources_per_worker=resources),
            run_config=RunConfig(
                name=task.run.replace("/", "-"),  # of a replay
                storage_path=str(folder.resolve()),
                failure_config=FailureConfig(max_failures=launch.max_failures),
            ),
        )
        self._max_failures = launch.max_failures
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Waits until the workers have ended, at most `seconds`."""
        self._thread.join(seconds)

    @property
    def failure(self) -> str | None:
        """Why Ray Train gave up; None while the workers run, and after they ended without an error."""
        if self._error is None:
            return None
        last = _last_line(self._error)
        if isinstance(self._error, TrainingFailedError):
            return (
                f"Workers died more often than launch.max_failures = {self._max_failures} allows. Fix: correct what the last error "
                f"names, and run again under this name to resume. Last error: {last}"
            )
        return f"Ray Train failed. Fix: run again under this name to resume. Last error: {last}"

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # Ray raises many kinds when the driver disconnects before the workers have ended
            self._error = error


class TensorFlowBackend(BackendConfig):
    """Sets TF_CONFIG on every worker, like Ray's own backend for TensorFlow. Importing Ray's own would load TensorFlow into the
    driver (ten seconds, 600 MB), and it makes `import keras` load the legacy package."""

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
    # TensorFlow's gRPC would look for other workers behind the HTTP proxy of the environment, and hang. It reads only this name.
    hosts = {address.rpartition(":")[0].strip("[]") for address in addresses}
    os.environ["no_grpc_proxy"] = ",".join(sorted(hosts))  # noqa: SIM112
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}})


def _work(arguments: dict[str, Any]) -> None:
    """Runs in every worker."""
    from trainer.run.worker import work  # loads TensorFlow, which the driver does not need

    logger, handler = logging.getLogger("trainer"), WarningHandler(arguments["task"].mailbox)
    logger.addHandler(handler)
    try:
        work(arguments["task"])
    finally:
        logger.removeHandler(handler)


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
