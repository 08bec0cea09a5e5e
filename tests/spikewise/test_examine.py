import pytest

from spikewise.examine import Credit


def test_suspicions_stay_within_their_part_of_the_training_time():
    """Noisy runs would spend more time on rises that are no spikes than the user allows."""
    credit, epochs, size, spent = Credit(0.1), 400, 32, 0.0
    for _ in range(epochs):
        credit.earn(300, 20, size)
        while credit.screen():
            spent += credit.screening
            credit.charge()
            spent += credit.probes
    saved = 3 * credit.screening + credit.probes  # an empty account is allowed one round before the first epoch
    assert 0.8 * 0.1 * epochs * 20 * size < spent < 0.1 * epochs * 20 * size + saved


def test_what_is_saved_is_bounded():
    """After a quiet hour, a restless epoch would wait for many probes at once."""
    credit = Credit(0.1)
    for _ in range(1000):
        credit.earn(300, 20, 32)
    rounds = 0
    while credit.screen():
        credit.charge()
        rounds += 1
    assert rounds == 1
    assert credit.saved == pytest.approx(2 * credit.screening)


def test_without_a_budget_nothing_is_screened():
    """budget = 0 would not switch it off."""
    credit = Credit(0)
    credit.earn(300, 20, 32)
    assert not credit.screen()
