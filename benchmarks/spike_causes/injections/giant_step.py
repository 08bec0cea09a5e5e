from benchmarks.spike_causes.runs import Injection, Run


class GiantStep(Injection):
    """A single step is very long, because its learning rate is very high."""

    name, cause = "one giant step", "overshoot"
    tune, report = (500, 1000, 2000), (600, 1200, 2500)

    def before_step(self, run: Run, step: int) -> None:
        if step == len(run.batches) * 3 // 4:
            run.learning_rate *= self.strength

    def after_step(self, run: Run, step: int) -> None:
        if step == len(run.batches) * 3 // 4:
            run.learning_rate /= self.strength
