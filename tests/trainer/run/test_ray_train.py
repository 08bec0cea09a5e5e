"""trainer.run.ray_train without Ray: what TensorFlow is told about the workers."""

import json
import os

import pytest

from trainer.run import ray_train


@pytest.mark.parametrize(
    ("addresses", "direct"),
    [(["10.0.0.1:5000", "10.0.0.2:5001"], "10.0.0.1,10.0.0.2"), (["[fd00::1]:5000", "[fd00::1]:5001"], "fd00::1")],
)
def test_workers_are_reached_around_a_proxy(monkeypatch, addresses, direct):
    """With HTTP_PROXY set, as companies have it, several workers would wait for each other forever."""
    monkeypatch.setenv("TF_CONFIG", "")
    monkeypatch.setenv("no_grpc_proxy", "")
    ray_train._join(addresses, 1)
    assert json.loads(os.environ["TF_CONFIG"]) == {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 1}}
    assert os.environ["no_grpc_proxy"] == direct  # noqa: SIM112
