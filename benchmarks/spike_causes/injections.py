"""The injected faults, and the cause that the diagnosis should name for each.

To add your own, write a file that defines `INJECTIONS`, a list of classes like those below, and run
`python -m benchmarks.spike_causes --injections my_file.py`. The base class, `Injection`, describes fields and hooks.
"""

import numpy as np

from benchmarks.spike_causes.runs import Injection, Run
from spikewise.detect import forecast, threshold
from spikewise.records import Event

HOT = (("learning_rate", 2e-3), ("settled", 0.3))
"""A final learning rate high enough for a few bad steps to do harm."""

CALM = (("settled", 0.03),)
"""A final learning rate so low that the loss hardly varies. Otherwise a fault in 2 % of the images disappears in the noise."""


class AugmentedEvaluation(Injection):
    """Validation images are evaluated with random noise that differs in each evaluation."""

    name, cause = "augmented evaluation", "nondeterministic_evaluation"
    decoy = True
    tune, report = (60, 90, 140), (70, 100, 160)
    patience = 3

    def evaluate(self, run: Run) -> np.ndarray | None:
        pixels, labels = run.validation
        return run.losses(np.clip(pixels + run.rng.normal(0, self.strength, pixels.shape), 0, 255), labels)


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


class WrongLabels(Injection):
    """A few validation images get a wrong label."""

    name, cause = "wrong validation labels", "few_examples"
    decoy = True
    needs = CALM
    tune, report = (4, 6, 8), (5, 7, 8)
    patience = 3

    def begin(self, run: Run) -> None:
        pixels, labels = run.validation
        # The images with the lowest loss: a wrong label costs most where the network is confident.
        chosen = np.argsort(run.losses(pixels, labels))[: int(self.strength)]
        labels = labels.copy()
        labels[chosen] = (labels[chosen] + 1) % run.classes
        run.validation = pixels, labels


class DamagedImages(Injection):
    """A few validation images are replaced by damaged copies: inverted and overexposed."""

    name, cause = "damaged validation images", "few_examples"
    decoy = True
    needs = CALM
    tune, report = (6, 7, 8), (5, 7, 8)
    patience = 3

    def begin(self, run: Run) -> None:
        pixels, labels = run.validation
        pixels = pixels.astype(np.float32)
        chosen = run.rng.permutation(len(labels))[: int(self.strength)]
        pixels[chosen] = (255 - pixels[chosen]) * 6
        worse = run.losses(pixels, labels)[chosen]
        labels = labels.copy()
        labels[chosen[worse < 1]] = (labels[chosen[worse < 1]] + 1) % run.classes
        run.validation = pixels, labels


class OtherCamera(Injection):
    """Validation images are darker from now on, as from another camera."""

    name, cause = "darker validation images", "distribution_shift"
    decoy = True
    tune, report = (0.7, 0.5, 0.3), (0.6, 0.45, 0.25)
    patience = 3

    def begin(self, run: Run) -> None:
        pixels, labels = run.validation
        run.validation = (pixels * self.strength).astype(np.uint8), labels


