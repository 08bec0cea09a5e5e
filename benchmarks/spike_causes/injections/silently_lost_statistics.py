from benchmarks.spike_causes.injections.common import forget_statistics
from benchmarks.spike_causes.runs import Injection, Run


class SilentlyLostStatistics(Injection):
    """The moving statistics are reset, unreported."""

    name, cause = "moving statistics reset", "batchnorm_statistics"
    tune, report = (40, 25, 8), (35, 20, 5)
    """Steps between the reset and the evaluation."""

    def before_step(self, run: Run, step: int) -> None:
        if step == max(len(run.batches) - int(self.strength), 0):
            forget_statistics(run)
