"""Measures the time that the diagnosis adds to an epoch without a spike, as a fraction of the rest of the epoch. Prints JSON.

    python -m benchmarks.diagnosis_time

Takes a few minutes on two cores. The diagnosis copies the weights eight times per epoch, however long the epoch is, so the
fraction is largest in short epochs. jobs/configs/question.toml has 184 steps per epoch. The images here are 32x32; at 64x64, as
in that file, a step takes longer and the fraction is smaller.
"""

import json
import os
import platform
import statistics
import time

EPOCHS = 6
"""Measured epochs. They follow two epochs in which TensorFlow compiles."""
STEPS = (16, 75, 184)
"""Steps per epoch."""


def main() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from benchmarks.spike_causes.runs import ARCHITECTURES, Config, Run

    fractions: dict[str, dict[str, float]] = {}
    for architecture in ARCHITECTURES:
        for steps in STEPS:
            run = Run(Config(data="textures", architecture=architecture, seed=0, training=32 * steps))
            found = []
            for epoch in range(2 + EPOCHS):
                began, before, spikes = time.perf_counter(), run.diagnosis_seconds, len(run.diagnostician.diagnoses)
                run.train_epoch()
                own = run.diagnosis_seconds - before
                if epoch >= 2 and len(run.diagnostician.diagnoses) == spikes:
                    found.append(own / (time.perf_counter() - began - own))
            fractions.setdefault(architecture, {})[f"{steps} steps"] = round(statistics.median(found), 4)
    print(
        json.dumps(
            {
                "command": "python -m benchmarks.diagnosis_time",
                "date": time.strftime("%Y-%m-%d"),
                "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
                "fraction_of_the_rest_of_an_epoch": fractions,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
