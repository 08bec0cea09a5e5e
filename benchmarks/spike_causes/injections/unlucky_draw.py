import numpy as np

from benchmarks.spike_causes.runs import Injection, Run
from spikewise.forecast import forecast, threshold


class UnluckyDraw(Injection):
    """A small validation set whose loss jumps by chance.

    Longer steps change the losses of single images but not their mean. Of many random small validation sets, the injection
    picks one whose loss jumped although the loss over all images did not.
    """

    name, cause = "unlucky draw", "sampling_noise"
    tune, report = (60, 40, 25), (50, 35, 25)
    """Images in the small validation set."""
    patience = 6
    draws = 2_000

    def begin(self, run: Run) -> None:
        run.learning_rate *= 10

    def end(self, run: Run) -> None:
        run.learning_rate /= 10
        if len(run.history[0]) == self.strength:
            return
        losses = np.array([*run.history, run.evaluate()])
        sets = np.random.default_rng([run.config.seed, run.epoch]).integers(0, losses.shape[1], (self.draws, int(self.strength)))
        means = np.stack([epoch[sets].mean(1) for epoch in losses], 1)
        epochs = np.arange(1, len(losses) + 1)
        baseline, scale = forecast(epochs[:-1], means[:, :-1], len(losses))
        rise = means[:, -1] - baseline
        everyone, _ = forecast(epochs[:-1], losses.mean(1)[:-1], len(losses))
        alarms = np.flatnonzero((rise > threshold(baseline, scale)) & (losses[-1].mean() - everyone < rise / 4))
        if len(alarms):
            run.restrict(sets[alarms[0]])
