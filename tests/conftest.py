"""Fixtures that several modules share (a real S3 server and a real Ray cluster, started once per process), and the skipping of
tests that need something this machine lacks."""

import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # two test processes on two cores: its threads would spin for each other
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as a job sets it (trainer/run/ray_cluster.py), before TensorFlow is imported

import pytest

from jobs.demo.s3_server import S3Server, local_s3_server


def browser() -> str | None:
    """The path of a Chromium, if there is one."""
    return next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


NEEDS = {
    "browser": (browser, "there is no Chromium in PATH. Fix: apt install chromium (Debian)"),
    "prometheus": (
        lambda: shutil.which("prometheus") and shutil.which("promtool"),
        "prometheus and promtool are not installed. Fix: apt install prometheus (Debian)",
    ),
    "crds": (
        lambda: bool(os.environ.get("SPIKEWISE_CRDS")),
        "SPIKEWISE_CRDS is not set. Fix: set it to a folder with the schemas of KubeRay, Kueue and the Prometheus operator",
    ),
}
"""Marker -> whether this machine has what such tests need, and the reason to give if it does not."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, (there, reason) in NEEDS.items():
        if not there():
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints one line for each reason for which tests were skipped."""
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", ()))
    for reason, count in reasons.items():
        terminalreporter.write_line(f"skipped {count} test{'s' * (count > 1)}: {reason}")


@pytest.fixture(scope="session", autouse=True)
def _no_power_failure() -> Iterator[None]:
    """Tests do not wait for the disk: a folder store flushes every checkpoint, which takes milliseconds each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS server with the bucket `spikewise`. The environment, and so every child process, points to it."""
    with local_s3_server(tmp_path_factory.mktemp("s3-server")) as server, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield server


@pytest.fixture(scope="session")
def cluster(s3_server: S3Server) -> Iterator[str]:  # noqa: ARG001 - its workers inherit the credentials
    """Address of a Ray cluster with two cores, whose workers are started once for all tests of this process that use it."""
    from ray.cluster_utils import Cluster

    Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)  # Ray notes the cluster's address there, whatever its temp_dir
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short name: sockets lie there
        options = {"num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False, "temp_dir": folder}
        running = Cluster(initialize_head=True, head_node_args=options)
        yield running.address
        running.shutdown()


@pytest.fixture
def bucket(s3_server: S3Server) -> str:  # noqa: ARG001
    """URL of an empty prefix in the bucket, one per test."""
    return f"s3://spikewise/{secrets.token_hex(8)}"
