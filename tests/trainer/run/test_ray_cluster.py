"""Addresses and the environment; clusters too small or out of reach are in tests/integration/test_bad_input.py."""

import socket

import pytest

from trainer import config
from trainer.run import ray_cluster


def test_a_cluster_that_is_gone_is_noticed_at_once():
    """Ray would try for minutes, with warnings that name no setting."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        ray_cluster._check_answers(address)
    with pytest.raises(ray_cluster.ClusterError, match=rf"No Ray cluster answers at RAY_ADDRESS = {address} .*Fix: ") as caught:
        ray_cluster._check_answers(address)
    assert caught.value.transient  # the head may be on its way back
    ray_cluster._check_answers("auto")


def test_the_environment_names_what_a_result_depends_on():
    """Two reports with different results could not be told apart."""
    found = ray_cluster.environment(config.Launch(workers=2, gpu=True))
    assert {"python", "tensorflow", "keras", "ray", "numpy", "processor", "cores"} < set(found)
    assert (found["workers"], found["gpu"]) == ("2", "one for each worker")
    assert all(isinstance(value, str) and value for value in found.values())