class OtherScaling(Injection):
    """Validation images are shrunk and enlarged again, which removes fine detail."""

    name, cause = "blurred validation images", "distribution_shift"
    decoy = True
    tune, report = (2, 4, 8), (2, 4, 8)
    patience = 3

    def begin(self, run: Run) -> None:
        pixels, labels = run.validation
        k = int(self.strength)
        n, height, width, channels = pixels.shape
        small = pixels.reshape(n, height // k, k, width // k, k, channels).mean((2, 4))
        run.validation = small.repeat(k, 1).repeat(k, 2).astype(np.uint8), labels


class LearningRate(Injection):
    """The learning rate is many times higher for one epoch, unreported."""

    name, cause = "learning rate pulse", "overshoot"
    tune, report = (80, 160, 320), (70, 140, 400)

    def begin(self, run: Run) -> None:
        run.learning_rate *= self.strength

    def end(self, run: Run) -> None:
        run.learning_rate /= self.strength


class GiantStep(Injection):
    """A single step is very long, because its learning rate is very high."""

    name, cause = "one giant step", "overshoot"
    tune, report = (500, 1000, 2000), (600, 1200, 2500)

    def before_step(self, run: Run, step: int) -> None:
        if step == len(run.batches) * 3 // 4:
            run.learning_rate *= self.strength

    def after_step(self, run: Run, step: int) -> None:
        if step == len(run.batches) * 3 // 4:
            run.learning_rate /= self.strength


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


class LostOptimizer(Injection):
    """A restart in the middle of the epoch loses the optimizer's moments, which makes the next steps long."""

    name, cause = "optimizer state lost", "run_event"
    tune, report = (20, 60, 150), (25, 50, 200)

    def before_step(self, run: Run, step: int) -> None:
        if step == len(run.batches) // 2:
            run.events.append(Event("optimizer_reset", run.epoch, step))
            rate = run.learning_rate
            for variable in run.optimizer.variables:
                variable.assign(np.zeros(variable.shape, variable.dtype))
            run.learning_rate = rate * self.strength

    def end(self, run: Run) -> None:
        run.learning_rate /= self.strength


class LostStatistics(Injection):
    """A restart loses the moving statistics. The run reports the restart."""

    name, cause = "restart without statistics", "run_event"
    tune, report = (30, 20, 8), (25, 15, 5)
    """Steps between the reset and the evaluation."""

    def before_step(self, run: Run, step: int) -> None:
        if step == max(len(run.batches) - int(self.strength), 0):
            run.events.append(Event("restart", run.epoch, step))
            _forget(run)


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


class SilentlyLostStatistics(Injection):
    """The moving statistics are reset, unreported."""

    name, cause = "moving statistics reset", "batchnorm_statistics"
    tune, report = (40, 25, 8), (35, 20, 5)
    """Steps between the reset and the evaluation."""

    def before_step(self, run: Run, step: int) -> None:
        if step == max(len(run.batches) - int(self.strength), 0):
            _forget(run)


class StaleStatistics(Injection):
    """Moving statistics are blended with their initial values, as if the momentum were too high for so few steps."""

    name, cause = "stale moving statistics", "batchnorm_statistics"
    tune, report = (0.3, 0.5, 0.8), (0.25, 0.45, 0.9)

    def end(self, run: Run) -> None:
        for layer in run.norms:
            layer.moving_mean.assign((1 - self.strength) * np.array(layer.moving_mean))
            layer.moving_variance.assign((1 - self.strength) * np.array(layer.moving_variance) + self.strength)


class MoreDropout(Injection):
    """The dropout rate is raised permanently: in training, the next BatchNormalization sees a variance unlike that of inference."""

    name, cause = "raised dropout", "variance_shift"
    decoy = True
    tune, report = (0.8, 0.9, 0.95), (0.85, 0.92, 0.96)
    patience = 3

    def begin(self, run: Run) -> None:
        for layer in run.dropouts:
            layer.rate = self.strength


class FlippedBatches(Injection):
    """A few consecutive batches have wrong labels."""

    name, cause = "batches with wrong labels", "bad_batch"
    decoy = True
    tune, report = (3, 4, 6), (3, 5, 6)
    needs = HOT

    def begin(self, run: Run) -> None:
        first = len(run.batches) - 1 - int(self.strength)
        for number in range(first, first + int(self.strength)):
            pixels, labels = run.batches[number]
            run.batches[number] = pixels, (labels + 1) % run.classes


class CorruptBatch(Injection):
    """The pixels of one batch are on another scale."""

    name, cause = "a batch out of scale", "bad_batch"
    decoy = True
    tune, report = (6, 12, 30), (8, 16, 50)

    def begin(self, run: Run) -> None:
        number = len(run.batches) - 6
        pixels, labels = run.batches[number]
        run.batches[number] = pixels.astype(np.float32) * self.strength, labels


class TinyBatches(Injection):
    """Each batch of the epoch repeats a few images, so its gradient is mostly noise."""

    name, cause = "batches of few images", "gradient_noise"
    tune, report = (4, 3, 2), (4, 3, 2)
    needs = HOT

    def begin(self, run: Run) -> None:
        k = int(self.strength)
        run.batches = [(np.resize(x[:k], x.shape), np.resize(y[:k], y.shape)) for x, y in run.batches]


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


class WrongWay(Injection):
    """The last steps go up the gradient instead of down. The diagnosis knows no such cause."""

    name, cause = "gradient with the wrong sign", "unexplained"
    tune, report = (14, 18, 22), (15, 19, 23)
    needs = HOT

    def before_step(self, run: Run, step: int) -> None:
        run.gradient_sign = -1.0 if step >= len(run.batches) - int(self.strength) else 1.0

    def end(self, run: Run) -> None:
        run.gradient_sign = 1.0


class Explosion(Injection):
    """The learning rate is raised permanently, so far that the network never recovers."""

    name, cause = "explosion", "divergence"
    tune, report = (3000, 1e4, 1e5), (5000, 3e4, 1e6)
    patience = 3

    def begin(self, run: Run) -> None:
        if not getattr(self, "_raised", False):
            self._raised = True
            run.learning_rate *= self.strength


def _forget(run: Run) -> None:
    for layer in run.norms:
        layer.moving_mean.assign(np.zeros(layer.moving_mean.shape))
        layer.moving_variance.assign(np.ones(layer.moving_variance.shape))


INJECTIONS: list[type[Injection]] = [
    *(AugmentedEvaluation, TrainingModeEvaluation, WrongLabels, DamagedImages, UnluckyDraw, OtherCamera, OtherScaling),
    *(AnnouncedRate, LostOptimizer, LostStatistics, OtherWeights, FlippedBatches, CorruptBatch, LearningRate, GiantStep),
    *(SilentlyLostStatistics, StaleStatistics, MoreDropout, TinyBatches, WrongWay, Explosion),
]
