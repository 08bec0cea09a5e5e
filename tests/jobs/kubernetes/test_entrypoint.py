"""jobs.kubernetes.entrypoint without a cluster: which exits Kubernetes retries."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import train
from jobs.kubernetes import entrypoint
from trainer import UserError
from trainer.run import driver
from trainer.storage import StoreError

CONFIG = "jobs/configs/demo.toml"
OUTAGE, MISTAKE = StoreError("no answer", transient=True), StoreError("no such bucket")


@pytest.mark.parametrize(
    ("error", "code"),
    [(OUTAGE, 75), (MISTAKE, 2), (ConnectionError("of Ray"), 75), (entrypoint._Terminated(), entrypoint.TERMINATED)],
)
def test_which_exits_are_retried(monkeypatch, capsys, error, code):
    """A head that is replaced during an outage would end the run for good; or a mistake would be repeated six times."""

    def lead(*_: Any) -> None:
        raise error

    monkeypatch.setattr(entrypoint, "CONFIG", CONFIG)
    monkeypatch.setattr(entrypoint, "lead", lead)
    monkeypatch.setattr(entrypoint.signal, "signal", lambda *_: None)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    assert entrypoint.main([]) == code
    assert not isinstance(error, UserError) or capsys.readouterr().err == f"error: {error}\n"
    (_, fails) = yaml.safe_load(Path("k8s/job/job.yaml").read_text())["spec"]["podFailurePolicy"]["rules"]
    assert (code in fails["onExitCodes"]["values"]) == (error is MISTAKE)


@pytest.mark.parametrize(
    ("error", "flags", "code"),
    [(OUTAGE, ["--retried"], 75), (OUTAGE, [], 2), (MISTAKE, ["--retried"], 2), (ConnectionError("of Ray"), ["--retried"], 75)],
)
def test_the_driver_uses_the_same_codes(monkeypatch, error, flags, code):
    """The driver replaces the pod's program, so Kubernetes would retry a mistake or end the run in an outage."""

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(driver, "launch", fail)
    assert train.main(["--config", CONFIG, *flags]) == code
    assert os.EX_TEMPFAIL == 75  # the number in the documentation


def test_addresses_of_ipv6():
    """On a cluster with IPv6 only, Ray could not take address and port apart."""
    assert entrypoint._join("10.0.0.5", 6379) == "10.0.0.5:6379"
    assert entrypoint._join("fd00::5", 6379) == "[fd00::5]:6379"
