"""Threads and GPUs. TensorFlow fixes its threads at the first operation, so that the real calls run in a process of their own."""

import subprocess
import sys

import pytest
import tensorflow as tf

from trainer.engine import devices


def test_no_gpu_where_one_is_wanted(monkeypatch):
    """A user would pay for GPUs that stand idle under an image without CUDA, and the run would take a hundred times as long."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", lambda _: None)
    with pytest.raises(devices.DeviceError, match=r"launch\.gpu = true, but TensorFlow \S+ sees no GPU\. Fix: .*VARIANT=gpu"):
        devices.configure(threads=1, gpu=True)


@pytest.mark.integration
def test_threads_are_limited():
    """Several workers on one machine would each use all cores and slow each other down."""
    script = (
        "from trainer.engine import devices; import tensorflow as tf; devices.configure(threads=3, gpu=False); "
        "tf.constant(1) + 1; print(tf.config.threading.get_intra_op_parallelism_threads())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"
