import numpy as np

from benchmarks.spike_causes.runs import Injection, Run


class LowPrecision(Injection):
    """Validation images are evaluated with weights of few bits, as in an 8-bit floating-point format."""

    name, cause = "evaluation with few bits", "precision"
    decoy = True
    tune, report = (2, 1, 0), (2, 1, 0)
    """Bits of the mantissa."""
    patience = 3

    def evaluate(self, run: Run) -> np.ndarray | None:
        kept = [np.array(variable) for variable in run.model.trainable_variables]
        try:
            for variable, values in zip(run.model.trainable_variables, kept, strict=True):
                mantissa, exponent = np.frexp(values)
                bits = 2.0 ** (self.strength + 1)
                variable.assign(np.ldexp(np.round(mantissa * bits) / bits, exponent))
            return run.losses(*run.validation)
        finally:
            for variable, values in zip(run.model.trainable_variables, kept, strict=True):
                variable.assign(values)

    def evaluate_in_float32(self, run: Run) -> np.ndarray | None:
        return run.losses(*run.validation)
