import numpy as np

from benchmarks.spike_causes.injections.common import HOT
from benchmarks.spike_causes.runs import Injection, Run


class LostSecondMoments(Injection):
    """Adam's second moments shrink late in the epoch, as by a restore that leaves them out."""

    name, cause = "second moments lost", "stale_optimizer_state"
    tune, report = (1e-4, 1e-6, 1e-8), (1e-5, 1e-7, 1e-9)
    """Their factor."""
    needs = HOT

    def before_step(self, run: Run, step: int) -> None:
        if step == len(run.batches) * 3 // 4:
            for variable in run.optimizer.variables:
                if variable.path.endswith("_velocity"):
                    variable.assign(np.array(variable) * np.float32(self.strength))
