"""A real Prometheus for tests: Debian's program, scraping the addresses it is given."""

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
"""Seconds after which something that takes one or two on an idle machine counts as broken."""


@contextmanager
def prometheus(folder: Path, *targets: str) -> Iterator[str]:
    """A Prometheus that scrapes `targets` every second; yields the address of its HTTP API."""
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
    assert server.poll() is None
    for connection in psutil.Process(server.pid).net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            return f"http://127.0.0.1:{connection.laddr.port}"
    return None


def query(api: str, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Labels (without name, job and instance) -> value, of an instant query."""
    url = f"{api}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            result = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        if error.code != 503:  # it is starting
            raise
        return {}
    return {
        tuple(sorted((k, v) for k, v in series["metric"].items() if k not in ("__name__", "job", "instance"))): float(
            series["value"][1]
        )
        for series in result
    }


def until(condition: Any, explain: Any = lambda: "") -> Any:
    deadline = time.monotonic() + DEADLINE
    while not (result := condition()):
        assert time.monotonic() < deadline, explain()
        time.sleep(0.05)
    return result
