"""benchmarks.takeovers: a few rounds with real processes."""

import pytest

from benchmarks import takeovers


@pytest.mark.integration
@pytest.mark.parametrize(("kind", "rounds"), [("folder", 8), ("s3", 4)])
def test_paused_hung_and_killed_drivers(kind: str, rounds: int) -> None:
    """A driver that lost its run would go on committing and delete its successor's checkpoints."""
    counts = takeovers.rounds(kind, rounds, parallel=4)
    assert counts["rounds"] == rounds
    assert counts["takeovers"] >= 0.75 * rounds
    assert counts["acknowledged"] > rounds
    assert {name: number for name, number in counts.items() if name.startswith("BROKEN") and number} == {}
