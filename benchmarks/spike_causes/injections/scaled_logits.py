from benchmarks.spike_causes.injections.common import HOT
from benchmarks.spike_causes.runs import Injection, Run


class ScaledLogits(Injection):
    """The training loss divides the logits by a temperature that the evaluation lacks, as after a distillation: the network learns
    larger logits, and is too sure of itself. A schedule raises the learning rate fourfold meanwhile."""

    name, cause = "a temperature in the training loss alone", "overconfidence"
    tune, report = (12, 24, 48), (10, 20, 40)
    """The temperature."""
    needs = HOT
    patience = 8

    def begin(self, run: Run) -> None:
        run.logit_scale = 1 / self.strength

    def before_step(self, run: Run, step: int) -> None:  # noqa: ARG002
        if run.learning_rate < 4 * run.config.learning_rate * run.config.settled:
            run.learning_rate *= 1.05

    def end(self, run: Run) -> None:
        run.logit_scale = 1.0
