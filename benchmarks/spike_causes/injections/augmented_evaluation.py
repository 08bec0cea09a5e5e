import numpy as np

from benchmarks.spike_causes.runs import Injection, Run


class AugmentedEvaluation(Injection):
    """Validation images are evaluated with random noise that differs in each evaluation."""

    name, cause = "augmented evaluation", "nondeterministic_evaluation"
    decoy = True
    tune, report = (60, 90, 140), (70, 100, 160)
    patience = 3

    def evaluate(self, run: Run) -> np.ndarray | None:
        pixels, labels = run.validation
        return run.losses(np.clip(pixels + run.rng.normal(0, self.strength, pixels.shape), 0, 255), labels)
