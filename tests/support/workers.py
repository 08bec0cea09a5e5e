"""Runs a script in several local processes that form one tf.distribute cluster, without Ray."""

import json
import os
import socket
import subprocess
import sys


def run(script: str, size: int, folder, timeout: float = 240) -> None:
    """Runs Python `script` in `size` processes with `folder` as the working directory. TF_CONFIG tells each process its rank.

    Raises AssertionError with the output of the failed processes if any exits with an error.
    """
    sockets = [socket.socket() for _ in range(size)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    processes = []
    for rank in range(size):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        environment = os.environ | {"TF_CONFIG": json.dumps(cluster), "TF_CPP_MIN_LOG_LEVEL": "3"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", script],
                cwd=folder,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    failed = [output for process, output in zip(processes, outputs, strict=True) if process.returncode]
    assert not failed, "\n".join(failed)
