"""Draws loss.png, the loss curves as a picture, with matplotlib, for places that show no HTML."""

import io
from dataclasses import replace
from typing import Any

import numpy as np

from spikewise.describe import printable
from trainer.report.charts import FLIP, apart, number, value_scale
from trainer.report.figures import losses, spike_markers

VALIDATION, INFERENCE, TRAINING, SPIKE = "#c2410c", "#0b6bab", "#9aa4ae", "#7a1f06"
CHARACTER = 1.2
"""Width of a character of a spike's text, in percent of the axes."""
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
"""Background of a text, which keeps it legible where it crosses a line."""


def loss_png(document: dict[str, Any]) -> bytes:
    """Draws the loss curves of report.json's `document`: a PNG of 1600 x 800 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    history, curves = document["history"], losses(document["history"])
    figure = Figure(figsize=(8, 4), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) == 1 else None
    for curve, colour, width in zip(curves, (VALIDATION, INFERENCE, TRAINING), (2.0, 1.6, 1.2), strict=True):
        axes.plot(epochs, curve.values, color=colour, linewidth=width, label=curve.name, marker=marker, zorder=width)
    spikes = spike_markers(document)
    places = [replace(spike, x=100 * (spike.x - epochs[0]) / max(1, epochs[-1] - epochs[0])) for spike in spikes]
    for spike, place in zip(spikes, apart(places, widths=(CHARACTER,)), strict=True):
        axes.axvline(spike.x, color=VALIDATION, linewidth=0.8, linestyle=":", zorder=1)
        if spike.y is not None:
            axes.plot(spike.x, spike.y, "v", color=SPIKE, markersize=7, markeredgecolor="white", zorder=5)
        if place.text:
            left_half = place.x <= FLIP
            axes.annotate(
                spike.text,
                (spike.x, 1.0),
                (4 if left_half else -4, -3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="left" if left_half else "right",
                va="top",
                fontsize=8,
                color=SPIKE,
                bbox=WHITE,
            )
    if document["best_epoch"] is not None:
        best = (document["best_epoch"], document["best_validation_loss"])
        axes.plot(*best, "o", color=VALIDATION, markersize=7, markeredgecolor="white", zorder=4)
        axes.annotate(
            f"{number(best[1])} after epoch {best[0]}",
            best,
            (0, -14),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9,
            bbox=WHITE,
        )
    if value_scale(np.array([curve.values for curve in curves]).ravel()).log:
        axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss (nats per image)")
    axes.set_title(printable(document["run"]).replace("$", r"\$"), loc="left", fontsize=11)
    axes.grid(axis="y", color="#e5e7eb")
    axes.spines[["top", "right"]].set_visible(False)
    if document["spikes"]:  # the spikes' texts take the legend's usual place
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=3)
    elif history:
        axes.legend(frameon=False, fontsize=9)
    target = io.BytesIO()
    FigureCanvasAgg(figure).print_png(target)
    return target.getvalue()
