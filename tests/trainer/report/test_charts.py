"""The geometry of charts: no value is lost, and nothing is drawn outside the box."""

import re
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from trainer.report import charts
from trainer.report.charts import Marker, Series


def _points(path: str) -> np.ndarray:
    """The points [n, 2] of a path, box units."""
    return np.array([[float(x), float(y)] for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)])


def test_no_spike_is_lost_in_a_long_run() -> None:
    """A spike of one epoch in 5,000 would be neither drawn nor shown on hover."""
    values = np.full(5000, 0.5)
    values[3217], values[1111] = 2.0, 0.1
    chart = charts.over_epochs("Loss", np.arange(1, 5001), [Series("validation", "validation", values)])
    points = _points(chart.lines[0][1])
    assert len(points) <= charts.MAX_POINTS + 2
    top = points[np.argmin(points[:, 1])]
    assert top[0] == pytest.approx(1000 * 3217 / 4999, abs=0.1)
    assert np.ptp(points[:, 1]) == pytest.approx(1.9 / 2.0 * 1000, rel=0.06)
    assert len(chart.hits) == charts.MAX_HITS
    assert any(hit.text == "Epoch 3218\n2.000  validation" for hit in chart.hits)


def test_missing_values_leave_a_gap_and_a_named_band() -> None:
    """A line drawn across NaN would hide a divergence."""
    values = np.array([1.0, 0.9, np.nan, np.inf, 0.8, np.nan, 0.7])
    chart = charts.over_epochs("Loss", np.arange(1, 8), [Series("validation", "validation", values)])
    assert chart.lines[0][1].count("M") == 3
    assert [band[2] for band in chart.bands] == ["epochs 3 to 4", "epoch 6"]
    assert len(_points(chart.lines[1][1])) == 2
    assert "–  validation" in chart.hits[2].text


def test_one_epoch_is_a_dot_in_the_middle() -> None:
    """The report of a run's first epoch would show an empty chart."""
    chart = charts.over_epochs("Loss", np.array([1]), [Series("validation", "validation", np.array([0.7]))])
    assert _points(chart.lines[1][1])[0][0] == 500
    assert [tick.text for tick in chart.x_ticks] == ["1"]


def test_a_huge_value_makes_the_axis_logarithmic() -> None:
    """On a linear axis, one loss of 10,000 would flatten all others to a line at the bottom."""
    values = np.array([0.7, 0.6, 1e4, 0.5, 0.4])
    chart = charts.over_epochs("Loss", np.arange(1, 6), [Series("validation", "validation", values)])
    assert chart.y_name == "logarithmic"
    heights = _points(chart.lines[0][1])[:, 1]
    assert np.ptp(np.delete(heights, 2)) > 40


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, 1.0], [5e-9, 6e-9], [1e30, 1.0], [0.0, 1e-7], [np.nan, np.nan]])
def test_everything_lies_in_the_box(values: list[float]) -> None:
    """Unusual values would crash the report or draw across the page."""
    rules = [Marker(0, "guess", "guess", 0.69)]
    chart = charts.over_epochs("Loss", np.array([1, 2]), [Series("v", "v", np.array(values))], rules=rules, zero=True)
    for _, path in chart.lines:
        assert not path or ((_points(path) >= 0) & (_points(path) <= 1000)).all()
    assert all(0 <= tick.at <= 100 for tick in chart.x_ticks + chart.y_ticks)
    assert len(chart.y_ticks) >= 2
    assert len({tick.text for tick in chart.y_ticks}) == len(chart.y_ticks)


def test_accuracy_axis_ends_at_100_percent() -> None:
    """An axis up to 110 % would look broken."""
    chart = charts.over_epochs("Accuracy", np.array([1, 2]), [Series("v", "v", np.array([1.0, 1.0]))], fractions=True)
    assert [tick.text for tick in chart.y_ticks][-1] == "100 %"


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "50.0 %"), (1.0, "100 %"), (0.99999, ">99.9 %"), (0.00001, "<0.1 %"), (0.0, "0 %"), (None, "–")]
)
def test_percent(value: float | None, text: str) -> None:
    """A wrong prediction "with 100 %", or "0 % wrong" with one error, would be untrue."""
    assert charts.percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.41234, "0.412"), (17.0651, "17.1"), (314.2, "314"), (1e-4, "0.0001"), (12345.0, "12,345"), (float("nan"), "–")],
)
def test_number(value: float, text: str) -> None:
    """Meaningless digits would make the page hard to read."""
    assert charts.number(value) == text


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.text("abc", max_size=20), st.sampled_from(["spike", "resumed", "best low"])), max_size=8
    )
)
def test_texts_never_cover_each_other(marks) -> None:
    """Causes, resumes and the best epoch would be printed on top of each other, on a wide screen or on a phone."""
    rule = charts.Marker(0, "always this", "guess", 3.0)
    placed = charts.apart([charts.Marker(x, text, style) for x, text, style in marks], [rule])
    assert [(one.x, one.style.split()[0]) for one in placed] == [(x, style.split()[0]) for x, _, style in marks]
    for width, seen in ((charts.WIDE, placed), (charts.NARROW, [one for one in placed if "crowded" not in one.style])):
        rows: dict[str, list[tuple[float, float]]] = {"spike": [(100 - width * len(rule.text), 100)]}
        for one in seen:
            if one.text:
                length = width * len(one.text)
                row = rows.setdefault(one.style.removesuffix(" crowded"), [])
                row.append((one.x - length, one.x) if one.x > charts.FLIP else (one.x, one.x + length))
        for row in rows.values():
            row.sort()
            assert all(end <= start for (_, end), (start, _) in pairwise(row))


def test_a_text_with_room_is_shown() -> None:
    """A chart without a word would name no cause."""
    near, far = (charts.Marker(x, "a cause", "spike") for x in (10, 30))
    assert charts.apart([near, far]) == [near, far]
    closer = charts.apart([near, charts.Marker(16, "a cause", "spike")])
    assert [(one.text, one.style) for one in closer] == [("a cause", "spike"), ("a cause", "spike crowded")]
