import numpy as np

from benchmarks.spike_causes.runs import Injection, Run

LATE = 5
"""Steps between the batch and the evaluation."""


class SkippedStep(Injection):
    """The pixels of one batch are on another scale, and its step is skipped, as loss scaling skips one whose gradient overflows.
    The batch then moves BatchNormalization's statistics and nothing else."""

    name, cause = "a batch out of scale whose step is skipped", "bad_batch"
    tune, report = (4, 10, 30), (6, 15, 45)
    """Factor of the pixels."""

    def begin(self, run: Run) -> None:
        self._number = len(run.batches) - LATE
        pixels, labels = run.batches[self._number]
        run.batches[self._number] = pixels.astype(np.float32) * self.strength, labels

    def before_step(self, run: Run, step: int) -> None:
        if step == self._number:
            self._kept = [(v, np.array(v)) for v in [*run.model.trainable_variables, *run.optimizer.variables]]

    def after_step(self, run: Run, step: int) -> None:  # noqa: ARG002
        if step == self._number:
            for variable, value in self._kept:
                variable.assign(value)
