from benchmarks.spike_causes.injections.common import HOT
from benchmarks.spike_causes.runs import Injection, Run


class WrongWay(Injection):
    """The last steps go up the gradient instead of down. The diagnosis knows no such cause."""

    name, cause = "gradient with the wrong sign", "unexplained"
    tune, report = (14, 18, 22), (15, 19, 23)
    needs = HOT

    def before_step(self, run: Run, step: int) -> None:
        run.gradient_sign = -1.0 if step >= len(run.batches) - int(self.strength) else 1.0

    def end(self, run: Run) -> None:
        run.gradient_sign = 1.0
