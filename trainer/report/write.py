"""Writes a run's report: `report.html` for people, `report.json` for programs, `loss.png` for a README or a chat."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from trainer.report.page import Place, Thumbnail, render
from trainer.report.picture import loss_png
from trainer.report.result import RunResult
from trainer.report.summary import summarize


def write(result: RunResult, folder: Path) -> dict[str, Any]:
    """Writes the three files into `folder`, each atomically; returns the content of report.json.

    Raises OSError if the folder cannot be written, and whatever `result.thumbnail` and `result.batch` raise: they are called
    before the first file is written, so a failure leaves an earlier report as it was.
    """
    document = summarize(result)
    files = {
        "loss.png": loss_png(document),
        "report.html": render(document, _thumbnails(result, document)).encode("utf-8", "backslashreplace"),
        "report.json": (json.dumps(document, indent=1, allow_nan=False) + "\n").encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        temporary = folder / f".{name}.{os.getpid()}"
        temporary.write_bytes(content)
        temporary.replace(folder / name)
    return document


def _thumbnails(result: RunResult, document: dict[str, Any]) -> dict[Place, Thumbnail]:
    """The images that the document names."""
    spikes = document["spikes"] or []
    found: dict[Place, Thumbnail] = {
        row["index"]: Thumbnail(result.thumbnail(row["index"]), result.losses[:, row["index"]])
        for rows in [document["hardest"], *(spike["images"] for spike in spikes)]
        for row in rows
    }
    for spike in spikes:
        for batch in spike["batches"]:
            epoch, number = spike["spike"]["epoch"], batch["batch"]
            held = result.batch(epoch, number - 1) if result.batch else []
            for row in batch["images"]:
                found[epoch, number, row["place"]] = Thumbnail(held[row["place"]].image, np.empty(0))
    return found
