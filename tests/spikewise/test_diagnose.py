"""From a spike made on purpose to its name."""

import json
from contextlib import nullcontext

import numpy as np
import pytest

from spikewise import describe
from spikewise.detect import PATIENCE
from spikewise.diagnose import Diagnostician
from spikewise.examine import Credit
from spikewise.forecast import forecast, threshold
from spikewise.records import STEP, Event, diagnosis_from
from tests.spikewise.training import RATE, STEPS, DiagnosedTraining

EPOCHS = 10


@pytest.fixture(scope="module")
def healthy():
    """A network in training with a Diagnostician, after EPOCHS healthy epochs."""
    training = DiagnosedTraining()
    for _ in range(EPOCHS):
        training.close()
    training.remember()
    return training


@pytest.fixture
def training(healthy):
    healthy.restore()
    return healthy


def test_lost_statistics_are_named_and_nothing_is_changed(training):
    """Otherwise the most common cause of a spike would be missed, or the diagnosis itself would change the run."""
    state = []

    def lose() -> None:
        training.norm.moving_variance.assign(training.norm.moving_variance * 400)
        state.extend(np.array(variable.value) for variable in training.variables())

    known = len(training.diagnostician.diagnoses)
    news = training.close(lose)
    assert news.diagnosis is not None
    assert len(training.diagnostician.diagnoses) == known + 1
    assert news.diagnosis.verdict.name == "batchnorm_statistics"
    assert news.diagnosis.verdict.fraction > 0.5
    for value, variable in zip(state, training.variables(), strict=True):
        np.testing.assert_array_equal(np.array(variable.value), value)
    assert f"SPIKE in epoch {EPOCHS + 1}" in describe.block(news.diagnosis)
    stored = json.loads(json.dumps(news.diagnosis.as_dict()))  # as the report of a finished run reads it
    assert describe.block(diagnosis_from(stored)) == describe.block(news.diagnosis)


def test_a_network_whose_statistics_lag_for_long_is_not_called_lost(training):
    """Otherwise a run that recovers would be reported as the end of training."""

    def spoil() -> None:
        training.norm.moving_variance.assign(training.norm.moving_variance * 400)

    news = [training.close(spoil) for _ in range(PATIENCE + 1)]
    assert [resolved.spike.outcome for found in news for resolved in found.resolved] == ["level shift"]


def test_a_network_that_forgot_its_images_is_called_lost(training):
    """Otherwise a dead network would be called a level shift, and the user would train on."""
    weights = [variable for variable in training.model.trainable_variables if len(variable.shape) > 1]

    def destroy() -> None:
        for number, variable in enumerate(weights):
            variable.assign(np.random.default_rng(number).normal(0, 3 * variable.numpy().std(), variable.shape))

    news = [training.close(destroy) for _ in range(PATIENCE + 1)]
    resolved = [diagnosis for found in news for diagnosis in found.resolved]
    assert [diagnosis.verdict.name for diagnosis in resolved] == ["divergence"]


@pytest.mark.parametrize(("later", "blamed"), [(1, True), (3, False)])
def test_a_raised_learning_rate_is_remembered_for_two_epochs(training, later, blamed):
    """Harm often comes an epoch after a raise; otherwise the user would learn of long steps, but not where they came from."""
    training.close(events=[Event("learning_rate", EPOCHS + 1, 0, RATE, 10.0)])
    for _ in range(later - 1):
        training.close()
    facts, arrays = training.diagnostician.state()
    training.diagnostician.restore(json.loads(json.dumps(facts)), arrays, at_epoch_end=True)
    training.optimizer.learning_rate.assign(10.0)
    news = training.close()
    assert news.diagnosis is not None
    assert (news.diagnosis.verdict.name == "run_event") == blamed  # what else is named depends on the last bits of so wild a step
    assert (f"in epoch {EPOCHS + 1};" in news.diagnosis.verdict.evidence) == blamed


def test_a_restored_diagnostician_continues_like_an_undisturbed_one(training):
    """Otherwise a resumed run would explain a spike differently than a run that was not interrupted."""
    facts, arrays = training.diagnostician.state()
    assert all(array.dtype.kind == "f" and array.dtype.names is None for array in arrays.values())  # as safetensors needs them
    resumed = training.diagnosing()
    resumed.restore(json.loads(json.dumps(facts)), arrays, at_epoch_end=True)
    both = (training.diagnostician, resumed)

    def after(done: int) -> None:
        for one in both:
            if done in one.snapshots(STEPS):
                one.snapshot(done)

    training.batches[20] = (training.batches[20][0] * 30, training.batches[20][1])
    steps = training.epoch(after=after)
    first, second = (one.close_epoch(training.evaluate(), training.sample(), steps, learning_rate=RATE) for one in both)
    assert first.diagnosis is not None
    assert second.diagnosis is not None
    assert second.diagnosis.verdict.name == first.diagnosis.verdict.name == "bad_batch"
    assert second.diagnosis.verdict.fraction == pytest.approx(first.diagnosis.verdict.fraction, abs=0.02)  # other dropout masks


