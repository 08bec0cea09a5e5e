"""trainer.epoch: which epoch is the best."""

import math

import pytest

from tests.support.epochs import report
from trainer.epoch import best


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([0.7, math.nan, 0.5, 0.5, math.inf], 3), ([0.2, -math.inf], 1), ([math.nan, math.inf], None), ([], None)],
)
def test_the_best_epoch_is_the_earliest_with_the_lowest_finite_loss(losses, expected):
    """keep = "best" would export a diverged network; console, report and metrics would name different epochs."""
    found = best([report(epoch, loss) for epoch, loss in enumerate(losses, 1)])
    assert (found and found.epoch) == expected
