"""The program of every pod: starts Ray and, on the head, the driver. The image runs `python -m jobs.kubernetes.entrypoint`.

Owns how the pods of an Indexed Job (k8s/job) form a Ray cluster. The pod with index 0 is Ray's head and runs the driver, whose
exit code becomes the pod's. The other pods join the head, and rejoin when the head's pod is replaced. In a RayJob KubeRay starts
Ray, and only the driver is needed (`--driver`).

Exit codes: 1 and 2 end the Job. After any other code Kubernetes starts a new pod, which resumes from the last checkpoint.

SIGTERM: a worker's Ray node drains, so that the workers save a checkpoint and leave the cluster at once instead of timing out. The
driver saves a checkpoint and exits.
"""

import argparse
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import traceback
from typing import Any, NoReturn

from trainer import UserError, config
from trainer.formatting import printable

CONFIG = "/etc/spikewise/config.toml"
PORT = 6379
"""Port of Ray's head."""
LOST_SECONDS = 10
"""A worker leaves a head that has not answered for this long; Ray itself waits a minute."""
REMIND_SECONDS = 30
"""Longest silence while workers are awaited."""
TERMINATED = 128 + signal.SIGTERM


class _Terminated(BaseException):
    """SIGTERM arrived."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.kubernetes.entrypoint", description="Runs a pod of a training job.")
    parser.add_argument("--driver", action="store_true", help="run only the driver, in the Ray cluster that RAY_ADDRESS names")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        launch = config.load(CONFIG).launch
        if arguments.driver:
            drive(launch.workers)
        elif _environment("JOB_COMPLETION_INDEX") == "0":
            lead(launch.workers, launch.object_store_bytes)
        else:
            follow(launch.object_store_bytes)
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return os.EX_TEMPFAIL if error.transient else 2
    except Exception:  # such as those of Ray when the head is lost
        print(printable(traceback.format_exc()), file=sys.stderr)
        return os.EX_TEMPFAIL
    except _Terminated:
        pass
    return TERMINATED  # not 0: a pod that succeeds is not replaced


def lead(workers: int, object_store_bytes: int) -> NoReturn:
    """Starts Ray's head, then becomes the driver. Raises UserError if the head does not start."""
    address = _join(_environment("POD_IP"), PORT)
    command = [*_ray_start(object_store_bytes), "--head", f"--port={PORT}", "--include-dashboard=false"]
    started = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if started.returncode:
        *_, last = started.stdout.strip().splitlines() or [f"exit code {started.returncode}"]
        raise UserError(
            f"Ray's head did not start: {last.strip()}. Fix: raise the resources in the overlay, or change "
            f"launch.object_store_bytes = {object_store_bytes}.",
            transient=True,
        )
    os.environ["RAY_ADDRESS"] = address
    drive(workers)


def drive(workers: int) -> NoReturn:
    """Waits until as many pods have joined as there are workers, then becomes the driver."""
    import ray

    reported, said = -1, 0.0
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR)
    signal.signal(signal.SIGTERM, _terminate)  # ray.init has replaced the handler
    while (joined := _joined(ray.nodes())) < workers:
        if joined != reported or time.monotonic() - said > REMIND_SECONDS:
            reported, said = joined, time.monotonic()
            print(f"waiting for workers: {joined} of {workers} pods have joined", flush=True)
        time.sleep(1)
    ray.shutdown()
    os.execv(sys.executable, [sys.executable, "-m", "jobs.train", "--retried", "--config", CONFIG])


def follow(object_store_bytes: int) -> NoReturn:
    """Runs a worker node of the current head, and of its successors, until SIGTERM."""
    job = socket.gethostname().rpartition("-")[0]
    head = f"{job}-0.{job}"  # the pods' subdomain has the Job's name
    while True:
        address = _await_head(head)
        print(f"joining Ray's head at {head} ({address})", flush=True)
        command = [*_ray_start(object_store_bytes), f"--address={_join(address, PORT)}", "--block"]
        node = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            reason = _watch(node, head, address)
        except _Terminated:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("SIGTERM: draining the Ray node", flush=True)
            node.terminate()
            _watch(node, head, address)
            raise
        finally:
            _end(node)
        print(f"left Ray's head at {address}: {reason}", flush=True)


def _watch(node: "subprocess.Popen[Any]", head: str, address: str) -> str:
    """Waits until the node has exited or its head is gone; returns the reason."""
    seen = time.monotonic()
    while (code := node.poll()) is None:
        time.sleep(1)
        answers = _reach(head)
        if answers == address:
            seen = time.monotonic()
        elif answers:
            return "a new head has replaced it"
        elif time.monotonic() - seen > LOST_SECONDS:
            return f"it has not answered for {LOST_SECONDS} s"
    return f"the Ray node exited with code {code}"


def _end(node: "subprocess.Popen[Any]") -> None:
    node.kill()
    node.wait()
    subprocess.run([_program("ray"), "stop", "--force"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _await_head(head: str) -> str:
    """Waits until the head answers; returns its address."""
    reported = False
    while not (address := _reach(head)):
        if not reported:
            print(f"waiting for Ray's head at {head}", flush=True)
            reported = True
        time.sleep(1)
    return address


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reach(head: str) -> str | None:
    """The address at which the head answers; None if it does not."""
    try:
        with socket.create_connection((head, PORT), timeout=2) as connection:
            return connection.getpeername()[0]
    except OSError:
        return None


def _joined(nodes: list[dict[str, Any]]) -> int:
    """Number of nodes on which a worker can run."""
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in nodes)


def _ray_start(object_store_bytes: int) -> list[str]:
    return [
        _program("ray"),
        "start",
        f"--node-ip-address={_environment('POD_IP')}",
        f"--num-cpus={_environment('CORES')}",
        f"--object-store-memory={object_store_bytes}",
        "--disable-usage-stats",
    ]


def _program(name: str) -> str:
    return shutil.which(name, path=sysconfig.get_path("scripts")) or name


def _environment(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise UserError(f"The environment variable {name} is not set. Fix: run this in the pods of k8s/job, which set it.")
    return value


def _terminate(*_: Any) -> NoReturn:
    raise _Terminated


if __name__ == "__main__":
    sys.exit(main())
