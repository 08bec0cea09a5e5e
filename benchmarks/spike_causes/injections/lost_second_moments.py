import numpy as np

from benchmarks.spike_causes.injections.common import HOT
from benchmarks.spike_causes.runs import Injection, Run


class LostSecondMoments(Injection):
    """Adam's second moments are lost some times in the second half of the epoch, as by restores that leave them out."""

    name, cause = "second moments lost", "stale_optimizer_state"
    tune, report = (2, 4, 6), (2, 3, 5)
    """How often they are lost."""
    needs = HOT

    def before_step(self, run: Run, step: int) -> None:
        count = len(run.batches)
        if step in np.linspace(count // 2, count - 3, int(self.strength)).astype(int):
            for variable in run.optimizer.variables:
                if variable.path.endswith("_velocity"):
                    variable.assign(np.array(variable) * np.float32(1e-8))
