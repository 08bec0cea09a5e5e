from benchmarks.spike_causes.injections.common import forget_statistics
from benchmarks.spike_causes.runs import Injection, Run
from spikewise.records import Event


class LostStatistics(Injection):
    """A restart loses the moving statistics. The run reports the restart."""

    name, cause = "restart without statistics", "run_event"
    tune, report = (30, 20, 8), (25, 15, 5)
    """Steps between the reset and the evaluation."""

    def before_step(self, run: Run, step: int) -> None:
        if step == max(len(run.batches) - int(self.strength), 0):
            run.events.append(Event("restart", run.epoch, step))
            forget_statistics(run)
