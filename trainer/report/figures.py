"""Owns which charts a report shows, and from which fields of report.json they are made. `charts` computes their geometry.

`page` places them on the page; `picture` draws the loss curves as a PNG.
"""

from typing import Any

import numpy as np

from spikewise import describe
from trainer.report import charts
from trainer.report.charts import Chart, Marker, Series, number, percent

PARTS = ("fit", "generalization", "wandering", "statistics")
"""The parts of the loss, from the lowest layer of the chart to the highest."""
MAX_CURVES = 6
"""ROC curves in one chart."""
NEIGHBOURS = 8
"""Epochs before and after a spike in its own chart."""
LEGENDS = {
    "validation_loss": ("validation", "validation"),
    "train_loss_inference": ("training, inference mode", "inference"),
    "train_loss": ("training, while it learns", "training"),
    "validation_accuracy": ("validation", "validation"),
    "train_accuracy": ("training, while it learns", "training"),
}
"""Field of the history -> name in a legend, style."""
STRIPS = {
    "images_per_second": ("Images per second", False),
    "input_wait": ("Waiting for input", True),
    "seconds": ("Seconds per epoch", False),
    "gradient_norm": ("Gradient norm", False),
    "update_norm": ("Update norm", False),
    "learning_rate": ("Learning rate", False),
    "regularization": ("Regularization", False),
}
"""Field of the history -> title of its small chart, whether it is a fraction."""


def losses(history: list[dict[str, Any]]) -> list[Series]:
    """The loss curves: validation, training in inference mode, training."""
    return [_series(history, key) for key in ("validation_loss", "train_loss_inference", "train_loss")]


def spike_markers(document: dict[str, Any]) -> list[Marker]:
    """The spikes on the loss curve."""
    return [
        Marker(one["spike"]["epoch"], _short(one), "spike", one["spike"]["loss"], f"spike: {one['name']}")
        for one in document["spikes"] or []
    ]


def loss(document: dict[str, Any]) -> Chart | None:
    """The loss of all epochs, with the best epoch, resumes and spikes; None without an epoch, as for all charts over epochs."""
    history, guess_loss = document["history"], document["validation"]["guess_loss"]
    if not history:
        return None
    resumes = [Marker(row["epoch"], f"resumed, epoch {row['epoch']}", "resumed") for row in document["restarts"]]
    best = []
    if document["best_epoch"] is not None:
        style = "best low" if document["spikes"] else "best"  # the spikes' texts are at the top
        best = [Marker(document["best_epoch"], f"best, epoch {document['best_epoch']}", style, document["best_validation_loss"])]
    return charts.over_epochs(
        "Loss by epoch",
        _epochs(history),
        losses(history),
        shaded=(0, 1),
        rules=[Marker(0, "guessing", "guess", guess_loss)] if guess_loss else [],
        markers=best + resumes + spike_markers(document),
        ticks=6,
    )


def parts(document: dict[str, Any]) -> Chart | None:
    """The validation loss of all epochs, and what that of each measured epoch is made of; None with fewer than two of those."""
    history, measured = document["history"], [row for row in document["parts"] if row["loss"] is not None]
    if len(measured) < 2:
        return None
    layers = [Series(name, f"part-{name}", _values(measured, name)) for name in PARTS]
    total = Series("validation loss", "validation", _values(history, "validation_loss"))
    label = "What the validation loss is made of, by epoch"
    return charts.stacked(label, _epochs(history), total, _epochs(measured), layers)


def accuracy(document: dict[str, Any]) -> Chart | None:
    """The accuracy of all epochs, beside that of always predicting the most frequent class."""
    history, majority = document["history"], document["validation"]["majority"]
    if not history:
        return None
    series = [_series(history, key) for key in ("validation_accuracy", "train_accuracy")]
    rules = [Marker(0, f"always “{majority['class']}”", "guess", majority["fraction"])] if majority else []
    return charts.over_epochs("Accuracy by epoch", _epochs(history), series, rules=rules, fractions=True)


def strips(document: dict[str, Any]) -> list[tuple[str, str, Chart]]:
    """Title, median and small chart of each of `STRIPS`."""
    history = document["history"]
    drawn = []
    for key, (name, fractions) in STRIPS.items() if history else ():
        values = _values(history, key)
        if key == "regularization" and not any(values):
            continue
        chart = charts.over_epochs(
            f"{name} by epoch",
            _epochs(history),
            [Series(name.lower(), "plain", values)],
            fractions=fractions,
            zero=True,
            ticks=2,
        )
        drawn.append((name, (percent if fractions else number)(float(np.median(values))), chart))
    return drawn


def roc(document: dict[str, Any]) -> Chart | None:
    """The ROC curves with the lowest AUC, at most MAX_CURVES. None if no class has a curve."""
    curves = [curve for curve in document["roc"] if curve["false_positive_rate"]]
    if not curves:
        return None
    curves = sorted(curves, key=lambda curve: curve["auc"]["value"])[:MAX_CURVES]
    axes = ("false_positive_rate", "true_positive_rate", "threshold")
    drawn = [
        (curve["class"], f"curve-{index}", *(np.array(curve[axis], float) for axis in axes)) for index, curve in enumerate(curves)
    ]
    return charts.roc("ROC curve", drawn)