class _OneWeight:
    """A network whose only weight is the number of the epoch; the losses of each epoch are given."""

    statistics: tuple[int, ...] = ()
    kept: tuple[float, ...] = ()
    drops = False

    def __init__(self, losses) -> None:
        self.losses, self.weight, self.evaluations, self.bad = losses, 0.0, 0, None

    def untouched(self):
        return nullcontext()

    def weights(self):
        return [np.array([self.weight])]

    def assign(self, weights) -> None:
        self.weight = float(weights[0][0])

    def evaluate(self):
        self.evaluations += 1
        return self.losses[round(self.weight)]

    def evaluate_part(self, most):
        losses = self.losses[round(self.weight)]
        return np.arange(len(losses))[:most], losses[:most]

    def sample_part(self, most):
        return np.full(min(most, 8), 0.3)

    def batch_losses(self, batch):
        return np.full(8, 5.0 if batch == self.bad else 0.3)


def _last_diagnosis(losses, sampled, predict=None):
    """The diagnosis of the last of these epochs: validation losses [k, n], training losses [k]."""
    network = _OneWeight(losses)
    diagnostician = Diagnostician(network, batch_size=8)
    steps = np.array([(0.3, 1, 2, 1e-3)] * 10, STEP)
    for number, sample in enumerate(sampled):
        network.weight = float(number)
        news = diagnostician.close_epoch(losses[number], np.full(8, sample), steps, predict=predict)
    return news.diagnosis


def test_step_records_may_have_further_fields():
    """The job's own step records also count correct answers; the diagnosis must take them as they are, in any order."""
    losses = np.full((8, 300), 0.5) + 0.01 * np.sin(np.arange(8))[:, None]
    losses[-1] += 0.5
    fields = [(name, np.float32) for name in ("correct", "learning_rate", "update_norm", "gradient_norm", "loss")]
    records = np.array([(7, 1e-3, 2, 1, 0.3)] * 10, fields)
    network = _OneWeight(losses)
    diagnostician = Diagnostician(network, batch_size=8)
    for number, epoch in enumerate(losses):
        network.weight = float(number)
        steps = records.copy()
        steps["update_norm"][5] *= 1 + 9 * (number == 7)
        news = diagnostician.close_epoch(epoch, np.full(8, 0.3), steps)
    assert news.diagnosis.training.length == pytest.approx(10)
    assert news.diagnosis.training.length_at == 5


def test_a_rise_over_two_epochs_that_training_images_share_is_no_shift_of_the_validation_images():
    """Otherwise one epoch of training images would be compared with two epochs of validation images."""
    means = np.array([*(0.7 + 0.005 * np.sin(np.arange(16))), 0.76, 0.9])
    losses = means[:, None] + np.random.default_rng(0).normal(0, 0.05, 300)
    found = _last_diagnosis(losses, means - 0.2)
    assert found.spike.rise > 0.14
    assert found.training.validation_rise == pytest.approx(found.training.train_rise)
    assert found.training.train_rise == pytest.approx(0.14)
    assert found.verdict.name == "unexplained"


def test_images_without_a_finite_loss_are_named():
    """Otherwise two damaged images would make a spike that nothing explains."""
    losses = np.full((8, 300), 0.5) + 0.01 * np.sin(np.arange(8))[:, None]
    losses[-1, [7, 90]] = np.inf, np.nan
    found = _last_diagnosis(losses, losses[:, 0], lambda images: dict.fromkeys(images, ("cat", "dog", 0.99)))
    assert found.spike.outcome == "open"
    assert found.verdict.name == "few_examples"
    assert sorted(one.image for one in found.suspects) == [7, 90]
    assert describe.name(found) == "2 images, probably mislabelled"


@pytest.mark.parametrize(("batch", "verdict"), [(0.3, "unexplained"), (np.nan, "divergence")])
def test_a_validation_loss_that_is_not_finite_is_a_divergence_only_if_training_is_lost_too(batch, verdict):
    """A user would go back to an earlier checkpoint and lower the learning rate, although training goes on as ever."""
    losses = np.full((9, 300), 0.5) + 0.01 * np.sin(np.arange(9))[:, None]
    losses[-2:] = np.nan
    network = _OneWeight(losses)
    diagnostician = Diagnostician(network, batch_size=8)
    found = []
    for number, epoch in enumerate(losses):
        network.weight = float(number)
        steps = np.array([(batch if number > 6 else 0.3, 1, 2, 1e-3)] * 10, STEP)
        found.append(diagnostician.close_epoch(epoch, np.full(8, 0.3), steps))
    assert found[7].diagnosis.verdict.name == verdict
    assert (diagnostician.diagnoses[0].spike.outcome == "divergence") == (verdict == "divergence")
    assert len(diagnostician.diagnoses) == 1
    assert "diverged" not in describe.headline(diagnostician.diagnoses[0].spike) or verdict == "divergence"
    assert json.loads(json.dumps(diagnostician.state()[0]))["diagnoses"][0]["causes"][0]["name"] == verdict


