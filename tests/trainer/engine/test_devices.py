"""Threads and GPUs. TensorFlow fixes its threads at the first operation, so that the real calls run in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

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


KEPT = """
import pathlib, sys
from trainer.engine import devices
devices.keep_programs(pathlib.Path(sys.argv[1]), "NVIDIA H100 80GB")
devices.has_gpu = lambda: True
from tests.trainer.engine.test_chunk import SMALL, build
from trainer.engine.chunk import engine
print(type(engine(*build(SMALL), trace_bytes=0)).__name__)
"""


def compile_into(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KEPT, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)


@pytest.mark.integration
def test_compiled_programs_are_kept(tmp_path):
    """Each start on a GPU would compile for a minute what an earlier one has compiled, and a damaged file would make every later
    run on the machine several times slower, with a message that blames the network."""
    assert compile_into(tmp_path).stdout == "Chunks\n"
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith(f"NVIDIA-H100-80GB-{tf.__version__.replace('.', '-')}-")
    programs = list(folder.iterdir())
    assert len(programs) == 2
    for path in programs:
        path.write_bytes(b"damaged")
    done = compile_into(tmp_path)  # which reads them
    assert done.stdout == "Chunks\n"
    assert f"A compiled program in {folder} cannot be read." in done.stderr
    assert "XLA does not compile" not in done.stderr
    assert [path.read_bytes() != b"damaged" for path in folder.iterdir()] == [True, True]


def test_programs_of_other_flags_are_not_used(tmp_path, monkeypatch):
    """A run that has to be deterministic would load a program that is not; and the user's own folder would be ignored."""
    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
    folders = []
    for value in ("0", "1"):
        with monkeypatch.context() as patch:
            patch.setenv("TF_DETERMINISTIC_OPS", value)
            patch.setenv("TF_XLA_FLAGS", "--tf_xla_clustering_debug")
            devices.keep_programs(tmp_path, "H100")
            own, folder = os.environ["TF_XLA_FLAGS"].split(f" {devices.KEEPS}")
            assert own == "--tf_xla_clustering_debug"
            folders.append(Path(folder))
    assert sorted(folders) == sorted(tmp_path.iterdir())
    assert len(folders) == 2
    for chosen, folder in ((f"{devices.KEEPS}/mine", tmp_path), ("", tmp_path / "with space"), ("", folders[0] / "file" / "x")):
        (folders[0] / "file").touch()
        monkeypatch.setenv("TF_XLA_FLAGS", chosen)
        devices.keep_programs(folder, "H100")
        assert os.environ["TF_XLA_FLAGS"] == chosen
