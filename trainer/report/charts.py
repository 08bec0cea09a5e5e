"""The geometry of the report's charts: numbers in, positions out. The template `plot.html.j2` draws them.

A plot is a box of 1000 x 1000 units that the page stretches to the available space; lines keep their width, and every text is HTML,
placed in percent of the box. Each chart is therefore crisp and legible on a phone, on a wide screen and on paper, without a script.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

BOX = 1000
MAX_POINTS = 600
"""Points of a curve; longer runs are thinned."""
FLIP = 60
"""Markers to the right of this percentage of the box have their text on the left."""
WIDE, NARROW = 0.7, 2.2
"""Width of a character in percent of the box, on a wide screen and on a phone."""
MAX_HITS = 250
"""Hover areas of a chart; each covers several epochs of a longer run."""


@dataclass(frozen=True, slots=True)
class Series:
    """One curve over the epochs. `style` is a class of the style sheet."""

    name: str
    style: str
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Marker:
    """Marks `x` (data units): a vertical line and, with `y`, a point on it."""

    x: float
    text: str
    style: str
    y: float | None = None
    details: str = ""
    """Shown on hover only."""


@dataclass(frozen=True, slots=True)
class HoverArea:
    """An invisible area (percent of the box) that shows its numbers on hover."""

    left: float
    width: float
    text: str
    top: float | None = None
    """None: a column over the whole height."""


@dataclass(slots=True)
class Chart:
    """What the template draws. Positions are percent of the box from its upper left corner, paths are in box units."""

    label: str
    """For readers who cannot see the chart."""
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    x_name: str = ""
    y_name: str = ""
    areas: list[tuple[str, str]] = field(default_factory=list)
    """(style, path)"""
    lines: list[tuple[str, str]] = field(default_factory=list)
    """(style, path)"""
    legend: list[tuple[str, str]] = field(default_factory=list)
    """(style, name)"""
    markers: list[Marker] = field(default_factory=list)
    rules: list[Marker] = field(default_factory=list)
    """Horizontal reference lines at `y`."""
    bands: list[tuple[float, float, str]] = field(default_factory=list)
    """(left, width, text): epochs without a finite value."""
    hits: list[HoverArea] = field(default_factory=list)


class Scale:
    """Maps values to 0..1 on a linear or logarithmic axis with round ticks (matplotlib's)."""

    def __init__(self, low: float, high: float, *, log: bool = False, ticks: int = 5, outward: bool = True) -> None:
        """An axis from `low` to `high` with about `ticks` ticks. `outward` extends a linear axis to the next ticks."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        if low == high:
            low, high = (low * 0.9, high) if low > 0 else (0.0, 1.0)
        locator = LogLocator(numticks=ticks + 1) if log else MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10])
        values = np.asarray(locator.tick_values(low, high), float)
        if outward and not log:
            low = max(values[values <= low], default=low)
            high = min(values[values >= high], default=high)
        self.log, self.low, self.high = log, low, high
        margin = 0 if log else (high - low) * 1e-9
        self.ticks = [float(value) for value in values if low - margin <= value <= high + margin]

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        values = np.asarray(values, float)
        if self.log:
            values = np.maximum(values, self.low)
            return (np.log(values) - np.log(self.low)) / (np.log(self.high) - np.log(self.low))
        return (values - self.low) / (self.high - self.low)


def value_scale(values: np.ndarray, *, zero: bool = False, ticks: int = 5) -> Scale:
    """A scale for measured values [n] >= 0: logarithmic if the highest would flatten the rest on a linear axis.

    `zero` starts a linear axis at 0.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return Scale(0, 1, ticks=ticks)
    low, high, median = float(values.min()), float(values.max()), float(np.median(values))
    if median > 0 and high > 20 * median:
        return Scale(max(low, median / 1000), high, log=True, ticks=ticks)
    return Scale(0.0 if zero else low, high, ticks=ticks)


def number(value: float | None) -> str:
    """Three decimals for everyday sizes, else about three digits; a dash for a missing or non-finite value."""
    if value is None or not np.isfinite(value):
        return "–"
    for low, high, form in ((0.01, 10, ".3f"), (10, 100, ".1f"), (100, 1e6, ",.0f")):
        if low <= abs(value) < high:
            return f"{value:{form}}"
    return f"{value:.3g}"


def percent(value: float | None) -> str:
    """One decimal; 0 % and 100 % only for exactly 0 and 1; a dash for a missing or non-finite value."""
    if value is None or not np.isfinite(value):
        return "–"
    if value in (0, 1):
        return f"{100 * value:.0f} %"
    return "<0.1 %" if 0 < value < 0.001 else ">99.9 %" if 0.999 < value < 1 else f"{100 * value:.1f} %"


def over_epochs(
    label: str,
    epochs: np.ndarray,
    series: Sequence[Series],
    *,
    shaded: tuple[int, int] | None = None,
    rules: Sequence[Marker] = (),
    markers: Sequence[Marker] = (),
    fractions: bool = False,
    zero: bool = False,
    ticks: int = 5,
) -> Chart:
    """Curves over the epochs [E].

    Epochs in which the first series is not finite become bands. `shaded` fills the area between two series; `fractions` writes
    values as percentages. Long runs are thinned to the extremes of equal stretches of epochs, so no spike is lost.
    """
    text = percent if fractions else number
    together = np.stack([one.values for one in series]).astype(float)
    chart = Chart(label, x_name="epoch")
    if len(series) > 1:
        chart.legend = [(one.style, one.name) for one in series]
    y = value_scale(np.r_[together.ravel(), [rule.y for rule in rules if rule.y is not None]], zero=zero, ticks=ticks)
    alone = len(epochs) == 1
    x = Scale(epochs[0] - alone, epochs[-1] + alone, ticks=2 * ticks - 2, outward=False)
    chart.y_ticks = [Tick(_percent(1 - y(tick)), name) for tick, name in zip(y.ticks, _ticks(y, fractions), strict=True)]
    chart.x_ticks = [
        Tick(_percent(x(tick)), f"{tick:.0f}") for tick in x.ticks if tick == int(tick) and epochs[0] <= tick <= epochs[-1]
    ]
    chart.y_name = "logarithmic" if y.log else ""
    across, up = x(epochs), 1 - y(together)
    chosen = _extremes(together)
    for one, heights in zip(series, up, strict=True):
        chart.lines.append((one.style, _path(across[chosen], heights[chosen])))
        chart.lines.append((f"{one.style} dots", _dots(across[chosen], heights[chosen])))
    if shaded:
        upper, lower = up[shaded[0]][chosen], up[shaded[1]][chosen]
        chart.areas.append(("gap", _area(across[chosen], upper, lower)))
    chart.rules = [Marker(0, rule.text, rule.style, _percent(1 - y(rule.y))) for rule in rules if rule.y is not None]
    placed = [
        Marker(_percent(x(one.x)), one.text, one.style, None if one.y is None else _percent(1 - y(one.y)), one.details)
        for one in markers
    ]
    chart.markers = apart(placed, chart.rules)
    half = 0.5 / max(1, len(epochs) - 1)
    edges = np.clip(np.stack([across - half, across + half]), 0, 1)
    for start, stop in _runs(~np.isfinite(together[0])):
        named = f"epochs {epochs[start]} to {epochs[stop]}" if stop > start else f"epoch {epochs[start]}"
        chart.bands.append((_percent(edges[0, start]), _percent(edges[1, stop] - edges[0, start]), named))
    for columns in np.array_split(np.arange(len(epochs)), min(len(epochs), MAX_HITS)):
        tallest = columns[np.argmax(np.nan_to_num(together[0][columns], nan=np.inf))]
        lines = [f"Epoch {epochs[tallest]}"] + [f"{text(one.values[tallest])}  {one.name}" for one in series]
        lines += [one.details for one in markers if one.details and epochs[columns[0]] <= one.x <= epochs[columns[-1]]]
        left, right = edges[0, columns[0]], edges[1, columns[-1]]
        chart.hits.append(HoverArea(_percent(left), _percent(right - left), "\n".join(lines)))
    return chart


def stacked(label: str, epochs: np.ndarray, total: Series, measured: np.ndarray, layers: Sequence[Series]) -> Chart:
    """The `total` of all epochs [E], and the layers of those that were `measured` [M], a subset: one on the other, together the
    total of their epoch. Layers below 0 hang from the zero line. Dots mark the measured epochs if they are not all of them."""
    values = np.stack([one.values for one in layers]).astype(float)
    tops = np.cumsum(np.maximum(values, 0), 0)
    bottoms = np.cumsum(np.minimum(values, 0), 0)
    low, high = min(0.0, float(np.nanmin(bottoms))), float(np.nanmax(np.r_[tops[-1], total.values]))
    y = Scale(low if -low > high / 4 else 0.0, high, ticks=5)
    y.low = min(y.low, low)  # a part that is hardly below 0 needs no tick of its own
    x = Scale(epochs[0], epochs[-1], ticks=8, outward=False)
    chart = Chart(label, x_name="epoch", legend=[(one.style, one.name) for one in (*layers, total)])
    chart.y_ticks = [Tick(_percent(1 - y(tick)), name) for tick, name in zip(y.ticks, _ticks(y, False), strict=True)]
    chart.x_ticks = [Tick(_percent(x(tick)), f"{tick:.0f}") for tick in x.ticks if tick == int(tick)]
    chart.rules = [Marker(0, "", "zero", _percent(1 - y(0.0)))]
    across = x(measured)
    for layer, one in enumerate(layers):
        for edges, part in ((tops, np.maximum(values, 0)), (bottoms, np.minimum(values, 0))):
            if np.any(part[layer]):
                chart.areas.append((one.style, _area(across, 1 - y(edges[layer]), 1 - y(edges[layer] - part[layer]))))
    chosen = _extremes(total.values[None])
    chart.lines.append((total.style, _path(x(epochs)[chosen], 1 - y(total.values[chosen]))))
    known = dict(zip(epochs.tolist(), total.values.tolist(), strict=True))
    middles = np.r_[0, (across[1:] + across[:-1]) / 2, 1]
    for i, epoch in enumerate(measured.tolist()):
        lines = [f"Epoch {epoch}", f"{number(known[epoch])}  {total.name}"]
        lines += [f"{number(one.values[i])}  {one.name}" for one in reversed(layers)]
        chart.hits.append(HoverArea(_percent(middles[i]), _percent(middles[i + 1] - middles[i]), "\n".join(lines)))
        if len(measured) < len(epochs):
            chart.markers.append(Marker(_percent(across[i]), "", "point", _percent(1 - y(known[epoch]))))
    return chart


def measurements(
    label: str, points: Sequence[tuple[float, float]], *, x_name: str, fractions: bool = False, highlighted: float | None = None
) -> Chart:
    """A few measured losses (x, y) in order of x, joined by a line. `fractions` writes x as percentages."""
    across, up = (np.array(values, float) for values in zip(*points, strict=True))
    y, x = value_scale(up, ticks=3), Scale(across[0], across[-1], ticks=4, outward=False)
    chart = Chart(label, x_name=x_name, y_name="logarithmic" if y.log else "")
    chart.y_ticks = [Tick(_percent(1 - y(tick)), name) for tick, name in zip(y.ticks, _ticks(y, False), strict=True)]
    chart.x_ticks = [Tick(_percent(x(tick)), name) for tick, name in zip(x.ticks, _ticks(x, fractions), strict=True)]
    chart.lines = [("validation", _path(x(across), 1 - y(up)))]
    for at, loss in zip(across, up, strict=True):
        where = percent(at) if fractions else f"{at:,.0f}"
        style = "usual" if at == highlighted else "point"
        if np.isfinite(loss):
            chart.markers.append(Marker(_percent(x(at)), "", style, _percent(1 - y(loss))))
            chart.hits.append(HoverArea(_percent(x(at)), 0, f"{x_name}: {where}\n{number(loss)}  loss", _percent(1 - y(loss))))
    return chart


def apart(markers: Sequence[Marker], rules: Sequence[Marker] = (), widths: Sequence[float] = (WIDE, NARROW)) -> list[Marker]:
    """The markers, positions in percent, without the texts that would cover others: those are shown on hover only.

    Texts that have room on a wide screen but not on a phone get the style `crowded`, which a phone does not show. A text to the
    right of FLIP is written to the left of its line, as the template does. `widths`: of a character, in percent of the box, that of
    the widest screen first.
    """
    taken: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for rule in rules:
        row = "top" if rule.y is not None and rule.y < 8 else "bottom" if rule.y is not None and rule.y > 92 else ""
        for width in widths:
            taken[row, width] = [(100 - width * len(rule.text), 100)]
    shown = {}
    for index, one in sorted(enumerate(markers), key=lambda pair: pair[1].x):
        row = "bottom" if "resumed" in one.style else "low" if "low" in one.style else "top"
        fits = []
        for width in widths:
            length = width * len(one.text) + 1
            left, right = (one.x - length, one.x) if one.x > FLIP else (one.x, one.x + length)
            others = taken.setdefault((row, width), [])
            fits.append(not one.text or all(right <= start or end <= left for start, end in others))
            if fits[-1]:
                others.append((left, right))
        style = one.style if fits[-1] else f"{one.style} crowded"
        shown[index] = one if all(fits) else replace(one, style=style, text=one.text if fits[0] else "")
    return [shown[index] for index in range(len(markers))]


def roc(label: str, curves: Sequence[tuple[str, str, np.ndarray, np.ndarray, np.ndarray]]) -> Chart:
    """ROC curves, each (name, style, false-positive rates, true-positive rates, thresholds), and the diagonal of guessing."""
    chart = Chart(label, *_unit_axes(0), x_name="false-positive rate", y_name="true-positive rate")
    chart.lines.append(("guess", _path(np.array([0, 1]), np.array([1, 0]))))
    for name, style, false, found, thresholds in curves:
        chart.lines.append((style, _path(false, 1 - found)))
        if len(curves) > 1:
            chart.legend.append((style, name))
            continue
        for index in np.unique(np.linspace(1, len(false) - 1, 40).astype(int)) if len(false) > 1 else []:
            rates = f"{percent(found[index])}  true-positive rate\n{percent(false[index])}  false-positive rate"
            text = f"{name} from {percent(thresholds[index])} on\n{rates}"
            chart.hits.append(HoverArea(_percent(false[index]), 0, text, _percent(1 - found[index])))
    return chart


def reliability(label: str, rows: Sequence[dict], lowest: float) -> Chart:
    """Reliability diagram of the rows of `scores.calibration`, from the `lowest` possible confidence (1 / K) to 1."""
    start = np.floor(lowest * 20) / 20
    chart = Chart(label, *_unit_axes(start), x_name="confidence", y_name="accuracy")
    x = Scale(start, 1, outward=False)
    chart.lines.append(("guess", _path(np.array([0, 1]), 1 - np.array([start, 1]))))
    most = max((row["images"] for row in rows), default=1)
    for row in rows:
        at, height = float(x(row["confidence"])), 0.22 * row["images"] / most
        left, right = x(np.array([row["from"], row["to"]])) + np.array([0.004, -0.004])
        chart.areas.append(("amount", _area(np.array([left, right]), np.full(2, 1 - height), np.ones(2))))
        chart.lines.append(("whisker", _path(np.array([at, at]), 1 - np.array([row["low"], row["high"]]))))
        text = f"{percent(row['confidence'])}  confidence\n{percent(row['accuracy'])}  accuracy\n{row['images']:,}  images"
        chart.hits.append(HoverArea(_percent(left), _percent(right - left), text))
        chart.markers.append(Marker(_percent(at), "", "reliable", _percent(1 - row["accuracy"])))
    chart.lines.append(
        ("validation", _path(x(np.array([row["confidence"] for row in rows])), 1 - np.array([row["accuracy"] for row in rows])))
    )
    return chart


def sparkline(values: np.ndarray) -> str:
    """Path of one image's losses [E] over the epochs, from 0 to their maximum; empty below two finite values."""
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return ""
    chosen = _extremes(values[None], 60)
    return _path(np.linspace(0, 1, len(values))[chosen], 1 - values[chosen] / max(float(finite.max()), 1e-9))


def _unit_axes(low: float) -> tuple[list[Tick], list[Tick]]:
    """Ticks in percent: x from `low` to 1, y from 0 to 1."""
    across = Scale(low, 1, outward=False)
    return (
        [Tick(_percent(across(tick)), f"{100 * tick:.0f} %") for tick in across.ticks],
        [Tick(_percent(1 - tick), f"{100 * tick:.0f} %") for tick in Scale(0, 1, outward=False).ticks],
    )


def _percent(position: np.ndarray | float) -> float:
    return round(100 * float(position), 2)


def _ticks(scale: Scale, fractions: bool) -> list[str]:
    """The texts of an axis' ticks, with as few decimals as keep them distinct."""
    values = [100 * tick if fractions else tick for tick in scale.ticks]
    largest = max(map(abs, values), default=0)
    if scale.log or not 1e-3 < largest < 1e6:
        texts = [f"{value:g}" for value in values]
    else:
        decimals = next((d for d in range(6) if all(abs(value - round(value, d)) < 1e-6 * largest for value in values)), 6)
        texts = [f"{value:,.{decimals}f}" for value in values]
    return [f"{text} %" if fractions else text for text in texts]


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each stretch of True in [n]."""
    edges = np.flatnonzero(np.diff(np.r_[False, mask, False]))
    return [(int(start), int(stop) - 1) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _extremes(values: np.ndarray, most: int = MAX_POINTS) -> np.ndarray:
    """Columns of [series, n] to draw: all up to `most`, else each series' extremes in equal stretches."""
    series, total = values.shape
    if total <= most:
        return np.arange(total)
    chosen = {0, total - 1}
    for columns in np.array_split(np.arange(total), most // (2 * series)):
        for row in values[:, columns]:
            chosen |= {
                int(columns[np.argmin(np.nan_to_num(row, nan=np.inf))]),
                int(columns[np.argmax(np.nan_to_num(row, nan=-np.inf))]),
            }
    return np.array(sorted(chosen))


def _path(across: np.ndarray, down: np.ndarray) -> str:
    """A polyline through the finite points, interrupted where a value is not finite."""
    parts = []
    for start, stop in _runs(np.isfinite(down)):
        points = zip(BOX * across[start : stop + 1], BOX * down[start : stop + 1], strict=True)
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points))
    return "".join(parts)


def _dots(across: np.ndarray, down: np.ndarray) -> str:
    """The finite points without a finite neighbour, which a line does not show. Round line caps make them dots."""
    lonely = [start for start, stop in _runs(np.isfinite(down)) if start == stop]
    return "".join(f"M{BOX * across[index]:.1f} {BOX * down[index]:.1f}h0" for index in lonely)


def _area(across: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> str:
    """The area between two curves, wherever both are finite."""
    parts = []
    for start, stop in _runs(np.isfinite(upper) & np.isfinite(lower)):
        there = slice(start, stop + 1)
        edge = np.r_[np.stack([across[there], upper[there]], 1), np.stack([across[there], lower[there]], 1)[::-1]] * BOX
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in edge) + "Z")
    return "".join(parts)
