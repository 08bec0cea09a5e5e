"""Epochs that the callback did not watch."""

import numpy as np

from spikewise.diagnose import Diagnostician
from spikewise.keras.unwatched import same, skip

LOSSES = np.linspace(0.1, 0.9, 40)


def test_the_losses_with_which_a_fit_begins_stand_for_the_last_unwatched_epoch():
    """A rise in the first epoch after a restart would have nothing to be compared with."""
    facts, arrays = Diagnostician(None, batch_size=32).state()
    assert skip(facts, arrays, 3, LOSSES)
    detector = facts["detector"]
    assert detector["ordinary"] == [3]
    np.testing.assert_equal(detector["means"], [np.nan, np.nan, LOSSES.mean()])
    np.testing.assert_allclose(arrays["0/losses"], LOSSES, rtol=1e-6)
    assert len(arrays["0/steps"]) == 0


def test_epochs_between_two_fits_are_counted_alone():
    """The epochs before a gap would be forgotten, or losses that are not finite become the expected ones."""
    facts, arrays = Diagnostician(None, batch_size=32).state()
    assert not skip(facts, arrays, 1, np.full(40, np.nan))
    assert facts["detector"]["ordinary"] == []
    assert skip(facts, arrays, 1, LOSSES)
    assert not skip(facts, arrays, 2, 2 * LOSSES)
    assert facts["detector"]["ordinary"] == [2]
    assert len(facts["detector"]["means"]) == 4


def test_rounding_does_not_make_other_losses():
    """A model that was loaded again would be taken for another one, or another model for the same."""
    assert same(LOSSES * (1 + 1e-5), LOSSES)
    assert not same(LOSSES * 1.01, LOSSES)
    assert not same(LOSSES[:-1], LOSSES)
