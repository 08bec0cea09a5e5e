"""The parts of the loss, their shares, and when they are measured."""

import json

import numpy as np
import pytest

from spikewise.curve import PARTS, Budget, parts, parts_from, shares, sizes


def _parts(epoch, loss, statistics=0.0, wandering=0.0, fit=0.3):
    """An epoch measured on four of its images."""
    raw = np.full(4, loss)
    clean = raw - statistics
    return parts(epoch, loss, raw, clean, clean - wandering, np.full(3, fit), 0.4)


def test_the_parts_add_up_to_the_loss():
    """The report calls them parts of it. The subset's mean differs from that of all images; the sum must not."""
    raw, clean, averaged = np.array([1.0, 2.0]), np.array([0.8, 1.5]), np.array([0.7, 1.5])
    found = parts(3, 1.7, raw, clean, averaged, np.array([0.2, 0.4]), 0.5)
    assert sum(getattr(found, name) for name in PARTS) == pytest.approx(1.7)
    assert (found.statistics, found.wandering, found.fit) == pytest.approx((0.35, 0.05, 0.3))
    assert parts_from(json.loads(json.dumps(found.as_dict()))) == found


def test_the_shares_of_the_changes_add_up_to_one_and_name_what_jumps():
    """ "71 % is statistics" must be a fraction of the changes between the epochs."""
    jumps = np.random.default_rng(1).normal(0, 0.3, 30)
    measured = [_parts(e, 1 + 0.01 * e + max(jump, 0), statistics=max(jump, 0)) for e, jump in enumerate(jumps)]
    found = shares(measured)
    assert sum(found.values()) == pytest.approx(1)
    assert found["statistics"] > 0.95
    assert shares(measured[:3]) is None
    assert shares([_parts(e, 1.0) for e in range(9)]) is None


@pytest.mark.parametrize(("images", "epochs"), [(512, 100), (1_376, 100), (5_888, 100), (100_000, 20)])
def test_the_budget_holds(images, epochs):
    """Measuring would slow training down by more than the setting says; one measurement at the start comes on top."""
    budget, cost = Budget(0.05), sizes(images).cost
    spent = cost * sum(budget.due(images, moved=bool(number % 3)) for number in range(epochs))
    assert min(0.5 * 0.05 * images * epochs, cost * epochs) - 2 * cost < spent <= 0.05 * images * epochs + cost


def test_every_epoch_is_measured_where_that_is_affordable():
    """A gap in the picture would need an explanation."""
    budget = Budget(0.05)
    assert all(budget.due(100_000, moved=False) for _ in range(10))
    assert not any(Budget(0.0).due(100_000, moved=True) for _ in range(10))


def test_what_is_saved_goes_to_an_epoch_in_which_the_loss_moves():
    """The epochs that a user asks about are those in which something happened."""
    calm, restless = Budget(0.05), Budget(0.05)
    assert [calm.due(1_376, moved=False) for _ in range(5)] == [True] + 4 * [False]  # the first one compares unseen images
    assert [restless.due(1_376, moved=epoch == 4) for epoch in range(5)] == [True] + 3 * [False] + [True]
    assert calm.due(1_376, moved=False, always=True)


def test_a_run_above_guessing_is_measured_at_once_but_not_for_ever():
    """A user would learn in epoch 16 what was wrong from the second one on; or an hour of it would be measured in every epoch."""
    budget, images = Budget(0.05), 1_376
    due = [budget.due(images, moved=True, urgent=True) for _ in range(100)]
    assert due[:3] == [True] * 3
    assert sizes(images).cost * sum(due) <= 0.05 * images * 100 + 3 * sizes(images).cost
