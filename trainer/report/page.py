"""The page and the picture of a run: what is said, in which order, with which charts.

Everything here is a function of the dict that report.json holds (docs/report.md describes its fields), plus the thumbnails.
The page is one file without a script and without any request; `templates/` draws and styles it. Strings that come from the run
are shown with unprintable characters escaped.
"""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikewise import describe
from trainer.formatting import duration
from trainer.report import charts
from trainer.report.charts import Marker, Series, number, percent

CURVES = 6
"""Most ROC curves in one chart."""
LISTED = 20
"""Most lines of a list."""
MEMBERS = 6
"""Most keys in a line of copies."""
TABULATED = 10
"""Most classes with a confusion table."""
AROUND = 8
"""Epochs before and after a spike in its own chart."""
THUMBNAIL = 160
"""Pixels, at most, of a thumbnail's side."""

Place = int | tuple[int, int, int]
"""Of an image: its index in the validation set; or epoch, batch (from 1) and place in it of a training image."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that the page shows."""

    image: np.ndarray
    """uint8 [H, W, 3]."""
    losses: np.ndarray
    """Its loss by epoch [E], nats, NaN where missing; empty for a training image."""


def headline(document: dict[str, Any]) -> list[str]:
    """How it went, in plain sentences, the first being the title."""
    accuracy, majority, best, kept = (
        *(document["validation"][key] for key in ("accuracy", "majority")),
        document["best_epoch"],
        document["epoch"],
    )
    if not document["epochs"]:
        return ["No epoch was finished", "There is nothing to judge yet."]
    if accuracy["value"] is None:
        return ["No usable validation results", _course(document["history"])]
    right = f"{percent(accuracy['value'])} of {_amount(document['validation']['images'], 'unseen image')}"
    always = f"always answering “{majority['class']}” would get {percent(majority['fraction'])} right"
    if majority["fraction"] == 1:  # one class alone: nothing to guess
        sentences = [f"{right} classified correctly"]
    elif accuracy["low"] is not None and accuracy["low"] <= majority["fraction"]:
        title = "Not clearly better than guessing" if accuracy["high"] >= majority["fraction"] else "Worse than guessing"
        sentences = [title, f"{right} are classified correctly; {always}."]
    else:
        sentences = [f"{right} classified correctly", f"{always[0].upper()}{always[1:]}."]
    sentences.append(_course(document["history"], told=document["overfitting"] is not None))
    if best not in (None, kept):
        sentences.append(f"This page shows the results of epoch {kept}.")
        if document["config"]["training"]["keep"] == "last":
            sentences.append(f'Set training.keep = "best" to keep the network of epoch {best}.')
    return sentences


def notes(document: dict[str, Any]) -> list[str]:
    """What a reader should know before trusting the numbers; empty for an undisturbed run on clean data."""
    validation, data = document["validation"], document["data"]
    found = []
    missing = [name for name, count in validation["by_class"].items() if not count]
    if validation["images"] and missing:
        found.append(f"There is no validation image of {', '.join(missing)}: how well it is recognized is not known.")
    if validation["groups"] and validation["groups"] < 30:
        found.append(f"The validation images come from only {_amount(validation['groups'], 'group')}: the intervals are rough.")
    if validation["unanswered"]:
        rest = ": they count as wrong" if validation["accuracy"]["value"] is not None else ""
        found.append(f"For {_amount(validation['unanswered'], 'validation image')} there is no finite probability{rest}.")
    if data["conflicting_labels"]["images"]:
        found.append(f"{_amount(data['conflicting_labels']['images'], 'image')} with exact copies under another label: see Data.")
    if data["quarantined"]:
        found.append(f"{_amount(len(data['quarantined']), 'image')} could not be decoded and took no part: see Data.")
    if document["restarts"]:
        found.append(f"Training was resumed from a checkpoint in epoch {', '.join(str(r['epoch']) for r in document['restarts'])}.")
    if (document["input_wait"] or 0) > 0.2:
        found.append(f"The slowest worker waited for input {percent(document['input_wait'])} of the training time.")
    return found


