"""The threads and GPUs that TensorFlow uses in this process."""

import os

import tensorflow as tf

from trainer import UserError


class DeviceError(UserError):
    """The run needs a GPU, and this process has none."""


def configure(*, threads: int, gpu: bool) -> None:
    """Gives TensorFlow `threads` threads for one operation. Hides all GPUs unless `gpu` is set; their memory is taken as it is
    needed instead of all at once.

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


def has_gpu() -> bool:
    """Whether TensorFlow computes on a GPU in this process."""
    return bool(tf.config.list_logical_devices("GPU"))


def facts() -> dict[str, str]:
    """What else of this process decides how results are rounded: the GPU, and the kernels of the CPU."""
    gpus = [tf.config.experimental.get_device_details(gpu).get("device_name", "?") for gpu in tf.config.get_visible_devices("GPU")]
    return {
        "gpu of a worker": ", ".join(gpus) or "none",
        "oneDNN": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "as TensorFlow decides"),
    }
