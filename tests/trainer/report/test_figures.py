"""Which charts a report shows."""

import numpy as np
import pytest

from tests.trainer.report.runs import broken, demo, diagnosed, replayed
from trainer.report import figures
from trainer.report.summary import summarize


def test_spikes_close_together_carry_one_text() -> None:
    """The causes of neighbouring spikes would be printed on top of each other."""
    document = summarize(diagnosed(demo(), epochs=(5, 8, 29)))
    chart = figures.loss(document)
    assert chart is not None
    markers = [marker for marker in chart.markers if "spike" in marker.style]
    assert [marker.text for marker in markers] == ["BatchNorm statistics", "", "raised learning rate"]
    assert markers[1].details == "spike: 4 images, probably mislabelled"


def test_the_best_epoch_and_resumes_are_marked() -> None:
    """A reader would not see which epoch the model can be taken from, nor where training was interrupted."""
    document = summarize(demo())
    chart = figures.loss(document)
    assert chart is not None
    assert [marker.text for marker in chart.markers] == [f"best, epoch {document['best_epoch']}", "resumed, epoch 21"]


def test_the_curves_of_lowest_auc_are_shown() -> None:
    """With 14 classes the chart would hide the worst one among curves that need no attention."""
    document = summarize(broken("many classes"))
    chart = figures.roc(document)
    assert chart is not None
    scored = [(curve["auc"]["value"], curve["class"]) for curve in document["roc"] if curve["auc"]["value"] is not None]
    assert [name for _, name in chart.legend] == [name for _, name in sorted(scored)[: figures.MAX_CURVES]]


@pytest.mark.parametrize("which", ["no image", "diverged"])
def test_no_predictions_make_no_chart(which: str) -> None:
    """The page would show empty boxes, or fail."""
    document = summarize(broken(which))
    assert (figures.roc(document), figures.reliability(document)) == (None, None)
    assert figures.loss(document) is not None


def test_no_epochs_make_no_chart() -> None:
    """The page would show empty boxes, or fail."""
    document = summarize(broken("no epoch"))
    assert (figures.loss(document), figures.accuracy(document), figures.strips(document)) == (None, None, [])


def test_a_spike_is_shown_with_its_neighbours_alone() -> None:
    """In a run of 1,000 epochs a spike of one epoch would be invisible in its own chart."""
    document = summarize(diagnosed(demo(), epochs=(13,)))
    title, caption, chart = figures.of_spike(document, document["spikes"][0])[0]
    assert title == "Neighbouring epochs"
    assert caption.endswith("Dashed: the expected validation loss.")
    assert len(chart.hits) == 2 * figures.NEIGHBOURS + 1
    assert np.isclose(chart.markers[0].x, 50)


def test_a_spike_that_was_trained_again_shows_both_curves() -> None:
    """A reader would have to believe that the remedy helps instead of seeing it."""
    document = summarize(replayed(diagnosed(demo())))
    title, caption, chart = figures.of_spike(document, document["spikes"][0])[0]
    assert title == "Trained again"
    assert "from the checkpoint after epoch 4" in caption
    assert [name for _, name in chart.legend] == ["as recorded", "model.momentum=0.9", "model.statistics=precise"]
    lines = dict(chart.lines)
    start = lines["validation"].split("L")[3]  # epoch 4, which all have in common
    assert lines["curve-0"].startswith(f"M{start}L")
    assert lines["curve-2"].startswith(f"M{start}L")
    alone = summarize(replayed(diagnosed(demo()), problem="Nothing can be proven here.", proofs=()))
    assert figures.of_spike(alone, alone["spikes"][0])[0][0] == "Neighbouring epochs"
