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


def test_gpus_are_hidden_where_none_is_wanted(monkeypatch):
    """launch.gpu = false would train on the GPUs of the machine all the same: every worker on the first one, until its memory is
    full."""
    card = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    visible = [card]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [card])
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda _: visible)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _: {"device_name": "H100"})
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *_: None)
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", lambda _: None)
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, _: visible.__setitem__(slice(None), devices))
    devices.configure(threads=1, gpu=True)
    assert devices.facts()["gpu of a worker"] == "H100"
    devices.configure(threads=1, gpu=False)
    assert devices.facts()["gpu of a worker"] == "none"


@pytest.mark.integration
def test_threads_are_limited():
    """Several workers on one machine would each use all cores and slow each other down."""
    script = (
        "from trainer.engine import devices; import tensorflow as tf; devices.configure(threads=3, gpu=False); "
        "tf.constant(1) + 1; print(tf.config.threading.get_intra_op_parallelism_threads())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"
