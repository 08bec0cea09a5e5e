from benchmarks.spike_causes.runs import Injection, Run


class Explosion(Injection):
    """The learning rate is raised permanently, so far that the network never recovers."""

    name, cause = "explosion", "divergence"
    tune, report = (3000, 1e4, 1e5), (5000, 3e4, 1e6)
    patience = 3

    def begin(self, run: Run) -> None:
        if not getattr(self, "_raised", False):
            self._raised = True
            run.learning_rate *= self.strength
