"""Measures the time that the diagnosis adds to an epoch without a spike, as a fraction of the rest of the epoch. Prints JSON.

    python -m benchmarks.diagnosis_time

Takes a few minutes on two cores. What the loss is made of is measured within the default budget, in some epochs and not in others,
so the times of all epochs are added up. The diagnosis copies the weights eight times per epoch, however long the epoch is, so the
fraction is largest in short epochs. jobs/configs/question.toml has 184 steps per epoch. The images here are 32x32; at 64x64, as in
that file, a step takes longer and the fraction is smaller.
"""

import json
import os
import time

from benchmarks.support.resumable import circumstances

EPOCHS = 20
"""Measured epochs. They follow those in which TensorFlow compiles."""
COMPILING = 4
STEPS = (16, 43, 184)
"""Steps per epoch."""


def main() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from benchmarks.spike_causes.runs import ARCHITECTURES, Config, Run

    fractions: dict[str, dict[str, float]] = {}
    for architecture in ARCHITECTURES:
        for steps in STEPS:
            run = Run(Config(data="textures", architecture=architecture, seed=0, training=32 * steps))
            own_seconds = rest = 0.0
            for epoch in range(COMPILING + EPOCHS):
                began, before, spikes = time.perf_counter(), run.diagnosis_seconds, len(run.diagnostician.diagnoses)
                run.train_epoch()
                own = run.diagnosis_seconds - before
                if epoch >= COMPILING and len(run.diagnostician.diagnoses) == spikes:
                    own_seconds += own
                    rest += time.perf_counter() - began - own
            fractions.setdefault(architecture, {})[f"{steps} steps"] = round(own_seconds / rest, 4)
    print(json.dumps({**circumstances("benchmarks.diagnosis_time"), "fraction_of_the_rest_of_an_epoch": fractions}, indent=1))


if __name__ == "__main__":
    main()
