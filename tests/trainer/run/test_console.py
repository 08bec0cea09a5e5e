"""What a person sees."""

import pytest

from tests.trainer.report.runs import demo
from trainer.formatting import duration, size
from trainer.run.console import Console


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0.0 s"), (59.94, "59.9 s"), (200, "3m20s"), (7500, "2h05m")])
def test_durations_are_readable(seconds, shown):
    """Times left would be shown as thousands of seconds."""
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 bytes"), (999, "999 bytes"), (393e6, "393 MB"), (2e9, "2.0 GB"), (5e15, "5000 TB")]
)
def test_sizes_are_readable(count, shown):
    """Memory and disk would be shown as nine-digit numbers."""
    assert size(count) == shown


def test_an_epoch_is_one_line_outside_a_terminal(capsys):
    """Logs of a pod would hold escape codes, or break an epoch's line in two."""
    report = demo().history[0]
    with Console() as console:
        console.epoch(report, 100, report)
        console.warn("[bold]not markup[/bold]")
    first, second = capsys.readouterr().out.strip().splitlines()
    assert first.startswith("epoch   1/100  loss ")
    assert f"val_loss {report.validation_loss:.4f}" in first
    assert first.endswith("best")
    assert second == "warning: [bold]not markup[/bold]"