def render(document: dict[str, Any], pictures: Mapping[Place, Picture]) -> str:
    """The page, with `pictures` of `hardest` and of the spikes' images and batches."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("trainer.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, percent=percent, count=lambda n: f"{n:,}", duration=duration, words=_words)
    environment.filters.update(capital=lambda text: text[:1].upper() + text[1:])
    environment.filters.update(cause=describe.cause_title, probe=describe.probe)
    environment.filters.update(whole=_whole)
    environment.globals.update(number=number, percent=percent, whole=_whole, interval=_interval)
    shown = _printable(document)
    drawn = {place: (_data_uri(picture.image), charts.sparkline(picture.losses)) for place, picture in pictures.items()}
    more = {
        "pictures": drawn,
        "explained": _explained(shown),
        "listings": _listings(shown["data"]),
        "mistakes": _mistakes(shown),
        **_charts(shown),
    }
    return environment.get_template("report.html.j2").render(shown, **more)


def loss_png(document: dict[str, Any]) -> bytes:
    """The loss curves as a PNG of 1600 x 800 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    history = document["history"]
    figure = Figure(figsize=(8, 4), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    epochs = [row["epoch"] for row in history]
    for one, colour, width in zip(_losses_series(history), ("#c2410c", "#0b6bab", "#9aa4ae"), (2.0, 1.6, 1.2), strict=True):
        marker = "o" if len(epochs) == 1 else None
        axes.plot(epochs, one.values, color=colour, linewidth=width, label=one.name, marker=marker, zorder=3 if width == 2 else 2)
    if document["best_epoch"] is not None:
        best = (document["best_epoch"], document["best_validation_loss"])
        axes.plot(*best, "o", color="#c2410c", markersize=7, markeredgecolor="white", zorder=4)
        axes.annotate(
            f"{number(best[1])} after epoch {best[0]}",
            best,
            (0, -14),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9,
        )
    for mark in _marked(document):
        axes.axvline(mark.x, color="#c2410c", linewidth=0.8, linestyle=":", zorder=1)
        if mark.y is not None:
            axes.plot(mark.x, mark.y, "v", color="#7a1f06", markersize=7, markeredgecolor="white", zorder=5)
        if mark.text:
            at, right = (mark.x, 1.0), mark.x < epochs[0] + 0.75 * (epochs[-1] - epochs[0])
            axes.annotate(
                mark.text,
                at,
                (4 if right else -4, -3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="left" if right else "right",
                va="top",
                fontsize=8,
                color="#7a1f06",
            )
    values = np.array([one.values for one in _losses_series(history)], float)
    if charts.value_scale(values.ravel()).log:
        axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss (nats per image)")
    axes.set_title(_printable(document["run"]).replace("$", r"\$"), loc="left", fontsize=11)
    axes.grid(axis="y", color="#e5e7eb")
    axes.spines[["top", "right"]].set_visible(False)
    if document["spikes"]:  # their texts stand where the legend would
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=3)
    elif history:
        axes.legend(frameon=False, fontsize=9)
    target = io.BytesIO()
    FigureCanvasAgg(figure).print_png(target)
    return target.getvalue()


def _course(history: list[dict[str, Any]], *, told: bool = False) -> str:
    """What the validation loss did over the epochs, in a sentence; `told`: overfitting is spoken of elsewhere."""
    losses = [row["validation_loss"] for row in history]
    finite = [index for index, loss in enumerate(losses) if loss is not None]
    if not finite:
        return "The validation loss was never a finite number."
    best = min(finite, key=lambda index: losses[index])
    lowest = f"The validation loss was lowest, {number(losses[best])}, after epoch {history[best]['epoch']} of {len(history)}"
    if finite[-1] < len(history) - 1:
        return f"{lowest}. Since epoch {history[finite[-1] + 1]['epoch']} it is not a finite number: training diverged."
    if len(history) < 3:
        return f"{lowest}: too few epochs to speak of a trend."
    if best >= len(history) - max(2, len(history) // 10):
        return f"{lowest}, close to the end: more epochs may lower it further."
    recent = float(np.median([losses[index] for index in finite[-5:]]))
    if recent < 1.1 * losses[best]:
        return f"{lowest}, and has stayed near it since ({number(recent)} at the end): more epochs promise little."
    if told:
        return f"{lowest}. It has risen to {number(recent)} since."
    start, end = history[best]["train_loss_inference"], history[-1]["train_loss_inference"]
    if start is not None and end is not None and end < start:
        why = (
            f", while that of training images fell from {number(start)} to {number(end)}: the network memorizes them (overfitting)"
        )
    else:
        why = ", and that of training images did not fall further either"
    return f"{lowest}. It has risen to {number(recent)} since{why}."


def _losses_series(history: list[dict[str, Any]]) -> list[Series]:
    return [
        _series(history, "validation", "validation", "validation_loss"),
        _series(history, "training images, inference mode", "inference", "train_loss_inference"),
        _series(history, "training, as Keras reports it", "training", "train_loss"),
    ]


def _series(history: list[dict[str, Any]], name: str, style: str, key: str) -> Series:
    return Series(name, style, np.array([np.nan if row[key] is None else row[key] for row in history], float))


def _charts(document: dict[str, Any]) -> dict[str, Any]:
    """The charts by the name under which the template knows them; None where there is nothing to draw."""
    history, validation, calibration = document["history"], document["validation"], document["calibration"]
    drawn: dict[str, Any] = {"loss_chart": None, "accuracy_chart": None, "strips": [], "roc_chart": None, "reliability_chart": None}
    if history:
        epochs = np.array([row["epoch"] for row in history])
        resumed = [Marker(row["epoch"], f"resumed, epoch {row['epoch']}", "resumed") for row in document["restarts"]]
        best = []
        if document["best_epoch"] is not None:
            text = f"best, epoch {document['best_epoch']}"
            style = "best low" if document["spikes"] else "best"  # their texts stand above
            best = [Marker(document["best_epoch"], text, style, document["best_validation_loss"])]
        guess = [Marker(0, "knowing nothing", "guess", validation["guess_loss"])] if validation["guess_loss"] else []
        drawn["loss_chart"] = charts.over_epochs(
            "Loss by epoch",
            epochs,
            _losses_series(history),
            between=(0, 1),
            rules=guess,
            markers=best + resumed + _marked(document),
            ticks=6,
        )
        majority = validation["majority"]
        accuracy = [
            _series(history, "validation", "validation", "validation_accuracy"),
            _series(history, "training, as Keras reports it", "training", "train_accuracy"),
        ]
        always = [Marker(0, f"always “{majority['class']}”", "guess", majority["fraction"])] if majority else []
        drawn["accuracy_chart"] = charts.over_epochs("Accuracy by epoch", epochs, accuracy, rules=always, fractions=True)
        for name, key, fractions in (
            ("Images per second", "images_per_second", False),
            ("Waiting for input", "input_wait", True),
            ("Seconds per epoch", "seconds", False),
            ("Gradient norm", "gradient_norm", False),
            ("Update norm", "update_norm", False),
            ("Learning rate", "learning_rate", False),
        ):
            series = _series(history, name.lower(), "plain", key)
            chart = charts.over_epochs(f"{name} by epoch", epochs, [series], fractions=fractions, zero=True, ticks=2)
            drawn["strips"].append((name, (percent if fractions else number)(float(np.median(series.values))), chart))
    curves = sorted((curve for curve in document["roc"] if curve["false_positive_rate"]), key=lambda curve: curve["auc"]["value"])[
        :CURVES
    ]
    if curves:
        drawn["roc_chart"] = charts.roc(
            "ROC curve",
            [
                (
                    c["class"],
                    f"curve-{index}",
                    *(np.array(c[key], float) for key in ("false_positive_rate", "true_positive_rate", "threshold")),
                )
                for index, c in enumerate(curves)
            ],
        )
    if calibration["bins"]:
        drawn["reliability_chart"] = charts.reliability("Reliability diagram", calibration["bins"], 1 / len(document["classes"]))
    return drawn


def _marked(document: dict[str, Any]) -> list[Marker]:
    """The spikes on the loss curve, with their cause; those too close to each other for a text tell it when pointed at."""
    spikes = [one["spike"] for one in document["spikes"] or []]
    texts = charts.apart([spike["epoch"] for spike in spikes], 0.18 * len(document["history"]))
    return [
        Marker(spike["epoch"], _label(one) if text else "", "spike", spike["loss"], f"spike: {one['name']}")
        for one, spike, text in zip(document["spikes"] or [], spikes, texts, strict=True)
    ]


def _label(spike: dict[str, Any]) -> str:
    """Its cause in a word or two."""
    cause = spike["causes"][0]["name"]
    return spike["name"].removeprefix("a ") if cause == "run_event" else cause.replace("_", " ").replace("batchnorm", "BatchNorm")


def _explained(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Each spike with its charts and bars."""
    history = document["history"]
    explained = []
    for one in document["spikes"] or []:
        epoch, probes = one["spike"]["epoch"], {probe["name"]: probe for probe in one["probes"]}
        near = [row for row in history if abs(row["epoch"] - epoch) <= AROUND]
        drawn = []
        if near:
            chart = charts.over_epochs(
                f"Loss around epoch {epoch}",
                np.array([row["epoch"] for row in near]),
                _losses_series(near)[:2],
                rules=[Marker(0, "", "guess", one["spike"]["baseline"])],
                markers=[Marker(epoch, "", "spike", one["spike"]["loss"])],
                ticks=3,
            )
            chart.legend = []
            known = one["spike"]["baseline"] is not None  # not of a first epoch
            drawn.append(("Around it", "Colours as above." + " Dashed: the loss that was expected." * known, chart))
        if points := _points(probes.get("path")):
            chart = charts.along(f"Loss within epoch {epoch}", points, x_name="step of the epoch")
            drawn.append(("Within the epoch", "Validation loss after so many of its steps.", chart))
        if points := _points(probes.get("line")):
            usual = probes["line"]["facts"]["at"]
            label = f"Loss on the way through epoch {epoch}"
            chart = charts.along(label, points, x_name="share of the way", fractions=True, marked=usual)
            text = f"From the weights before to those after, statistics estimated anew. Filled: {_whole(usual)} of the way"
            longer = probes["line"]["facts"]["times"] > 1.05
            drawn.append(("Along the way", f"{text}, steps of the usual length." if longer else f"{text}.", chart))
        causes = [cause | {"bar": _bar(cause) if cause["low"] != cause["high"] else None} for cause in one["causes"]]
        tried = [probe | {"bar": _bar(probe)} for probe in sorted(one["probes"], key=lambda probe: -(probe["fraction"] or 0))]
        explained.append(one | {"charts": drawn, "causes": causes, "probes": tried})
    return explained


def _points(probe: dict[str, Any] | None) -> list[tuple[float, float]]:
    """The losses that a probe measured, in order; empty if they are fewer than a line needs."""
    losses = probe["facts"]["losses"] if probe else {}
    points = sorted((float(at), np.nan if loss is None else loss) for at, loss in losses.items())
    return points if len(points) > 1 else []


def _bar(one: dict[str, Any]) -> dict[str, float] | None:
    """Positions, percent of the whole rise, of a share and its interval (a cause's or a probe's); None if it was not measured."""
    if None in (one["fraction"], one["low"], one["high"]):
        return None
    fraction, low, high = (round(float(np.clip(100 * one[key], 0, 100)), 1) for key in ("fraction", "low", "high"))
    return {"fraction": fraction, "low": low, "width": round(high - low, 1)}


def _data_uri(image: np.ndarray) -> str:
    """A JPEG of at most THUMBNAIL pixels a side, uint8 [H, W, 3]."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()


def _printable(value: Any) -> Any:
    """The same with control, direction and other invisible characters of strings escaped: a key cannot disguise itself."""
    if isinstance(value, dict):
        return {_printable(key): _printable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_printable(one) for one in value]
    return describe.printable(value) if isinstance(value, str) else value


def _amount(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _words(value: Any) -> str:
    """A configured value as a person writes it."""
    if value is None:
        return "not set"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_words(one)}" for key, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:,}"
        if isinstance(value, int) and abs(value) >= 10_000
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _whole(fraction: float | None) -> str:
    """A share of a rise: its interval is wider than a decimal is worth."""
    return "–" if fraction is None else describe.percent(fraction).replace("%", " %")


def _interval(one: dict[str, Any], write: Callable[[float], str], prefix: str = "") -> str:
    """`84.9 – 89.5 %`, or nothing where there is no interval."""
    if one["low"] is None:
        return ""
    low, high = write(one["low"]), write(one["high"])
    return f"{prefix}{low.removesuffix(' %')} – {high}" if low != high else ""


def _mistakes(document: dict[str, Any]) -> list[tuple[str, str, int]] | None:
    """(label, prediction, images) of the most frequent mistakes, for more classes than a table can show; None for few."""
    classes = document["classes"]
    if len(classes) <= TABULATED:
        return None
    counts = np.array(document["confusion"]) * (1 - np.eye(len(classes), dtype=int))
    most = [divmod(int(place), len(classes)) for place in np.argsort(-counts, axis=None, kind="stable")[:LISTED]]
    return [
        (classes[label], classes[prediction], int(counts[label, prediction]))
        for label, prediction in most
        if counts[label, prediction]
    ]


def _listings(data: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """(title, lines of keys) of what is wrong with the data, each as long as a page can bear."""
    conflicting = [[f"{name}: {key}" for name, keys in one.items() for key in keys] for one in data["conflicting_labels"]["keys"]]
    leaked = [[*one["validation"], *one["left_out"]] for one in data["leaked"]["keys"]]
    found = [
        ("Copies under two labels", data["conflicting_labels"]["contents"], conflicting),
        ("Copies across the split", data["leaked"]["contents"], leaked),
        ("Exact copies", data["duplicates"]["contents"], data["duplicates"]["keys"]),
        ("Not decodable", len(data["quarantined"]), [[one["key"], one["reason"]] for one in data["quarantined"]]),
    ]
    return [
        (f"{title} ({f'the first {LISTED} of ' if count > LISTED else ''}{count:,})", [line[:MEMBERS] for line in lines[:LISTED]])
        for title, count, lines in found
        if count
    ]
