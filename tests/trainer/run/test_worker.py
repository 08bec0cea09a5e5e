"""What a worker refuses before it trains; how it trains is in integration/."""

from types import SimpleNamespace

import pytest
import tensorflow as tf

from trainer import config
from trainer.run import worker


def test_no_gpu_where_one_is_wanted(monkeypatch):
    """A GPU would be paid for and stand idle under an image without CUDA, and the run take a hundred times as long."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", lambda _: None)
    settings = config.load("jobs/configs/gpu.toml").as_dict()
    with pytest.raises(worker.TrainingError, match=r"launch\.gpu = true, but TensorFlow \S+ sees no GPU: .*VARIANT=gpu"):
        worker._Worker(SimpleNamespace(settings=settings, threads=1))
