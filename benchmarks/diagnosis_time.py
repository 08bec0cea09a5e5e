"""What the diagnosis costs in epochs without a spike, as a share of the rest of the run, by steps an epoch. Prints JSON in minutes.

    python -m benchmarks.diagnosis_time

It copies the weights eight times an epoch, however long that is, so a short epoch has the largest share; 184 steps are those of
jobs/configs/question.toml. Images are 32x32: at the question's 64x64 a step takes longer, and the share is smaller.
"""

import json
import os
import platform
import statistics
import time

EPOCHS = 6
"""Measured, after two that compile."""
STEPS = (16, 75, 184)


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
