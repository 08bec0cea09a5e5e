import numpy as np

from benchmarks.spike_causes.runs import Injection, Run
from spikewise.records import Event


class LostOptimizer(Injection):
    """A restart in the middle of the epoch loses the optimizer's moments, which makes the next steps long."""

    name, cause = "optimizer state lost", "run_event"
    tune, report = (20, 60, 150), (25, 50, 200)

    def before_step(self, run: Run, step: int) -> None:
        if step == len(run.batches) // 2:
            run.events.append(Event("optimizer_reset", run.epoch, step))
            rate = run.learning_rate
            for variable in run.optimizer.variables:
                variable.assign(np.zeros(variable.shape, variable.dtype))
            run.learning_rate = rate * self.strength

    def end(self, run: Run) -> None:
        run.learning_rate /= self.strength
