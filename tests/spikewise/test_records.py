"""Records as JSON, and back."""

import json
import math
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikewise.causes import NAMES
from spikewise.records import Cause, Diagnosis, Probe, Spike, Suspect, Training, diagnosis_from

NUMBERS = st.floats(allow_nan=False)
COUNTS = st.integers(0, 10**6)
FACTS = st.dictionaries(st.text(), st.one_of(NUMBERS, COUNTS, st.lists(NUMBERS)), max_size=3)
SPIKES = st.builds(Spike, *[COUNTS, *[NUMBERS] * 8, COUNTS], group=st.none() | st.text(), group_fraction=NUMBERS)
CAUSES = st.builds(
    Cause,
    st.sampled_from(NAMES),
    *[NUMBERS] * 3,
    *[st.text()] * 2,
    event=st.none() | st.just("restart"),
    short_remedy=st.none() | st.text(),
    settings=st.lists(st.text(), max_size=2).map(tuple),
)
TRAINING = st.builds(
    Training,
    train_loss=NUMBERS,
    **dict.fromkeys(("ordinary_gradient", "train_error", "batch_loss", "usual_batch_loss", "stride", "usual_stride"), NUMBERS),
    length_after=st.lists(NUMBERS, max_size=2).map(tuple),
    jumps=st.lists(NUMBERS, max_size=2).map(tuple),
    foreign=st.none() | st.tuples(COUNTS, COUNTS, NUMBERS),
    loss_scale=st.none() | st.tuples(NUMBERS, NUMBERS),
)
DIAGNOSES = st.builds(
    Diagnosis,
    SPIKES,
    st.lists(CAUSES, min_size=1, max_size=3).map(tuple),
    st.lists(st.builds(Probe, st.text(), *[NUMBERS] * 4, COUNTS, FACTS), max_size=2).map(tuple),
    TRAINING,
    NUMBERS,
    st.lists(st.builds(Suspect, COUNTS, NUMBERS, NUMBERS, label=st.none() | st.text()), max_size=2).map(tuple),
)


@settings(max_examples=50, deadline=None)
@given(DIAGNOSES)
def test_a_diagnosis_survives_json(diagnosis):
    """Otherwise the report of a finished run, or a resumed run, would show another diagnosis than the log did."""
    assert diagnosis_from(json.loads(json.dumps(diagnosis.as_dict()))) == diagnosis


def test_a_diagnosis_without_a_cause_is_refused():
    """A damaged record would end the report in an IndexError."""
    values = Diagnosis(Spike(4, *[0.5] * 8, 300), (Cause("unexplained", 0, 0, 0, "Evidence.", "do this."),)).as_dict()
    with pytest.raises(ValueError, match="at least one cause"):
        diagnosis_from({**values, "causes": []})


def test_a_diagnosis_of_an_earlier_version_can_be_read():
    """Otherwise results stored before a field was added could no longer be reported."""
    diagnosis = Diagnosis(Spike(4, *[0.5] * 8, 300), (Cause("unexplained", 0, 0, 0, "Evidence.", "do this."),))
    values = diagnosis.as_dict()
    del values["suspects"], values["causes"][0]["short_remedy"]
    for name in ("group", "group_fraction"):
        del values["spike"][name]
    read = diagnosis_from(values)
    assert read.causes == diagnosis.causes
    assert read.spike == diagnosis.spike
    assert math.isnan(read.training.train_loss)
    assert [field.name for field in fields(read.training)] == list(values["training"])
