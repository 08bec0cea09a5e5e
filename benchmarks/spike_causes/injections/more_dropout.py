from benchmarks.spike_causes.runs import Injection, Run


class MoreDropout(Injection):
    """The dropout rate is raised permanently: in training, the next BatchNormalization sees a variance unlike that of inference."""

    name, cause = "raised dropout", "variance_shift"
    decoy = True
    tune, report = (0.8, 0.9, 0.95), (0.85, 0.92, 0.96)
    patience = 3

    def begin(self, run: Run) -> None:
        for layer in run.dropouts:
            layer.rate = self.strength
