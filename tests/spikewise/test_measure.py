"""The parts of the loss and the standing causes, measured on a small real network in training."""

import numpy as np
import pytest

from spikewise.curve import PARTS
from spikewise.standing import EARLY
from tests.spikewise.training import DiagnosedTraining

EPOCHS = 6


@pytest.fixture(scope="module")
def fresh():
    training = DiagnosedTraining(budget=1.0)
    training.remember()
    return training


@pytest.fixture
def watched(fresh):
    """A network whose training is watched from its first epoch on; every epoch is measured."""
    fresh.restore()
    return fresh


def test_the_parts_of_a_healthy_run_add_up_and_nothing_stands(watched):
    """The sum would not be the loss that the user sees; or every healthy run would be blamed."""
    news = [watched.close() for _ in range(EPOCHS)]
    assert [one.parts.epoch for one in news] == list(range(1, EPOCHS + 1))
    for one, mean in zip(news, watched.diagnostician.detector.means, strict=True):
        assert one.parts.loss == pytest.approx(mean)
        assert sum(getattr(one.parts, name) for name in PARTS) == pytest.approx(mean)
    assert abs(news[-1].parts.statistics) < 0.1
    assert watched.diagnostician.composition.standing == []


def test_statistics_that_never_fit_are_a_standing_cause_with_a_setting(watched):
    """A run whose whole curve is wrong would end with "No spike" and no advice."""

    def spoil() -> None:
        watched.norm.moving_mean.assign(watched.norm.moving_mean - 4)

    news = [watched.close(spoil) for _ in range(EPOCHS)]
    (standing,) = watched.diagnostician.composition.standing
    assert (standing.name, standing.epoch, standing.over) == ("statistics", EPOCHS, False)
    assert "model.statistics=precise" in standing.settings
    assert sum(len(one.standing) for one in news) == 1  # said once
    assert news[-1].parts.statistics > 0.5 * news[-1].parts.loss


def test_validation_images_prepared_in_another_way_are_found_in_the_first_epoch(watched):
    """From the second epoch on, this looks like overfitting."""
    watched.x[watched.validation] = 0.05 * watched.x[watched.validation] + 3
    (standing,) = [one for one in watched.close().standing if one.name == "preparation"]
    assert "training images that the network had not seen either" in standing.finding


def test_a_network_that_learns_nothing_is_called_so_in_the_fifth_epoch():
    """A run with foreign labels or a rate near 0 would train for hours before anything is said: the budget measures it rarely."""
    training = DiagnosedTraining(budget=0.01)
    training.optimizer.learning_rate.assign(0.0)
    named = {epoch: [one.name for one in training.close().standing] for epoch in range(1, EPOCHS + 1)}
    assert named == {epoch: ["fit"] if epoch == EARLY else [] for epoch in named}


def test_measuring_leaves_everything_bit_for_bit(watched):
    """The diagnosis would change the run."""
    state = []
    watched.close(lambda: state.extend(np.array(variable.value) for variable in watched.variables()))
    assert len(watched.diagnostician.composition.parts) == 1
    for value, variable in zip(state, watched.variables(), strict=True):
        np.testing.assert_array_equal(np.array(variable.value), value)


def test_a_resumed_run_measures_as_an_undisturbed_one(watched):
    """The report of a resumed run would lack epochs, or repeat its standing causes."""
    for _ in range(3):
        watched.close()
    facts, arrays = watched.diagnostician.state()
    other = watched.diagnosing()
    other.restore(facts, arrays, at_epoch_end=True)
    assert other.findings == watched.diagnostician.findings
