"""trainer.epoch: which epoch is the best."""

from dataclasses import replace

from tests.trainer.report.test_summary import demo
from trainer.epoch import best


def test_the_best_epoch_is_the_earliest_of_the_lowest_finite_losses():
    """keep = "best" would choose an epoch of a diverged network; console, report and metrics would name different epochs."""
    first, *_ = demo().history
    losses = [0.7, float("nan"), 0.5, 0.5, float("inf")]
    history = [replace(first, epoch=epoch, validation_loss=loss) for epoch, loss in enumerate(losses, 1)]
    assert best(history).epoch == 3
    assert best(history[1:2]) is None
