"""The threads, the GPUs and the compiled programs that TensorFlow uses in this process."""

import hashlib
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

import tensorflow as tf

from trainer import UserError
from trainer.data.cache import evict_programs
from trainer.model.layers import deterministic

log = logging.getLogger(__name__)

PROGRAMS = "programs"
"""Folder of compiled programs in pipeline.cache_dir."""
KEEPS = "--tf_xla_persistent_cache_directory="
"""The flag in TF_XLA_FLAGS that lets XLA keep compiled programs."""
SHAPING = ("TF_XLA_FLAGS", "XLA_FLAGS", "TF_DETERMINISTIC_OPS", "TF_CUDNN_DETERMINISTIC", "NVIDIA_TF32_OVERRIDE")
"""Variables that change what XLA compiles, but not the names under which it keeps programs."""


class DeviceError(UserError):
    """The run needs a GPU, and this process has none."""


def configure(*, threads: int, gpu: bool, cache: Path | None = None) -> None:
    """Gives TensorFlow `threads` threads for one operation. Hides all GPUs unless `gpu` is set; their memory is taken as it is
    needed instead of all at once, and compiled programs are kept in the folder `cache`.

    Call it before TensorFlow runs any operation. Raises DeviceError when `gpu` is set and TensorFlow sees no GPU.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    if not gpu:  # Ray hides no GPU from a worker that asked for none
        tf.config.set_visible_devices([], "GPU")
        return
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:  # it would silently train on the CPU
        raise DeviceError(
            f"launch.gpu = true, but TensorFlow {tf.__version__} sees no GPU. Fix: use an image built with VARIANT=gpu (outside of "
            'containers: pip install "tensorflow[and-cuda]"), and an NVIDIA driver recent enough for its CUDA version.'
        )
    for each in gpus:
        tf.config.experimental.set_memory_growth(each, True)
    if cache:
        keep_programs(cache.absolute() / PROGRAMS, _name(gpus[0]))


def keep_programs(folder: Path, device: str) -> None:
    """Lets XLA keep the programs that it compiles for a kind of device in `folder`, and deletes old ones. Does nothing where the
    user has chosen a folder, or `folder` cannot be written. Call it before TensorFlow runs any operation."""
    flags = os.environ.get("TF_XLA_FLAGS", "")
    shaping = "\n".join(f"{name}={os.environ.get(name)}" for name in SHAPING)
    kind = re.sub(r"\W+", "-", f"{device}-{tf.__version__}-{hashlib.sha256(shaping.encode()).hexdigest()[:8]}")
    if KEEPS in flags or re.search(r"[\s'\"]", str(folder)):  # TensorFlow would take the path apart
        return
    with suppress(OSError):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        if os.access(folder / kind, os.W_OK):
            evict_programs(folder)
            os.environ["TF_XLA_FLAGS"] = f"{flags} {KEEPS}{folder / kind}".strip()


def forget_programs(error: Exception) -> bool:
    """Deletes all kept programs if `error` says that one of them cannot be read; returns whether it does."""
    kept = re.search(rf"{KEEPS}(\S+)", os.environ.get("TF_XLA_FLAGS", ""))
    unreadable = isinstance(error, tf.errors.DataLossError | tf.errors.OutOfRangeError) or "Serialized cache key" in str(error)
    if not kept or not unreadable:
        return False
    log.warning("A compiled program in %s cannot be read. All of them are deleted and compiled again.", kept[1])
    for path in Path(kept[1]).glob("xla_compile_cache__*"):  # nothing else: the user may have chosen the folder
        path.unlink(missing_ok=True)
    return True


def has_gpu() -> bool:
    """Whether TensorFlow computes on a GPU in this process."""
    return bool(tf.config.list_logical_devices("GPU"))


def facts() -> dict[str, str]:
    """What else of this process decides how results are rounded: the GPU, and the kernels."""
    return {
        "gpu of a worker": ", ".join(map(_name, tf.config.get_visible_devices("GPU"))) or "none",
        "deterministic operations": "yes" if deterministic() else "no",
        "oneDNN": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "as TensorFlow decides"),
    }


def _name(gpu: tf.config.PhysicalDevice) -> str:
    return str(tf.config.experimental.get_device_details(gpu).get("device_name", "?"))