def test_a_rise_that_training_images_share_is_not_called_chance():
    """The user would collect validation images for a spike that the network made."""
    r = np.random.default_rng(0)
    losses = np.full((9, 40), 0.5) + 0.01 * np.sin(np.arange(9))[:, None]
    losses[-1] += np.where(np.arange(40) % 8, 0.0, 3.0) * r.uniform(0.5, 1.5, 40)
    sampled = np.array([*(0.4 + 0.01 * np.sin(np.arange(8))), 0.8])
    assert _last_diagnosis(losses, sampled).verdict.name != "sampling_noise"
    assert _last_diagnosis(losses, np.full(9, 0.4)).verdict.name == "sampling_noise"


def test_a_first_epoch_without_a_finite_loss_is_diagnosed():
    """Otherwise a run that was broken from the start would have no diagnosis, or one that expected a loss of nan."""
    found = _last_diagnosis(np.full((1, 300), np.nan), [np.nan])
    assert found.verdict.name == "divergence"
    assert "nan" not in describe.block(found)
    assert found.verdict.remedy == "restart with a tenth of the learning rate."


def test_an_epoch_without_an_alarm_is_diagnosed_when_asked():
    """A user could not learn why the loss rose by a third, because an alarm needs half."""
    losses = np.full((8, 300), 0.5) + 0.01 * np.sin(np.arange(8))[:, None] + np.random.default_rng(0).normal(0, 0.02, 300)
    losses[-1, :3] += 5.0
    steps = np.array([(0.3, 1, 2, 1e-3)] * 10, STEP)
    for asked in (False, True):
        network = _OneWeight(losses)
        diagnostician = Diagnostician(network, batch_size=8)
        for number in range(8):
            network.weight = float(number)
            before = diagnostician.state()[0]["detector"]["spikes"]
            news = diagnostician.close_epoch(losses[number], np.full(8, 0.3), steps, asked=asked and number == 7)
        assert (news.diagnosis is not None) == asked
        assert diagnostician.detector.spikes == before == []  # the detector judges as ever
    spike = news.diagnosis.spike
    assert spike.epoch == 8
    assert 0 < spike.rise < spike.threshold
    assert spike.low <= spike.rise <= spike.high
    assert sorted(one.image for one in news.diagnosis.suspects) == [0, 1, 2]


def _small_rise():
    """Losses [20, 300] that rise in the last epoch by three quarters of what an alarm needs."""
    means = 0.5 + np.random.default_rng(0).normal(0, 0.02, 20)
    expected, scale = forecast(np.arange(1, 20), means[:-1], 20)
    means[-1] = expected + 0.75 * threshold(expected, scale)
    return np.repeat(means, 300).reshape(20, 300)


@pytest.mark.parametrize("kind", ["event", "bad batch", "usual steps", "nothing explains it", "no budget"])
def test_a_smaller_rise_is_a_spike_if_unusual_steps_explain_it(kind):
    """A fault that raises the loss by a tenth would go unreported, or each larger fluctuation be an alarm."""
    losses, explained = _small_rise(), {"event": "run_event", "bad batch": "bad_batch"}
    network = _OneWeight(losses)
    diagnostician = Diagnostician(network, batch_size=8, budget=0.0 if kind == "no budget" else 0.05)
    for number, epoch in enumerate(losses):
        network.weight, last = float(number), number == 19
        steps = np.array([(0.3, 1, 2, 1e-3)] * 10, STEP)
        events = [Event("learning_rate", 20, 0, 1e-3, 1e-2)] if last and kind == "event" else []
        steps["loss"][5] += 5.0 * (last and kind not in ("event", "usual steps"))
        network.bad = 5 if last and kind in ("bad batch", "no budget") else None
        evaluations = network.evaluations
        found = diagnostician.close_epoch(epoch, np.full(8, 0.3), steps, events=events).diagnosis
    detector = diagnostician.detector
    assert (network.evaluations > evaluations) == (kind in explained)  # all probes of each larger fluctuation would cost too much
    if kind in explained:
        assert found.verdict.name == explained[kind]
        assert found.spike.threshold < found.spike.rise < 2 * found.spike.threshold
        assert (detector.spikes, detector.ordinary[-1], detector.largest.epoch < 20) == ([found.spike], 19, True)
        assert diagnostician.close_epoch(losses[0], np.full(8, 0.3), steps).resolved[0].spike.outcome == "recovered"
    else:
        assert (found, detector.spikes, detector.ordinary[-1], detector.largest.epoch) == (None, [], 20, 20)


