"""What a pod on a cluster runs: Ray, and on the head the driver. `python -m jobs.kubernetes.entrypoint` is what the image starts.

Owns: how the pods of one Indexed Job (k8s/job) become a Ray cluster. The pod with index 0 is the head and runs the driver, whose
result is the pod's; the others join it, and join its successor when it was replaced. In a RayJob KubeRay starts Ray itself, and
`--driver` alone is needed there.

Exit codes: 1 and 2 end the Job; with any other one Kubernetes starts another pod, which goes on from the last checkpoint.

SIGTERM: a worker's Ray node drains, so that the workers save a checkpoint and the others need not wait for it to be missed; the
driver saves a checkpoint and ends.
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

CONFIG = "/etc/spikewise/config.toml"
PORT = 6379
"""Of Ray's head."""
LOST_SECONDS = 10
"""After which a head that does not answer counts as gone; Ray itself waits a minute."""
TERMINATED = 128 + signal.SIGTERM


class _Terminated(BaseException):
    """SIGTERM arrived."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.kubernetes.entrypoint", description="What a pod of the cluster runs.")
    parser.add_argument("--driver", action="store_true", help="join the Ray cluster of RAY_ADDRESS and run the driver")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        settings = config.load(CONFIG)
        if arguments.driver:
            drive(settings)
        elif _environment("JOB_COMPLETION_INDEX") == "0":
            lead(settings)
        else:
            follow(settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return os.EX_TEMPFAIL if error.transient else 2
    except Exception:  # of Ray, whose head may have gone meanwhile
        traceback.print_exc()
        return os.EX_TEMPFAIL
    except _Terminated:
        pass
    return TERMINATED  # never 0: a worker that says it is done would not be replaced


def lead(settings: config.Settings) -> NoReturn:
    """Starts Ray's head, and becomes the driver."""
    address = f"{_environment('POD_IP')}:{PORT}"
    command = [*_ray_start(settings), "--head", f"--port={PORT}", "--include-dashboard=false"]
    started = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if started.returncode:
        *_, said = started.stdout.strip().splitlines() or [f"exit code {started.returncode}"]
        raise UserError(
            f"Ray's head did not start: {said.strip()} (resources in the overlay, launch.object_store_bytes)", transient=True
        )
    os.environ["RAY_ADDRESS"] = address
    drive(settings)


def drive(settings: config.Settings) -> NoReturn:
    """Waits until all workers' pods have joined, and becomes the driver."""
    import ray

    workers, said = settings.launch.workers, -1
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR)
    signal.signal(signal.SIGTERM, _terminate)  # Ray has put its own there
    while (joined := _joined(ray.nodes())) < workers:
        if joined != said:
            said = joined
            print(f"waiting for the workers: {joined} of {workers} pods are there", flush=True)
        time.sleep(1)
    ray.shutdown()
    os.execv(sys.executable, [sys.executable, "-m", "jobs.train", "--retried", "--config", CONFIG])


def follow(settings: config.Settings) -> NoReturn:
    """Is a worker node of the head, and of its successors, until SIGTERM."""
    job = socket.gethostname().rpartition("-")[0]
    head = f"{job}-0.{job}"  # the pods' subdomain is named like the Job
    while True:
        address = _await_head(head)
        print(f"joining Ray's head at {head} ({address})", flush=True)
        command = [*_ray_start(settings), f"--address={address}:{PORT}", "--block"]
        node = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            reason = _watch(node, head, address)
        except _Terminated:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("asked to stop: the Ray node drains", flush=True)
            node.terminate()
            _watch(node, head, address)
            raise
        finally:
            _end(node)
        print(f"left Ray's head at {address}: {reason}", flush=True)


def _watch(node: "subprocess.Popen[Any]", head: str, address: str) -> str:
    """Waits until the node has ended or its head is gone; says which."""
    seen = time.monotonic()
    while (code := node.poll()) is None:
        time.sleep(1)
        answers = _reach(head)
        if answers == address:
            seen = time.monotonic()
        elif answers:
            return "another head has taken its place"
        elif time.monotonic() - seen > LOST_SECONDS:
            return f"it has not answered for {LOST_SECONDS} s"
    return f"the node ended with {code}"


def _end(node: "subprocess.Popen[Any]") -> None:
    node.kill()
    node.wait()
    subprocess.run([_program("ray"), "stop", "--force"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _await_head(head: str) -> str:
    said = False
    while not (address := _reach(head)):
        if not said:
            print(f"waiting for Ray's head at {head}", flush=True)
            said = True
        time.sleep(1)
    return address


def _reach(head: str) -> str | None:
    """The address at which the head answers now."""
    try:
        with socket.create_connection((head, PORT), timeout=2) as connection:
            return connection.getpeername()[0]
    except OSError:
        return None


def _joined(nodes: list[dict[str, Any]]) -> int:
    """Nodes on which a worker can run."""
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in nodes)


def _ray_start(settings: config.Settings) -> list[str]:
    return [
        _program("ray"),
        "start",
        f"--node-ip-address={_environment('POD_IP')}",
        f"--num-cpus={_environment('CORES')}",
        f"--object-store-memory={settings.launch.object_store_bytes}",
        "--disable-usage-stats",
    ]


def _program(name: str) -> str:
    return shutil.which(name, path=sysconfig.get_path("scripts")) or name


def _environment(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise UserError(f"{name} is not set: this runs in the pods of k8s/job")
    return value


def _terminate(*_: Any) -> NoReturn:
    raise _Terminated


if __name__ == "__main__":
    sys.exit(main())
