import numpy as np

from benchmarks.spike_causes.runs import Injection, Run


class TrainingModeEvaluation(Injection):
    """Validation images are evaluated in training mode: with a high dropout rate and batch statistics."""

    name, cause = "evaluation in training mode", "nondeterministic_evaluation"
    decoy = True
    tune, report = (0.7, 0.85, 0.95), (0.65, 0.8, 0.9)
    patience = 3

    def evaluate(self, run: Run) -> np.ndarray | None:
        before = [layer.rate for layer in run.dropouts]
        kept = [(v, np.array(v)) for layer in run.norms for v in (layer.moving_mean, layer.moving_variance)]
        try:
            for layer in run.dropouts:
                layer.rate = self.strength
            pixels, labels = run.validation
            logits = run.model(np.asarray(pixels, np.float32), training=True)
            shifted = np.asarray(logits) - np.max(logits, -1, keepdims=True)
            return np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(labels)), labels]
        finally:
            for layer, rate in zip(run.dropouts, before, strict=True):
                layer.rate = rate
            for variable, value in kept:
                variable.assign(value)
