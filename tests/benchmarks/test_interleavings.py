"""benchmarks.interleavings: a small part of the model check of lease and checkpoints."""

import pytest

from benchmarks import interleavings
from trainer.storage import lineage
from trainer.storage.checkpoint import Checkpoints


def test_no_order_of_requests_breaks_a_promise():
    """In some order of pauses, late requests and kills, two jobs would write to one run, or a saved checkpoint would be lost."""
    before = dict(interleavings.TOTALS)
    interleavings.check(25)
    assert interleavings.TOTALS["rounds"] >= before["rounds"] + 25
    assert interleavings.TOTALS["takeovers"] > before["takeovers"]


def test_the_model_notices_a_broken_promise(monkeypatch: pytest.MonkeyPatch):
    """A model that cannot fail would prove nothing: here, drivers begin at step 0 whatever is stored."""
    monkeypatch.setattr(Checkpoints, "_first_intact", lambda *_: None)
    monkeypatch.setattr(Checkpoints, "_recorded_step", lambda *_: 0)
    monkeypatch.setattr(lineage.Stored, "committed", [])
    with pytest.raises(AssertionError, match=r"was acknowledged|the newest checkpoint is 0"):
        interleavings.check(60, phases=[interleavings.Phase.generate])
