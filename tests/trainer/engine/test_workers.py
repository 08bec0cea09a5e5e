"""One update on several workers, each a real process, against one worker."""

import os

import keras
import numpy as np
import pytest

from tests.support import workers
from tests.trainer.engine.test_step import batches, build
from trainer.data.loader import Batch
from trainer.engine.group import Group

pytestmark = pytest.mark.integration

SMALL, LARGER = (16, 16, 3), (32, 32, 3)
NETWORKS = {
    "question": (SMALL, {"batch_normalization": "synchronized"}),
    "residual": (LARGER, {"network": "tests.support.networks:residual", "arguments": {"l2": 0.001}}),
    "depthwise": (LARGER, {"network": "tests.support.networks:depthwise"}),
    "backbone": (LARGER, {"network": "keras.applications:MobileNet", "arguments": {"alpha": 0.25, "dropout": 0.2}}),
}
"""Name -> image shape, and settings of [model]."""
OWN_STATISTICS = "own statistics"
"""A network whose workers have statistics of their own: the comparison can fail."""
SCRIPT = f"""
import sys; sys.path.insert(0, {os.getcwd()!r})
from tests.trainer.engine.test_workers import train
train()
"""


def train() -> None:
    """In a worker: trains every network on its part of the batches and saves losses and state as NAME-SIZE-RANK.npz."""
    group = Group()
    part = 32 // group.size
    mine = slice(group.rank * part, (group.rank + 1) * part)
    for name, (shape, model) in [*NETWORKS.items(), (OWN_STATISTICS, (SMALL, {"batch_normalization": "fused"}))]:
        precision = {} if name == OWN_STATISTICS else {"precision": "float64"}
        learner = build(group, shape, launch={"workers": group.size}, model={**model, **precision})
        losses = []
        for batch in batches(4, shape=shape):
            stats, signals = learner.train(Batch(*(values[mine] for values in batch)), stop=group.rank == 1)
            losses.append(float(stats.loss))
            assert float(signals.stop) == (group.size > 1)
        learner.average_statistics()
        np.savez(f"{name}-{group.size}-{group.rank}.npz", losses=losses, **learner.state())
        keras.config.set_dtype_policy("float32")
    assert group.sum(np.array([1.0, group.rank])).tolist() == [group.size, sum(range(group.size))]
    assert group.gather(group.rank, 7.0).tolist() == [[rank, 7.0] for rank in range(group.size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With what one worker, and each of two and of four, has learned."""
    folder = tmp_path_factory.mktemp("workers")
    for size in (1, 2, 4):
        workers.run(SCRIPT, size, folder)
    return folder


def loaded(folder, name, size):
    """What one worker has learned, and the first and the last of `size`."""
    return (dict(np.load(folder / f"{name}-{worker}.npz")) for worker in ("1-0", f"{size}-0", f"{size}-{size - 1}"))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_several_workers_are_one(folder, name, size):
    """Workers would drift apart, or learn something else than one worker does with the same global batches; the curve of a user's
    own network would depend on the number of workers, as in any other tool."""
    one, first, last = loaded(folder, name, size)
    for key, values in first.items():
        np.testing.assert_array_equal(last[key], values, err_msg=f"{key} differs between the workers")
    np.testing.assert_allclose(first["losses"], one["losses"], rtol=1e-9)


def test_workers_with_statistics_of_their_own_keep_equal_weights(folder):
    """model.batch_normalization = "fused" would end in a model for each worker; or the comparison above could not fail."""
    one, first, second = loaded(folder, OWN_STATISTICS, 2)
    for key, values in first.items():
        np.testing.assert_array_equal(second[key], values, err_msg=f"{key} differs between the workers")
    assert np.max(np.abs(first["losses"] / one["losses"] - 1)) > 2e-3
