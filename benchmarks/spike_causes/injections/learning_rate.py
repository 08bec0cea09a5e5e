from benchmarks.spike_causes.runs import Injection, Run


class LearningRate(Injection):
    """The learning rate is many times higher for one epoch, unreported."""

    name, cause = "learning rate pulse", "overshoot"
    tune, report = (80, 160, 320), (70, 140, 400)

    def begin(self, run: Run) -> None:
        run.learning_rate *= self.strength

    def end(self, run: Run) -> None:
        run.learning_rate /= self.strength