def reliability(document: dict[str, Any]) -> Chart | None:
    """The reliability diagram; None without a prediction."""
    bins = document["calibration"]["bins"]
    return charts.reliability("Reliability diagram", bins, 1 / len(document["classes"])) if bins else None


def of_spike(document: dict[str, Any], spike: dict[str, Any]) -> list[tuple[str, str, Chart]]:
    """Title, caption and chart of what was measured around and inside a spike's epoch."""
    epoch, probes = spike["spike"]["epoch"], {probe["name"]: probe for probe in spike["probes"]}
    replay = spike["replay"]
    near = [row for row in document["history"] if abs(row["epoch"] - epoch) <= NEIGHBOURS]
    drawn = [_replayed(document, spike, near)] if replay and replay["proofs"] and near else []
    if near:
        baseline = spike["spike"]["baseline"]
        chart = charts.over_epochs(
            f"Loss around epoch {epoch}",
            _epochs(near),
            losses(near)[:2],
            rules=[Marker(0, "", "guess", baseline)],
            markers=[Marker(epoch, "", "spike", spike["spike"]["loss"])],
            ticks=3,
        )
        chart.legend = []
        expected = "" if baseline is None else " Dashed: the expected validation loss."
        drawn.append(("Neighbouring epochs", f"Colors as above.{expected}", chart))
    if points := _points(probes.get("path")):
        chart = charts.measurements(f"Loss within epoch {epoch}", points, x_name="step of the epoch")
        drawn.append(("Within the epoch", "Validation loss after that many steps.", chart))
    if points := _points(probes.get("line")):
        usual, times = (probes["line"]["facts"][name] for name in ("at", "times"))
        label = f"Loss along the update of epoch {epoch}"
        chart = charts.measurements(label, points, x_name="fraction of the update", fractions=True, highlighted=usual)
        reach = ", the reach of steps of the usual length" if times > 1.05 else ""
        text = "0 %: weights before the epoch. 100 %: after it. BatchNorm statistics re-estimated. "
        text += f"Filled: {whole_percent(usual)}{reach}."
        drawn.append(("Along the epoch's update", text, chart))
    return drawn


def _replayed(document: dict[str, Any], spike: dict[str, Any], near: list[dict[str, Any]]) -> tuple[str, str, Chart]:
    """The recorded validation loss around a spike, and what it was with each remedy that was tried."""
    replay, epochs = spike["replay"], _epochs(near)
    before = {row["epoch"]: row["validation_loss"] for row in document["history"] if row["epoch"] == replay["epochs"][0] - 1}
    series = [Series("as recorded", "validation", _values(near, "validation_loss"))]
    for place, proof in enumerate(replay["proofs"][:MAX_CURVES]):
        again = before | dict(zip(replay["epochs"], proof["losses"], strict=True))
        values = np.array([np.nan if again.get(each) is None else again[each] for each in epochs.tolist()], float)
        series.append(Series(proof["settings"], f"curve-{2 * place % MAX_CURVES}", values))
    rules = [Marker(0, "", "guess", spike["spike"]["baseline"])]
    chart = charts.over_epochs(f"Epoch {spike['spike']['epoch']} trained again", epochs, series, rules=rules, ticks=3)
    begin = f"from the checkpoint after epoch {replay['start']}" if replay["start"] else "from the initial weights"
    text = f"Validation loss, trained again {begin}. With nothing changed it is the same to the last bit."
    return "Trained again", text, chart


def whole_percent(fraction: float | None) -> str:
    """A fraction of a rise in whole percent: its interval is too wide for decimals."""
    return "–" if fraction is None else describe.percent(fraction).replace("%", " %")


def _short(spike: dict[str, Any]) -> str:
    """A spike's cause in a word or two."""
    cause = spike["causes"][0]["name"]
    return spike["name"].removeprefix("a ") if cause == "run_event" else cause.replace("_", " ").replace("batchnorm", "BatchNorm")


def _epochs(history: list[dict[str, Any]]) -> np.ndarray:
    return np.array([row["epoch"] for row in history])


def _values(history: list[dict[str, Any]], key: str) -> np.ndarray:
    """One field of the history, NaN where it is null."""
    return np.array([np.nan if row[key] is None else row[key] for row in history], float)


def _series(history: list[dict[str, Any]], key: str) -> Series:
    return Series(*LEGENDS[key], _values(history, key))


def _points(probe: dict[str, Any] | None) -> list[tuple[float, float]]:
    """The losses that a probe measured, by position; empty if too few for a line."""
    measured = probe["facts"]["losses"] if probe else {}
    points = sorted((float(at), np.nan if loss is None else loss) for at, loss in measured.items())
    return points if len(points) > 1 else []
