from benchmarks.spike_causes.runs import Injection, Run
from spikewise.records import Event


class AnnouncedRate(Injection):
    """The learning rate is raised permanently, and the run reports it."""

    name, cause = "raised learning rate, reported", "run_event"
    tune, report = (80, 160, 320), (70, 140, 400)
    patience = 3

    def begin(self, run: Run) -> None:
        if not getattr(self, "_raised", False):
            self._raised = True
            before = run.learning_rate
            run.learning_rate *= self.strength
            run.events.append(Event("learning_rate", run.epoch, 0, before, run.learning_rate))
