"""Starts a real Prometheus that scrapes given addresses, and queries it."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

DEADLINE = 60.0
"""Seconds before a wait fails. On an idle machine the same wait takes one or two seconds."""


@contextmanager
def prometheus(folder: Path, *targets: str) -> Iterator[str]:
    """A Prometheus that scrapes `targets` (host:port) every second. Yields the URL of its HTTP API."""
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "trainer", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=log,
            stderr=log,
            env={**os.environ, "GOMAXPROCS": "1"},
        )
    try:
        yield until(lambda: listening(server), lambda: (folder / "log").read_text())
    finally:
        server.terminate()
        server.wait(DEADLINE)


def listening(server: subprocess.Popen[bytes]) -> str | None:
    """The URL that the process listens on, or None while it is starting. Raises AssertionError if it has exited."""
    assert server.poll() is None
    for connection in psutil.Process(server.pid).net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            return f"http://127.0.0.1:{connection.laddr.port}"
    return None


def query(api: str, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Runs an instant query. Returns labels (without name, job and instance) -> value; empty while Prometheus is starting."""
    url = f"{api}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            result = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        if error.code != 503:  # 503: still starting
            raise
        return {}
    return {
        tuple(sorted((k, v) for k, v in series["metric"].items() if k not in ("__name__", "job", "instance"))): float(
            series["value"][1]
        )
        for series in result
    }


def until(condition: Any, explain: Any = lambda: "") -> Any:
    """Waits until `condition()` is true and returns its value. Raises AssertionError with `explain()` after DEADLINE seconds."""
    deadline = time.monotonic() + DEADLINE
    while not (result := condition()):
        assert time.monotonic() < deadline, explain()
        time.sleep(0.05)
    return result
