"""Each probe on a small real network: it finds what was done to the network, and leaves everything as it was."""

import keras
import numpy as np
import pytest

from spikewise import batches, outputs, probes
from spikewise.keras.network import KerasNetwork
from spikewise.records import Event
from tests.spikewise.training import BATCH, STEPS, VALIDATION


@pytest.fixture
def disturbed(training):
    """A scene in which every probe has something to do: one batch is out of scale."""
    training.batches[20] = (training.batches[20][0] * 30, training.batches[20][1])
    return training, training.scene(*training.snapshots())


def _few(scene):
    return probes.few_examples(scene.spike, scene.losses, scene.reference_losses)


PROBES = {
    "evaluation": probes.evaluation,
    "few_examples": _few,
    "path": probes.path,
    "statistics": probes.statistics,
    "variance_shift": probes.variance_shift,
    "line": probes.line,
    "averaged": probes.averaged,
    "bad_batches": lambda scene: batches.bad_batches(scene, 18, STEPS),
    "temperature": outputs.temperature,
    "before_event": lambda scene: probes.before_event(scene, Event("restart", 9, 12)),
}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_leaves_everything_bit_for_bit_and_takes_at_most_three_passes(disturbed, name, monkeypatch):
    """Otherwise the diagnosis would change the run, or cost as much as an epoch of training."""
    training, scene = disturbed
    kept = training.variables()
    assert any(variable is training.dropout.seed_generator.state for variable in kept)
    before = [np.array(variable.value) for variable in kept]
    evaluations = 0
    evaluate = training.network.evaluate

    def counted() -> np.ndarray:
        nonlocal evaluations
        evaluations += 1
        return evaluate()

    for ready in ("clean_now", "clean_reference", "noise"):  # shared by several probes, and computed once
        if name != "statistics":
            with training.network.untouched():
                getattr(scene, ready)

    def counted_probabilities() -> np.ndarray:
        nonlocal evaluations
        evaluations += 1
        return training.probabilities()

    training.network.evaluate = counted
    monkeypatch.setattr(training.network, "probabilities", counted_probabilities)
    with training.network.untouched():
        found = PROBES[name](scene)
    found = found if isinstance(found, list) else [found]
    assert all(probe is not None for probe in found)
    assert evaluations == sum(probe.passes for probe in found) <= 3
    for variable, value in zip(kept, before, strict=True):
        np.testing.assert_array_equal(np.array(variable.value), value, err_msg=variable.path)


def test_spoiled_statistics_are_all_of_the_rise(training):
    """Otherwise lagging BatchNorm statistics, the most common cause, would not be found."""
    path, steps = training.snapshots()
    for variable in training.moving():
        variable.assign(np.array(variable.value) + np.arange(16) % 3)
    path[-1] = (STEPS, training.network.weights())
    found = probes.statistics(training.scene(path, steps))
    assert found.fraction > 0.8
    assert 0.5 < found.low <= found.fraction <= found.high


def test_spoiled_weights_are_not_blamed_on_the_statistics(training):
    """Otherwise broken weights would be called lagging statistics, and the user would change the momentum in vain."""
    path, steps = training.snapshots()
    kernel = training.model.layers[-1].kernel
    kernel.assign(-np.array(kernel.value))
    path[-1] = (STEPS, training.network.weights())
    assert probes.statistics(training.scene(path, steps)).fraction < 0.1


def test_dropout_that_distorts_the_statistics_is_distinguished_from_a_lag(training):
    """Otherwise the variance shift would be called a lag, and no momentum helps against it."""
    training.dropout.rate = 0.95
    raised = training.scene(*training.snapshots())
    assert probes.variance_shift(raised).fraction > 0.5


def test_one_giant_step_is_undone_by_a_usual_one(training):
    """Otherwise an overshoot would stay unexplained."""

    def faster(number: int) -> None:
        training.optimizer.learning_rate.assign(1.0 if number == 20 else 3e-3)

    scene = training.scene(*training.snapshots(faster))
    found = probes.line(scene)
    assert found.facts["times"] > 20
    assert found.fraction > 0.5
    assert list(found.facts["losses"]) == sorted(found.facts["losses"])


def test_the_stretch_in_which_the_loss_rose_is_found(training):
    """Otherwise the evidence would name steps that did nothing."""
    kernel = training.model.layers[-1].kernel

    def destroy(number: int) -> None:
        if number == 13:
            kernel.assign(-np.array(kernel.value))

    found = probes.path(training.scene(*training.snapshots(destroy)))
    assert (found.facts["first"], found.facts["last"]) == (12, 18)
    assert found.fraction > 0.5
    assert found.passes <= 3


def test_the_average_of_weights_is_that_of_numpy():
    """The sum of an epoch's parts would change in the last bits with the way that weights are added, or a snapshot with it."""
    generator = np.random.default_rng(0)
    path = [(i, [generator.normal(size=shape).astype(np.float32) for shape in ((64, 33), (7,), ())]) for i in range(7)]
    before = [[values.copy() for values in weights] for _, weights in path]
    for found, values in zip(probes.average(path), zip(*before, strict=True), strict=True):
        np.testing.assert_array_equal(found, np.mean(values, 0, dtype=np.float32), strict=True)
    for (_, weights), kept in zip(path, before, strict=True):
        for now, was in zip(weights, kept, strict=True):
            np.testing.assert_array_equal(now, was)


