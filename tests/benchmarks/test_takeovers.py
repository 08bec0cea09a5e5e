"""benchmarks.takeovers: a few rounds with real processes."""

import pytest

from benchmarks import takeovers


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["folder"])
def test_paused_hung_and_killed_drivers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that lost its run would go on committing and delete its successor's checkpoints."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "")  # what the rounds set is undone at the end
    counts = takeovers.rounds(kind, 8, parallel=4)
    assert counts["rounds"] == 8
    assert counts["takeovers"] >= 6
    assert counts["acknowledged"] > 8
    assert {name: number for name, number in counts.items() if name.startswith("BROKEN") and number} == {}