def test_a_suspicion_is_looked_at_only_if_its_probes_can_be_paid_also_after_a_restart():
    """A run that is restarted each day would probe every fluctuation; or a look without consequences would use up the credit."""
    losses, steps = _small_rise(), np.array([(0.3, 1, 2, 1e-3)] * 10, STEP)
    network = _OneWeight(losses)
    diagnostician = Diagnostician(network, batch_size=8)
    for number, epoch in enumerate(losses[:-1]):
        network.weight = float(number)
        diagnostician.close_epoch(epoch, np.full(8, 0.3), steps)
    facts, arrays = json.loads(json.dumps(diagnostician.state()[0])), diagnostician.state()[1]
    costs = Credit(0.05)
    costs.earn(300, 10, 8)
    screen, all_probes = costs.screening, costs.probes
    assert facts["credit"] == pytest.approx(3 * screen + all_probes)
    network.bad, steps["loss"][5] = 5, 5.3
    for credit in (screen + all_probes, 0.99 * all_probes):
        network.weight = 18.0
        resumed = Diagnostician(network, batch_size=8)
        resumed.restore({**facts, "credit": credit}, arrays, at_epoch_end=True)
        network.weight = 19.0
        found = resumed.close_epoch(losses[-1], np.full(8, 0.3), steps).diagnosis
        assert (found is not None) == (credit > all_probes)
        assert resumed.state()[0]["credit"] == pytest.approx(all_probes if found else credit, abs=2)  # an epoch earns a little


def test_an_asked_epoch_below_the_one_before_it_is_not_explained_backwards():
    """Every changed condition would seem to remove a rise that there is not, or to add to it."""
    losses = np.repeat([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.1, 1.07], 300).reshape(9, 300)
    network = _OneWeight(losses)
    diagnostician = Diagnostician(network, batch_size=8)
    steps = np.array([(0.3, 1, 2, 1e-3)] * 10, STEP)
    for number, epoch in enumerate(losses):
        network.weight = float(number)
        found = diagnostician.close_epoch(epoch, np.full(8, 0.3), steps, asked=number == 8).diagnosis
    assert (found.verdict.name, found.probes) == ("unexplained", ())
    assert "not above that of the epoch before it" in found.verdict.evidence


@pytest.mark.parametrize("cross_entropy", [True, False])
def test_the_loss_of_guessing_is_known_for_cross_entropies_alone(cross_entropy):
    """A squared error below 0.25 would be called lost, or a run with a large penalty worse than guessing."""
    labels = np.array([0, 1] * 150)
    diagnostician = Diagnostician(_OneWeight(np.zeros((1, 300))), batch_size=8, labels=labels, cross_entropy=cross_entropy)
    assert diagnostician.course.guess == pytest.approx(np.log(2) if cross_entropy else np.inf)


def test_an_epoch_that_did_not_rise_has_nothing_to_explain():
    """Otherwise fractions of a fall would be reported as causes."""
    losses = np.full((4, 300), 0.5) - 0.1 * np.arange(4)[:, None]
    network = _OneWeight(losses)
    diagnostician = Diagnostician(network, batch_size=8)
    steps = np.array([(0.3, 1, 2, 1e-3)] * 10, STEP)
    assert all(diagnostician.close_epoch(epoch, np.full(8, 0.3), steps, asked=True).diagnosis is None for epoch in losses)


def test_a_discarded_epoch_leaves_no_snapshots():
    """Otherwise snapshots of an interrupted epoch would be taken for those of the next one, and steps be blamed that never were."""
    losses = np.full((9, 300), 0.5) + 0.01 * np.sin(np.arange(9))[:, None]
    losses[-1] += 0.5
    network = _OneWeight(losses)
    diagnostician = Diagnostician(network, batch_size=8)
    steps = np.array([(0.3, 1, 2, 1e-3)] * 10, STEP)
    for number, epoch in enumerate(losses):
        network.weight = 1000.0
        diagnostician.snapshot(5)
        diagnostician.discard_epoch()
        network.weight = float(number)
        news = diagnostician.close_epoch(epoch, np.full(8, 0.3), steps)
    assert news.diagnosis.training.foreign is None


def test_validation_images_of_one_class_have_no_loss_of_guessing():
    """A network would be called untrained because its loss is above that of guessing: 0."""
    for labels, expected in ((np.zeros(8, int), np.inf), (np.array([0, 1]), np.log(2)), (None, np.inf)):
        assert Diagnostician(None, batch_size=32, labels=labels).course.guess == pytest.approx(expected)
