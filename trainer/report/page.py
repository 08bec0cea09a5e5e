"""Renders report.html with `templates/` from the fields of report.json: one file, without scripts or network requests.

`figures` makes the charts. Strings that come from the run are shown with unprintable characters escaped.
"""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from spikewise import describe
from trainer.formatting import duration
from trainer.report import charts, figures
from trainer.report.charts import number, percent
from trainer.report.figures import whole_percent

MAX_LINES = 20
"""Lines of a list."""
MAX_KEYS = 6
"""Keys in one line of a list."""
MAX_CONFUSION = 10
"""Classes of a confusion matrix; more are listed by their most frequent confusions."""
THUMBNAIL = 160
"""Pixels of a thumbnail's longer side."""

Place = int | tuple[int, int, int]
"""A validation image by its index, or a training image by epoch, batch of the epoch (from 1) and index in the batch."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """An image that the page shows."""

    image: np.ndarray
    """uint8 [H, W, 3]."""
    losses: np.ndarray
    """Its loss in each epoch [E], nats, NaN where unknown; empty for a training image."""


def render(document: dict[str, Any], thumbnails: Mapping[Place, Thumbnail]) -> str:
    """Renders report.json's `document` as HTML. `thumbnails` holds the images that it names."""
    shown = _printable(document)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            shown,
            thumbnails={place: (_data_uri(one.image), charts.sparkline(one.losses)) for place, one in thumbnails.items()},
            explained=[_explained(shown, spike) for spike in shown["spikes"] or []],
            confusions=_confusions(shown),
            listings=_listings(shown["data"]),
            loss_chart=figures.loss(shown),
            parts_chart=figures.parts(shown),
            accuracy_chart=figures.accuracy(shown),
            strips=figures.strips(shown),
            roc_chart=figures.roc(shown),
            reliability_chart=figures.reliability(shown),
        )
    )


@cache
def _environment() -> Any:
    """Jinja's, with the compiled templates."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("trainer.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=lambda n: f"{n:,}",
        number=number,
        percent=percent,
        whole_percent=whole_percent,
        signed_percent=lambda fraction: f"{round(100 * fraction)} %",
        duration=duration,
        setting=_setting,
        style=_style,
        sentence_case=lambda text: text[:1].upper() + text[1:],
        cause=describe.cause_title,
        options=describe.command_options,
        probe=describe.probe,
    )
    environment.globals.update(number=number, percent=percent, whole_percent=whole_percent, interval=_interval)
    return environment


def _explained(document: dict[str, Any], spike: dict[str, Any]) -> dict[str, Any]:
    """A spike with its charts, and with the bars of its causes and probes."""
    causes = [cause | {"bar": _bar(cause) if cause["low"] != cause["high"] else None} for cause in spike["causes"]]
    probes = sorted(spike["probes"], key=lambda probe: -(probe["fraction"] or 0))
    return spike | {
        "charts": figures.of_spike(document, spike),
        "causes": causes,
        "probes": [probe | {"bar": _bar(probe)} for probe in probes],
    }


def _bar(one: dict[str, Any]) -> dict[str, float] | None:
    """A cause's or probe's fraction of the rise and its interval, in percent of a bar; None if it was not measured."""
    if None in (one["fraction"], one["low"], one["high"]):
        return None
    fraction, low, high = (round(float(np.clip(100 * one[key], 0, 100)), 1) for key in ("fraction", "low", "high"))
    return {"fraction": fraction, "low": low, "width": round(high - low, 1)}


def _data_uri(image: np.ndarray) -> str:
    """A JPEG of at most THUMBNAIL pixels a side, from uint8 [H, W, 3]."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()


def _printable(value: Any) -> Any:
    """The same value with control, direction and other invisible characters escaped, so that a key cannot disguise itself."""
    if isinstance(value, dict):
        return {_printable(key): _printable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_printable(one) for one in value]
    return describe.printable(value) if isinstance(value, str) else value


def _setting(value: Any) -> str:
    """A configured value for people."""
    if value is None:
        return "not set"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_setting(one)}" for key, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _style(outcome: str) -> str:
    """Style class of the outcome of a run or a spike."""
    if outcome in ("completed", "recovered"):
        return "good"
    return "bad" if outcome == "divergence" or outcome.startswith("failed: ") else "warning"


def _interval(one: dict[str, Any], write: Callable[[float], str], prefix: str = "") -> str:
    """`84.9 – 89.5 %`; empty without an interval."""
    if one["low"] is None:
        return ""
    low, high = write(one["low"]), write(one["high"])
    return f"{prefix}{low.removesuffix(' %')} – {high}" if low != high else ""


def _confusions(document: dict[str, Any]) -> list[tuple[str, str, int]] | None:
    """(label, prediction, images) of the most frequent confusions if there are too many classes for a matrix; else None."""
    classes = document["classes"]
    if len(classes) <= MAX_CONFUSION:
        return None
    counts = np.array(document["confusion"]) * (1 - np.eye(len(classes), dtype=int))
    most = [divmod(int(place), len(classes)) for place in np.argsort(-counts, axis=None, kind="stable")[:MAX_LINES]]
    return [
        (classes[label], classes[prediction], int(counts[label, prediction]))
        for label, prediction in most
        if counts[label, prediction]
    ]


def _listings(data: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """(title, lines of keys) of what is wrong with the data, cut to what a page can show."""
    conflicting = [[f"{name}: {key}" for name, keys in one.items() for key in keys] for one in data["conflicting_labels"]["keys"]]
    leaked = [[key for keys in one.values() for key in keys] for one in data["leaked"]["keys"]]
    near_leaked = [[f"{side}: {keys[0]}" for side, keys in one.items()] for one in data["near_leaked"]["keys"]]
    found = [
        ("Exact copies with different labels", data["conflicting_labels"]["contents"], conflicting),
        ("Exact copies on both sides of the split", data["leaked"]["contents"], leaked),
        ("Exact copies", data["duplicates"]["contents"], data["duplicates"]["keys"]),
        ("Near copies on both sides of the split", data["near_leaked"]["pairs"], near_leaked),
        ("Near copies", data["near_duplicates"]["pairs"], data["near_duplicates"]["keys"]),
        ("Not decodable", len(data["quarantined"]), [[one["key"], one["reason"]] for one in data["quarantined"]]),
    ]
    first = f"first {MAX_LINES} of "
    return [
        (f"{title} ({first if count > MAX_LINES else ''}{count:,})", [line[:MAX_KEYS] for line in lines[:MAX_LINES]])
        for title, count, lines in found
        if count
    ]
