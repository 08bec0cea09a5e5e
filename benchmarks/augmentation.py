"""Measures the time of each augmentation: milliseconds for a batch of 32 images of 64x64 pixels. Prints JSON.

    python -m benchmarks.augmentation

Takes half a minute. The function is compiled as in the training step, without XLA. "none" is the conversion of pixels to float32,
which is part of every value.
"""

import json
import os
import platform
import time

BATCH, SIDE = 32, 64
ROUNDS, CALLS = 60, 10
"""Each value is the mean of that many calls in the fastest round, because other programs only slow it down."""
OPTIONS: dict[str, dict[str, float]] = {
    "flip": {"flip": True},
    "flip_vertical": {"flip_vertical": True},
    "shift": {"shift": 4},
    "rotation": {"rotation": 10.0},
    "crop": {"crop": 0.7},
    "brightness": {"brightness": 0.2},
    "contrast": {"contrast": 0.2},
    "noise": {"noise": 5.0},
    "jpeg": {"jpeg": 50},
    "cutout": {"cutout": 0.3},
}


def main() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import numpy as np
    import tensorflow as tf

    from trainer import config
    from trainer.data.augmentation import augment, draw
    from trainer.data.order import epoch_generator

    tf.config.threading.set_intra_op_parallelism_threads(os.cpu_count() or 1)  # as the job sets it for a single worker
    pixels = tf.constant(np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8))
    options = {"none": {}, **OPTIONS, "all": {name: value for option in OPTIONS.values() for name, value in option.items()}}
    functions = {}
    for name, option in options.items():
        settings = config.Augmentation.model_validate(option)
        changes = tf.constant(draw(epoch_generator(0, 1), (1, BATCH), settings)[0])
        function = tf.function(lambda pixels, changes, settings=settings: tf.cast(augment(pixels, changes, settings), tf.float32))
        functions[name] = (function, changes)
        function(pixels, changes)
    turns: dict[str, list[float]] = {name: [] for name in options}
    for _ in range(ROUNDS):
        for name, (function, changes) in functions.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                result = function(pixels, changes)
            float(result[0, 0, 0, 0])
            turns[name].append((time.perf_counter() - began) / CALLS * 1000)
    print(
        json.dumps(
            {
                "command": "python -m benchmarks.augmentation",
                "date": time.strftime("%Y-%m-%d"),
                "machine": f"{os.cpu_count()} cores, {platform.machine()}, TensorFlow {tf.__version__}",
                "milliseconds_per_batch": {name: round(min(values), 2) for name, values in turns.items()},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
