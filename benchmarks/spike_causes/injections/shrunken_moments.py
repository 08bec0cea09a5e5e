import numpy as np

from benchmarks.spike_causes.injections.common import HOT
from benchmarks.spike_causes.runs import Injection, Run


class ShrunkenMoments(Injection):
    """Adam's second moments shrink in the middle of the epoch, as after a restore that lost them."""

    name, cause = "second moments lost", "stale_optimizer_state"
    tune, report = (3e-2, 1e-3, 1e-6), (1e-2, 1e-4, 1e-7)
    """Factor of the second moments."""
    needs = HOT

    def before_step(self, run: Run, step: int) -> None:
        if step == len(run.batches) * 3 // 4:
            for variable in run.optimizer.variables:
                if variable.path.endswith("_velocity"):
                    variable.assign(np.array(variable) * np.float32(self.strength))
