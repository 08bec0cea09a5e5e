"""Moving statistics with another momentum, against training with that momentum."""

import numpy as np
import pytest

from spikewise.moments import Counterfactuals, alternatives, batch_moments, moved, movers

KEPT = np.full(4, 0.99)


def _train(momentum, batches, start):
    """The moving statistics before the first and after every batch, as a layer in float32 keeps them."""
    values = [np.asarray(start, np.float32)]
    for batch in batches:
        values.append(np.float32(momentum) * values[-1] + np.float32(1 - momentum) * np.float32(batch))
    return np.array(values)


@pytest.fixture
def epochs():
    """Moments [2 epochs, 30 steps, 4] of batches; the last unit is off except in one batch."""
    batches = np.random.default_rng(0).gamma(2, 1, (2, 30, 4))
    batches[:, :, 3] = 0
    batches[1, 20, 3] = 50
    return batches


def test_the_moments_of_each_batch_follow_from_the_statistics(epochs):
    """Everything else rests on them."""
    trace = _train(0.99, epochs[0], np.zeros(4))
    np.testing.assert_allclose(batch_moments(trace, KEPT), epochs[0], rtol=1e-4, atol=1e-4)


def test_another_momentum_gives_what_training_with_it_gives(epochs):
    """The advice would be a guess instead of a measurement."""
    start = np.array([0, 1, 0, 1.0])
    tried, own = Counterfactuals(), start[None]
    for batches in epochs:
        own = _train(0.99, batches, own[-1])
        tried.update(own, KEPT)
    assert [tried.settled(np.full(4, momentum)) for momentum in (0.9, 0.98, 0.99)] == [True, True, False]
    lower, higher = alternatives(KEPT)
    assert (lower[0], higher[0]) == (0.9, 0.999)
    for found, momentum in zip(tried.now, (0.9, 0.999), strict=True):
        np.testing.assert_allclose(found, _train(momentum, np.concatenate(epochs), start)[-1], rtol=1e-3, atol=1e-4)


def test_a_replay_with_another_momentum_begins_with_the_statistics_of_that_momentum(epochs):
    """With 0.999, a replay of a few epochs would show the run's own statistics, and prove that they are the remedy."""
    start = np.array([0, 1, 0, 1.0])
    run, resumed = Counterfactuals(), Counterfactuals()
    run.update(_train(0.99, epochs[0], start), KEPT)
    resumed.restore(*run.state())
    expected = _train(0.999, epochs[0], start)[-1]
    np.testing.assert_allclose(resumed.trained_with(np.full(4, 0.999)), expected, rtol=1e-3, atol=1e-4)
    assert resumed.trained_with(KEPT) is None  # the control changes nothing
    assert resumed.trained_with(np.full(4, 0.5)) is None
    with pytest.raises(ValueError, match=r"momenta 0\.9, 0\.999 would give, not 0\.9995"):
        resumed.trained_with(np.full(4, 0.9995))


def test_a_resumed_run_continues_and_another_network_starts_anew(epochs):
    """The report of a resumed run would differ, or mix the statistics of two networks."""
    whole, first, second = Counterfactuals(), Counterfactuals(), Counterfactuals()
    traces = [_train(0.99, epochs[0], np.zeros(4))]
    traces.append(_train(0.99, epochs[1], traces[0][-1]))
    for trace in traces:
        whole.update(trace, KEPT)
    first.update(traces[0], KEPT)
    second.restore(*first.state())
    second.update(traces[1], KEPT)
    np.testing.assert_array_equal(second.now, whole.now)
    second.update(traces[1][:, :2], KEPT[:2])  # two layers were frozen
    np.testing.assert_allclose(second.now[0], moved(traces[1][0, :2], batch_moments(traces[1][:, :2], KEPT[:2]), np.full(2, 0.9)))
    second.update(None, KEPT)
    assert second.now is None
    assert second.steps == 0


def test_a_batch_that_lights_up_a_unit_is_named(epochs):
    """The user would not know which images to look at."""
    trace = _train(0.99, epochs[1], np.array([2, 2, 2, 0.0]))
    found = movers(batch_moments(trace, KEPT), KEPT, trace[-1], [False, True, False, True])
    assert [(one.step, one.units.tolist()) for one in found] == [(20, [3])]
    assert not movers(batch_moments(trace, KEPT), KEPT, trace[-1], [False, True, False, False])


def test_momenta_have_a_lower_bound():
    """A momentum below 0.8 averages over fewer than five batches; one above the run's own is not lower."""
    for own, expected in ((0.99, 0.9), (0.9, 0.8), (0.999, 0.99), (0.7, 0.7)):
        assert alternatives(np.array([own])).lower[0] == pytest.approx(expected)
