import numpy as np

from benchmarks.spike_causes.runs import Injection, Run


class OtherWeights(Injection):
    """Noise is added to the weights between two steps."""

    name, cause = "overwritten weights", "run_event"
    tune, report = (0.8, 1.2, 2.0), (0.7, 1.1, 2.5)

    def before_step(self, run: Run, step: int) -> None:
        if step == len(run.batches) * 3 // 4:
            for variable in run.model.trainable_variables:
                values = np.array(variable)
                if values.ndim > 1:
                    variable.assign(values + run.rng.normal(0, self.strength * values.std(), values.shape))
