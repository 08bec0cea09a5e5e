from benchmarks.spike_causes.runs import Injection, Run


class FastWeights(Injection):
    """A warm-up raises the learning rate smoothly within the epoch. The weights then move faster than statistics with a momentum of
    0.99 can follow."""

    name, cause = "weights faster than the statistics", "batchnorm_lag"
    tune, report = (4, 10, 25), (5, 12, 20)
    """How many times higher the learning rate is at the end of the epoch."""
    needs = (("momentum", 0.99),)

    def begin(self, run: Run) -> None:
        self._rate = run.learning_rate

    def before_step(self, run: Run, step: int) -> None:
        run.learning_rate = self._rate * self.strength ** ((step + 1) / len(run.batches))

    def end(self, run: Run) -> None:
        run.learning_rate = self._rate
