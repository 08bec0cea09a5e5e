"""The pods' entry point with a real Ray node on IPv6, protected by a token, and the liveness probe."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PORT = 26379
SCRIPT = f"""
import os, subprocess, sys
from jobs.kubernetes import alive, entrypoint
entrypoint.PORT = {PORT}

def drive(workers):
    import ray
    print("ADDRESS", os.environ["RAY_ADDRESS"])
    print("BEFORE", alive.main())
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    print("NODES", entrypoint._joined(ray.nodes()), "ALIVE", alive.main())
    ray.shutdown()
    stranger = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print('IN')"
    without = {{name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}} | {{"HOME": "/nonexistent"}}
    command = [sys.executable, "-c", stranger, os.environ["RAY_ADDRESS"]]
    done = subprocess.run(command, env=without, capture_output=True, text=True, timeout=120)
    print("STRANGER", "IN" in done.stdout)

entrypoint.drive = drive
entrypoint.lead(1, 80_000_000)
"""


def _end(folder: Path) -> None:
    """Ends the processes of the node, which `ray start` leaves running: those whose environment names our folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"RAY_TMPDIR={folder}".encode() in (process / "environ").read_bytes().split(b"\0")
            if ours and int(process.name) != os.getpid():
                os.kill(int(process.name), signal.SIGKILL)
        except (OSError, ProcessLookupError):
            pass


@pytest.mark.integration
def test_a_head_on_ipv6_with_a_token():
    """On a cluster with IPv6 only no run would start; or anyone who reaches Ray's port could run code in the pods; or a sound pod
    would be killed by its probe."""
    folder = Path("/tmp/spikewise-ray6")  # short: Ray's sockets lie below it
    folder.mkdir(exist_ok=True)
    environment = os.environ | {
        "POD_IP": "::1",
        "CORES": "1",
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 64,
    }
    try:
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    finally:
        _end(folder)
        shutil.rmtree(folder, ignore_errors=True)
    lines = done.stdout.splitlines()
    assert f"ADDRESS [::1]:{PORT}" in lines, done.stdout + done.stderr
    assert "NODES 1 ALIVE 0" in lines
    assert "STRANGER False" in lines
