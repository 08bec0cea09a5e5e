"""Each probe on a small real network: it finds what was done to the network, and leaves everything as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from spikewise import probes
from spikewise.detect import Resampler
from spikewise.keras.network import KerasNetwork
from spikewise.probes import Scene
from spikewise.records import Event, Spike

STEPS, BATCH, VALIDATION = 24, 16, 300
SNAPSHOTS = (6, 12, 18)


class _Training:
    """A network that learned to tell two clouds of points apart, and one more epoch of it that can be disturbed."""

    def __init__(self) -> None:
        keras.utils.set_random_seed(3)
        r = np.random.default_rng(3)
        self.y = r.integers(0, 2, (STEPS * BATCH + VALIDATION,)).astype(np.int32)
        self.x = (r.normal(0, 1, (len(self.y), 6)) + 1.2 * (2 * self.y[:, None] - 1) * (np.arange(6) < 3)).astype(np.float32)
        self.dropout = keras.layers.Dropout(0.2, seed=1)
        self.model = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(16, activation="relu"),
                self.dropout,
                keras.layers.BatchNormalization(momentum=0.8),
                keras.layers.Dense(2),
            ]
        )
        self.optimizer = keras.optimizers.Adam(3e-3)
        self.optimizer.build(self.model.trainable_variables)
        self._infer = tf.function(lambda x: self.model(x, training=False))
        self.validation = slice(STEPS * BATCH, None)
        self.batches = [(self.x[i : i + BATCH], self.y[i : i + BATCH]) for i in range(0, STEPS * BATCH, BATCH)]
        self.loss = keras.losses.SparseCategoricalCrossentropy(True, reduction=None)
        self.network = KerasNetwork(self.model, self.evaluate, self.batches.__getitem__, self.loss, self.optimizer.variables)
        self._compiled = {}
        for _ in range(6):
            path, self.earlier = self.epoch()
        self.reference, self.average, self.reference_losses = self.network.weights(), probes.average(path), self.evaluate()
        self._healthy = [np.array(variable.value) for variable in self._variables()]
        self._data = self.x.copy(), list(self.batches)

    def restore(self) -> None:
        """Back to the end of the last healthy epoch."""
        for variable, value in zip(self._variables(), self._healthy, strict=True):
            variable.assign(value)
        self.x[:], self.batches[:] = self._data
        self.dropout.rate, self.network.evaluate = 0.2, self.evaluate

    def _variables(self) -> list[keras.Variable]:
        return [*self.model.variables, *self.optimizer.variables]

    def evaluate(self) -> np.ndarray:
        return np.asarray(self.loss(self.y[self.validation], self._infer(self.x[self.validation])))

    def step(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """One update and its record."""
        weights = [variable.value for variable in self.model.trainable_variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.loss(y, self.model(x, training=True)))
        gradients, before = tape.gradient(loss, weights), [tf.identity(weight) for weight in weights]
        with tf.control_dependencies(before):
            self.optimizer.apply(gradients)
        norm = tf.linalg.global_norm(gradients)
        moved = tf.linalg.global_norm([tf.convert_to_tensor(now) - was for now, was in zip(weights, before, strict=True)])
        return tf.stack([loss, 0.0, norm, norm**2, moved, 0.0, 0.0])

    def epoch(self, before=None):
        """Weights along the epoch, and its step records; `before` is told the number of each step."""
        path, steps = [], []
        step = self._compiled.setdefault(self.dropout.rate, tf.function(self.step))  # the rate is a constant in it
        for number, (x, y) in enumerate(self.batches):
            if before:
                before(number)
            steps.append(step(x, y).numpy())
            if number + 1 in (*SNAPSHOTS, STEPS):
                path.append((number + 1, self.network.weights()))
        return path, np.array(steps)

    def scene(self, path, steps) -> Scene:
        """After that epoch, as the diagnosis sets it up."""
        losses = self.evaluate()
        rise = float(losses.mean() - self.reference_losses.mean())
        loss, baseline = float(losses.mean()), float(self.reference_losses.mean())
        spike = Spike(9, loss, baseline, 0.01, 0.05, rise=rise, low=rise, high=rise, error=0.01, images=VALIDATION)
        return Scene(
            network=self.network,
            spike=spike,
            resampler=Resampler(VALIDATION),
            losses=losses,
            reference_losses=self.reference_losses,
            reference=self.reference,
            path=[(0, self.reference), *path],
            reference_average=self.average,
            steps=steps,
            earlier=self.earlier,
            batch_size=BATCH,
        )

    def moving(self) -> list[keras.Variable]:
        return [self.model.weights[i] for i in self.network.statistics]


@pytest.fixture(scope="module")
def healthy():
    return _Training()


@pytest.fixture
def training(healthy):
    healthy.restore()
    return healthy


@pytest.fixture
def disturbed(training):
    """A scene in which every probe has something to do: statistics spoiled late, one batch out of scale."""
    training.batches[20] = (training.batches[20][0] * 30, training.batches[20][1])
    return training, training.scene(*training.epoch())


PROBES = {
    "evaluation": probes.evaluation,
    "few_examples": probes.few_examples,
    "path": probes.path,
    "statistics": probes.statistics,
    "variance_shift": probes.variance_shift,
    "line": probes.line,
    "averaged": probes.averaged,
    "bad_batches": lambda scene: probes.bad_batches(scene, 18, STEPS),
    "before_event": lambda scene: probes.before_event(scene, Event("restart", 9, 12)),
}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_leaves_everything_bit_for_bit_and_takes_at_most_three_passes(disturbed, name):
    """A run with diagnosis would not be the run without it, or a spike would cost as much as an epoch."""
    training, scene = disturbed
    kept = [*training.model.variables, *training.optimizer.variables]  # the dropout's random state is among them
    assert any(variable is training.dropout.seed_generator.state for variable in kept)
    before = [np.array(variable.value) for variable in kept]
    evaluations = 0
    evaluate = training.network.evaluate

    def counted() -> np.ndarray:
        nonlocal evaluations
        evaluations += 1
        return evaluate()

    for ready in ("clean_now", "clean_reference", "noise"):  # shared by several probes, and paid for once
        if name != "statistics":
            with training.network.untouched():
                getattr(scene, ready)
    training.network.evaluate = counted
    with training.network.untouched():
        found = PROBES[name](scene)
    found = found if isinstance(found, list) else [found]
    assert all(probe is not None for probe in found)
    assert evaluations == sum(probe.passes for probe in found) <= 3
    for variable, value in zip(kept, before, strict=True):
        np.testing.assert_array_equal(np.array(variable.value), value, err_msg=variable.path)


def test_spoiled_statistics_are_all_of_the_rise(training):
    """Lagging BatchNorm, the commonest cause, would not be found."""
    path, steps = training.epoch()
    for variable in training.moving():
        variable.assign(np.array(variable.value) + np.arange(16) % 3)
    path[-1] = (STEPS, training.network.weights())
    found = probes.statistics(training.scene(path, steps))
    assert found.fraction > 0.8
    assert 0.5 < found.low <= found.fraction <= found.high


def test_spoiled_weights_are_not_blamed_on_the_statistics(training):
    """Broken weights would be called lagging statistics, and the user would change the momentum."""
    path, steps = training.epoch()
    kernel = training.model.layers[-1].kernel
    kernel.assign(-np.array(kernel.value))
    path[-1] = (STEPS, training.network.weights())
    assert probes.statistics(training.scene(path, steps)).fraction < 0.1


def test_dropout_that_spoils_the_statistics_is_told_from_statistics_that_lag(training):
    """The variance shift would be called lag, though no momentum helps against it."""
    training.dropout.rate = 0.95
    raised = training.scene(*training.epoch())
    assert probes.variance_shift(raised).fraction > 0.5


def test_one_giant_step_is_undone_by_a_usual_one(training):
    """An overshoot would stay unexplained."""

    def faster(number: int) -> None:
        training.optimizer.learning_rate.assign(1.0 if number == 20 else 3e-3)

    scene = training.scene(*training.epoch(faster))
    found = probes.line(scene)
    assert found.facts["times"] > 20
    assert found.fraction > 0.5
    assert list(found.facts["losses"]) == sorted(found.facts["losses"])


def test_the_stretch_in_which_the_loss_rose_is_found(training):
    """The evidence would name steps that did nothing."""
    kernel = training.model.layers[-1].kernel

    def destroy(number: int) -> None:
        if number == 13:
            kernel.assign(-np.array(kernel.value))

    found = probes.path(training.scene(*training.epoch(destroy)))
    assert (found.facts["first"], found.facts["last"]) == (12, 18)
    assert found.fraction > 0.5
    assert found.passes <= 3


def test_weights_that_go_to_and_fro_are_well_on_average(training):
    """Noise of the gradients would stay unexplained."""
    path, steps = training.epoch()
    kernel = training.model.layers[0].kernel
    offset = np.random.default_rng(0).normal(0, 2, kernel.shape).astype(np.float32)
    moved = []
    for sign, (step, weights) in zip((1, -1, 1, -1), path, strict=True):
        moved.append((step, [w + sign * offset if w.shape == kernel.shape else w for w in weights]))
    training.model.set_weights(moved[-1][1])
    assert probes.averaged(training.scene(moved, steps)).fraction > 0.8


def test_a_batch_out_of_scale_is_found_and_undone(disturbed):
    """The user would not learn which images to look at."""
    _, scene = disturbed
    assert scene.rise.mean() > 0.05
    found = probes.bad_batches(scene, 18, STEPS)
    assert found.facts["batches"] == [20]
    assert found.fraction > 0.5


def test_an_epoch_of_ordinary_batches_has_no_bad_one(training):
    """Innocent images would be accused."""
    path, steps = training.epoch()
    training.model.layers[-1].kernel.assign(-np.array(training.model.layers[-1].kernel.value))
    path[-1] = (STEPS, training.network.weights())
    assert probes.bad_batches(training.scene(path, steps), 0, STEPS) is None


def test_a_few_images_that_rise_are_named_and_no_others(training):
    """The wrong images would be accused of being mislabelled."""
    path, steps = training.epoch()
    scene = training.scene(path, steps)
    scene.losses = scene.reference_losses + np.where(np.isin(np.arange(VALIDATION), (7, 90, 200)), 9.0, 0.0)
    found = probes.few_examples(scene)
    assert sorted(entry["image"] for entry in found.facts["images"]) == [7, 90, 200]
    assert found.fraction == pytest.approx(1, abs=0.01)
    assert found.facts["left"] == pytest.approx(0, abs=0.01)


def test_images_that_all_rise_alike_are_not_a_few(training):
    """A general rise would be blamed on single images."""
    path, steps = training.epoch()
    scene = training.scene(path, steps)
    scene.losses = scene.reference_losses + np.random.default_rng(0).normal(0.4, 0.05, VALIDATION)
    assert probes.few_examples(scene).fraction < 0.05


def test_an_evaluation_that_rolls_dice_is_caught(training):
    """Noise of the evaluation would be explained by something in the training."""
    path, steps = training.epoch()
    scene = training.scene(path, steps)
    r = np.random.default_rng(0)
    training.network.evaluate = lambda: training.evaluate() + r.exponential(0.5, VALIDATION)
    scene.losses = training.network.evaluate()
    again, _ = probes.evaluation(scene)
    assert again.facts["difference"] > 0.2
    assert abs(again.fraction) < 0.5  # the second evaluation has the rise as well


def test_changed_validation_images_show_in_the_earlier_weights(training):
    """A change of the data would be explained by something in the training."""
    path, steps = training.epoch()
    training.x[training.validation] *= -1
    again, earlier = probes.evaluation(training.scene(path, steps))
    assert again.facts["difference"] == 0
    assert earlier.fraction == pytest.approx(1, abs=0.1)


def test_what_came_after_an_event_is_told_from_what_came_before(training):
    """A restart would be blamed for a rise that was there before it."""
    kernel = training.model.layers[-1].kernel

    def destroy(number: int) -> None:
        if number == 13:
            kernel.assign(-np.array(kernel.value))

    scene = training.scene(*training.epoch(destroy))
    at_event, too_late = (probes.before_event(scene, Event("restart", 9, step)) for step in (12, 19))
    assert at_event.fraction > 0.5
    assert too_late.fraction < 0.5


@pytest.mark.parametrize("how", ["trainable=False", "training=False"])
def test_statistics_that_training_does_not_move_are_not_estimated_anew(how):
    """In transfer learning a frozen base would be probed with mean 0 and variance 0, and what is found mean nothing."""
    base_norm, head_norm = keras.layers.BatchNormalization(momentum=0.999), keras.layers.BatchNormalization(momentum=0.9)
    base = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), base_norm])
    base.trainable = how != "trainable=False"

    class Model(keras.Model):  # a functional one hands its own `training` to all its layers
        def __init__(self) -> None:
            super().__init__()
            self.base, self.norm, self.drop, self.last = base, head_norm, keras.layers.Dropout(0.5), keras.layers.Dense(2)

        def call(self, x, training=None):
            features = self.base(x, training=False if how == "training=False" else training)
            return self.last(self.drop(self.norm(features, training=training), training=training))

    model = Model()
    x = np.random.default_rng(0).normal(2, 3, (BATCH, 6)).astype(np.float32)
    model(x)
    loss = keras.losses.SparseCategoricalCrossentropy(True, reduction=None)
    network = KerasNetwork(model, lambda: np.zeros(1), lambda _: (x, np.zeros(BATCH, int)), loss)
    before = [variable.numpy() for variable in model.variables]
    assert {id(model.weights[i]) for i in network.statistics} == {id(head_norm.moving_mean), id(head_norm.moving_variance)}
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert network.momentum == 0.9 or how == "training=False"  # two layers may train: which one is not told
    with network.untouched():
        anew = probes.reestimated(network, network.weights(), [0])
    head = base(x, training=False).numpy()
    np.testing.assert_allclose(anew[network.statistics[0]], head.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(anew[network.statistics[1]], head.var(0), rtol=1e-4, atol=1e-5)
    kept = [i for i in range(len(anew)) if i not in network.statistics]
    assert all(np.array_equal(anew[i], network.weights()[i]) for i in kept)


def test_without_moving_statistics_nothing_is_evaluated_twice(training):
    """A network without BatchNormalization would pay three passes more than its probes report."""
    scene = training.scene(*training.epoch())
    seen, evaluate = [], training.network.evaluate
    training.network.evaluate = lambda: seen.append(1) or evaluate()
    training.network.statistics, kept = [], training.network.statistics
    try:
        with training.network.untouched():
            found = [*probes.evaluation(scene), probes.line(scene), probes.averaged(scene)]
    finally:
        training.network.statistics = kept
    assert len(seen) == sum(probe.passes for probe in found) == 7
