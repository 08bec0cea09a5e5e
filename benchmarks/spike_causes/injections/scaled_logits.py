from benchmarks.spike_causes.injections.common import HOT
from benchmarks.spike_causes.runs import Injection, Run


class ScaledLogits(Injection):
    """The training loss divides the logits by a temperature that the evaluation lacks, as after a distillation: the network learns
    larger logits, and is too sure of itself."""

    name, cause = "a temperature in the training loss alone", "overconfidence"
    tune, report = (3, 6, 12), (4, 8, 16)
    """The temperature."""
    needs = HOT
    patience = 6

    def begin(self, run: Run) -> None:
        run.logit_scale = 1 / self.strength

    def end(self, run: Run) -> None:
        run.logit_scale = 1.0
