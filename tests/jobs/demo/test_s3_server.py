"""jobs.demo.s3_server: the server that the demo and many tests use."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jobs.demo.s3_server import S3Server, local_s3_server
from trainer.config import S3
from trainer.storage import StoreError, open_store

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[3]


def use(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def test_two_servers_at_once_and_data_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two users could not run the demo on one machine, or the demo's data would be lost when it ends."""
    with local_s3_server(tmp_path / "one", ["first", "second"]) as one, local_s3_server(tmp_path / "two") as two:
        use(one, monkeypatch)
        open_store("s3://second/x", S3()).put("key", b"kept")
        use(two, monkeypatch)
        with pytest.raises(StoreError, match="no such bucket"):
            open_store("s3://second/x", S3()).get("key")
    assert None not in (one.process.poll(), two.process.poll())
    with local_s3_server(tmp_path / "one", ["first", "second"]) as again:
        use(again, monkeypatch)
        assert open_store("s3://second/x", S3()).get("key") == b"kept"


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_with_its_starter(tmp_path: Path, signal_number: int) -> None:
    """Servers would pile up on the machine after every interrupted run."""
    command = [sys.executable, "-m", "jobs.demo.s3_server", "--folder", str(tmp_path / "data")]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores SIGINT, and so do its children
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        lines = [""]
        while lines[-1] != "# Serving until Ctrl-C.":
            lines.append(starter.stdout.readline().strip())
        (server,) = psutil.Process(starter.pid).children()
        descriptor = os.pidfd_open(server.pid)  # readable once the process has ended
        try:
            starter.send_signal(signal_number)
            assert select.select([descriptor], [], [], 30)[0]
        finally:
            os.close(descriptor)
            starter.kill()
    assert [line for line in lines if line.startswith("export AWS_ENDPOINT_URL=http://127.0.0.1:")]