def test_oscillating_weights_are_well_on_average(training):
    """Otherwise gradient noise would stay unexplained."""
    path, steps = training.snapshots()
    kernel = training.model.layers[0].kernel
    offset = np.random.default_rng(0).normal(0, 2, kernel.shape).astype(np.float32)
    moved = []
    for sign, (step, weights) in zip((1, -1, 1, -1), path, strict=True):
        moved.append((step, [w + sign * offset if w.shape == kernel.shape else w for w in weights]))
    training.model.set_weights(moved[-1][1])
    assert probes.averaged(training.scene(moved, steps)).fraction > 0.8


def test_a_batch_out_of_scale_is_found_and_undone(disturbed):
    """Otherwise the user would not learn which images to look at."""
    _, scene = disturbed
    assert scene.rise.mean() > 0.05
    found = batches.bad_batches(scene, 18, STEPS)
    assert found.facts["batches"] == [20]
    assert found.fraction > 0.5


def test_an_epoch_of_ordinary_batches_has_no_bad_one(training):
    """Otherwise the user would search ordinary images for a fault."""
    path, steps = training.snapshots()
    training.model.layers[-1].kernel.assign(-np.array(training.model.layers[-1].kernel.value))
    path[-1] = (STEPS, training.network.weights())
    assert batches.bad_batches(training.scene(path, steps), 0, STEPS) is None


def test_a_few_images_that_rise_are_named_and_no_others(training):
    """Otherwise the wrong images would be reported as mislabelled."""
    path, steps = training.snapshots()
    scene = training.scene(path, steps)
    scene.losses = scene.reference_losses + np.where(np.isin(np.arange(VALIDATION), (7, 90, 200)), 9.0, 0.0)
    found = _few(scene)
    assert sorted(entry["image"] for entry in found.facts["images"]) == [7, 90, 200]
    assert found.fraction == pytest.approx(1, abs=0.01)
    assert found.facts["left"] == pytest.approx(0, abs=0.01)


def test_images_that_all_rise_alike_are_not_a_few(training):
    """Otherwise a general rise would be blamed on single images."""
    path, steps = training.snapshots()
    scene = training.scene(path, steps)
    scene.losses = scene.reference_losses + np.random.default_rng(0).normal(0.4, 0.05, VALIDATION)
    assert _few(scene).fraction < 0.05


def test_a_random_evaluation_is_detected(training):
    """Otherwise noise in the evaluation would be blamed on the training."""
    path, steps = training.snapshots()
    scene = training.scene(path, steps)
    r = np.random.default_rng(0)
    training.network.evaluate = lambda: training.evaluate() + r.exponential(0.5, VALIDATION)
    scene.losses = training.network.evaluate()
    again, _ = probes.evaluation(scene)
    assert again.facts["difference"] > 0.2
    assert abs(again.fraction) < 0.5  # the second evaluation has the rise as well


def test_changed_validation_images_show_in_the_earlier_weights(training):
    """Otherwise changed validation data would be blamed on the training."""
    path, steps = training.snapshots()
    training.x[training.validation] *= -1
    again, earlier = probes.evaluation(training.scene(path, steps))
    assert again.facts["difference"] == 0
    assert earlier.fraction == pytest.approx(1, abs=0.1)


def test_a_rise_before_an_event_is_distinguished_from_one_after_it(training):
    """Otherwise a restart would be blamed for a rise that was there before it."""
    kernel = training.model.layers[-1].kernel

    def destroy(number: int) -> None:
        if number == 13:
            kernel.assign(-np.array(kernel.value))

    scene = training.scene(*training.snapshots(destroy))
    at_event, too_late = (probes.before_event(scene, Event("restart", 9, step)) for step in (12, 19))
    assert at_event.fraction > 0.5
    assert too_late.fraction < 0.5


@pytest.mark.parametrize("how", ["trainable=False", "training=False"])
def test_statistics_that_training_does_not_move_are_not_estimated_anew(how):
    """In transfer learning, a frozen base would otherwise be probed with mean 0 and variance 0, and every result be meaningless."""
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
    assert network.layers == [head_norm.name] * 2
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert network.momentum == 0.9 or how == "training=False"  # else both layers train, with two momenta
    with network.untouched():
        anew = probes.reestimated(network, network.weights(), [0])
    head = base(x, training=False).numpy()
    np.testing.assert_allclose(anew[network.statistics[0]], head.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(anew[network.statistics[1]], head.var(0), rtol=1e-4, atol=1e-5)
    kept = [i for i in range(len(anew)) if i not in network.statistics]
    assert all(np.array_equal(anew[i], network.weights()[i]) for i in kept)


def test_without_moving_statistics_nothing_is_evaluated_twice(training):
    """Otherwise a network without BatchNormalization would pay for three passes more than its probes report."""
    scene = training.scene(*training.snapshots())
    seen, evaluate = [], training.network.evaluate
    training.network.evaluate = lambda: seen.append(1) or evaluate()
    training.network.statistics, kept = [], training.network.statistics
    try:
        with training.network.untouched():
            found = [*probes.evaluation(scene), probes.line(scene), probes.averaged(scene)]
    finally:
        training.network.statistics = kept
    assert len(seen) == sum(probe.passes for probe in found) == 7
