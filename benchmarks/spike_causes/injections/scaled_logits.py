import numpy as np

from benchmarks.spike_causes.runs import Injection, Run


class ScaledLogits(Injection):
    """The last layer is multiplied by a number, as when a temperature is folded into its weights the wrong way: each image keeps
    its class, and the network is too sure of it."""

    name, cause = "a temperature folded into the weights", "overconfidence"
    tune, report = (1.5, 3, 6), (2, 4, 8)
    """The factor."""

    def end(self, run: Run) -> None:
        for variable in run.model.layers[-1].trainable_variables:
            variable.assign(self.strength * np.array(variable))
