"""The report of a run: `report.html` for people, `report.json` for programs, `loss.png` for a README or a chat.

Separation of concerns: this module makes the facts, one dict of JSON types whose fields docs/report.md describes (`scores`
computes the numbers), and writes the files; `page` says and draws them.

Shapes: N validation images, K classes, E epochs.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikewise import describe
from spikewise.records import Diagnosis, Overfitting
from trainer import __version__
from trainer.epoch import EpochReport
from trainer.epoch import best as best_epoch
from trainer.report import page, scores

HARDEST = 24
SUSPECTS = 12
"""Most images listed for a spike, or for one of its batches."""
BATCHES = 3
"""Most batches shown for a spike."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A training image as a batch held it."""

    key: str
    label: int
    image: np.ndarray
    """uint8 [H, W, 3]."""


@dataclass(frozen=True)
class RunResult:
    """Everything a report is made of, loaded from what a run stored."""

    run: str
    outcome: str
    """`completed`, `stopped early`, `interrupted` or `failed: <why>`."""
    config: dict[str, Any]
    """`Config.digestible()`."""
    environment: dict[str, str]
    classes: tuple[str, ...]
    data: dict[str, Any]
    """`Split.facts`, `images`, `manifest` (the digest) and `quarantined`, a list of {key, reason}."""
    history: list[EpochReport]
    epoch: int
    """The epoch that `probabilities` is of."""
    keys: list[str]
    """Of the validation images, N; as are `groups`, where "" means that an image stands for itself."""
    groups: list[str]
    labels: np.ndarray
    """[N] int."""
    probabilities: np.ndarray
    """[N, K] float32."""
    losses: np.ndarray
    """[E, N] float32, nats; row i is of `history[i]`, NaN where it was not stored."""
    thumbnail: Callable[[int], np.ndarray]
    """Validation index -> uint8 [H, W, 3]."""
    diagnoses: Sequence[Diagnosis] | None = None
    """Of the validation loss' spikes; None for a run that was not watched for them."""
    overfitting: Overfitting | None = None
    batch: Callable[[int, int], Sequence[Trained]] | None = None
    """Epoch, number of one of its batches from 0 -> the batch's images; None where they cannot be looked up."""


def write(result: RunResult, folder: Path) -> dict[str, Any]:
    """Writes report.html, report.json and loss.png into `folder`, each whole or not at all; returns the JSON's dict.

    Raises OSError when the folder cannot be written, and what `thumbnail` raises, before anything is written.
    """
    document = summarize(result)
    listed = [document["hardest"], *(spike["images"] for spike in document["spikes"] or [])]
    pictures: dict[page.Place, page.Picture] = {
        row["index"]: page.Picture(result.thumbnail(row["index"]), result.losses[:, row["index"]])
        for rows in listed
        for row in rows
    }
    for spike in document["spikes"] or []:
        for batch in spike["batches"]:
            epoch, number = spike["spike"]["epoch"], batch["batch"]
            held = result.batch(epoch, number - 1) if result.batch else []
            places = [row["place"] for row in batch["images"]]
            pictures |= {(epoch, number, place): page.Picture(held[place].image, np.empty(0)) for place in places}
    files = {
        "loss.png": page.loss_png(document),
        "report.html": page.render(document, pictures).encode("utf-8", "backslashreplace"),
        "report.json": (json.dumps(document, indent=1, allow_nan=False) + "\n").encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        temporary = folder / f".{name}.{os.getpid()}"
        temporary.write_bytes(content)
        temporary.replace(folder / name)
    return document


def summarize(result: RunResult) -> dict[str, Any]:
    """The content of report.json: JSON types only, every number finite or None."""
    history, labels = result.history, np.asarray(result.labels, int)
    cluster = scores.clusters(result.groups)
    kept = next((index for index, report in enumerate(history) if report.epoch == result.epoch), None)
    best = best_epoch(history)
    answered = np.isfinite(result.probabilities).all(1)
    predictions = np.where(answered, np.where(answered[:, None], result.probabilities, 0).argmax(1), -1)
    right = predictions == labels
    losses = _losses(result, kept, labels)
    counts = np.bincount(labels, minlength=len(result.classes))
    document = {
        "spikewise": __version__,
        "run": result.run,
        "outcome": result.outcome,
        "classes": list(result.classes),
        "epochs": len(history),
        "epoch": result.epoch,
        "best_epoch": None if best is None else best.epoch,
        "best_validation_loss": None if best is None else best.validation_loss,
        "seconds": sum(report.seconds for report in history),
        "images_per_second": float(np.median([report.images_per_second for report in history])) if history else None,
        "input_wait": float(np.median([report.input_wait for report in history])) if history else None,
        "restarts": _restarts(history),
        "spikes_summary": None
        if result.diagnoses is None or not history
        else describe.summary(result.diagnoses, result.overfitting, len(history)),
        "spikes": None if result.diagnoses is None else [_spike(result, diagnosis) for diagnosis in result.diagnoses],
        "overfitting": None if result.overfitting is None else result.overfitting.as_dict(),
        "generalization_gap": None if kept is None else history[kept].validation_loss - history[kept].train_loss_inference,
        "validation": {
            "images": len(labels),
            "groups": int(cluster.max()) + 1 if len(cluster) and int(cluster.max()) + 1 < len(cluster) else None,
            "by_class": dict(zip(result.classes, counts.tolist(), strict=True)),
            "unanswered": int((~answered).sum()),
            "loss": asdict(scores.mean(losses, cluster)),
            "accuracy": asdict(scores.fraction(right, cluster) if answered.any() else scores.NOTHING),
            "majority": {"class": result.classes[int(counts.argmax())], "fraction": float(counts.max() / len(labels))}
            if len(labels)
            else None,
            "guess_loss": float(-sum(c / len(labels) * math.log(c / len(labels)) for c in counts if c)) if len(labels) else None,
        },
        "confusion": scores.confusion(labels[answered], predictions[answered], len(result.classes)).tolist(),
        "per_class": _per_class(result.classes, labels, predictions, cluster),
        "roc": _roc(result, labels, answered, cluster),
        "calibration": _calibration(result.probabilities[answered], right[answered]),
        "hardest": _hardest(result, labels, predictions, losses),
        "worst_fraction": _worst_fraction(losses),
        "history": [report.as_dict() for report in history],
        "data": result.data,
        "config": result.config,
        "environment": result.environment,
    }
    document = _strict(document)
    return {**document, "headline": page.headline(document), "notes": page.notes(document)}


def _restarts(history: list[EpochReport]) -> list[dict[str, int]]:
    """The epochs that a resume led into, with the number of resumes so far."""
    before = [0] + [report.restarts for report in history]
    return [{"epoch": r.epoch, "restarts": r.restarts} for r, so_far in zip(history, before, strict=False) if r.restarts > so_far]


def _spike(result: RunResult, diagnosis: Diagnosis) -> dict[str, Any]:
    """A diagnosis with its words, and the images that it names as the cause."""
    suspects = diagnosis.suspects if diagnosis.verdict.name == "few_examples" else ()
    images = [
        {
            "index": one.image,
            "key": result.keys[one.image],
            "label": result.classes[result.labels[one.image]],
            "prediction": one.prediction,
            "probability": one.probability,
            "before": one.before,
            "now": one.now,
            "looks": one.looks,
        }
        for one in suspects[:SUSPECTS]
    ]
    told = {"name": describe.name(diagnosis), "headline": describe.headline(diagnosis.spike)}
    return {**diagnosis.as_dict(), **told, "images": images, "batches": _batches(result, diagnosis)}


def _batches(result: RunResult, diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """The training batches that are the verdict, their images of highest loss first."""
    facts = next((probe.facts for probe in diagnosis.probes if probe.name == "bad_batches"), {})
    if diagnosis.verdict.name != "bad_batch" or "each" not in facts:
        return []
    found = []
    for number, loss, each in zip(*(facts[name][:BATCHES] for name in ("batches", "losses", "each")), strict=True):
        held = result.batch(diagnosis.spike.epoch, number) if result.batch else []
        worst = np.argsort(-np.nan_to_num(np.array(each[: len(held)], float), nan=np.inf), kind="stable")
        images = [
            {"place": int(i), "key": held[i].key, "label": result.classes[held[i].label], "loss": each[i]} for i in worst[:SUSPECTS]
        ]
        # counted from 1, as in the sentences
        found.append({"batch": number + 1, "loss": loss, "usual": facts["usual"], "of": len(each), "images": images})
    return found


def _losses(result: RunResult, kept: int | None, labels: np.ndarray) -> np.ndarray:
    """Losses [N] of the epoch shown; from the probabilities where they were not stored."""
    if kept is not None and kept < len(result.losses) and np.isfinite(result.losses[kept]).any():
        return result.losses[kept].astype(float)
    return -np.log(np.maximum(result.probabilities[np.arange(len(labels)), labels].astype(float), 1e-38))


def _per_class(classes: tuple[str, ...], labels: np.ndarray, predictions: np.ndarray, cluster: np.ndarray) -> list[dict[str, Any]]:
    """Recall: how many of a class were recognized; precision: how many of those called so were."""

    def fraction(hits: np.ndarray, among: np.ndarray) -> dict[str, Any]:
        return asdict(scores.fraction(hits[among], np.unique(cluster[among], return_inverse=True)[1]))

    return [
        {
            "class": name,
            "images": int((labels == index).sum()),
            "recall": fraction(predictions == index, labels == index),
            "precision": fraction(labels == index, predictions == index),
        }
        for index, name in enumerate(classes)
    ]


def _roc(result: RunResult, labels: np.ndarray, answered: np.ndarray, cluster: np.ndarray) -> list[dict[str, Any]]:
    """One curve for two classes (of the second), else one for each class against the rest; thinned for drawing."""
    curves = []
    for index in [1] if len(result.classes) == 2 else range(len(result.classes)):
        positive, score = labels[answered] == index, result.probabilities[answered, index].astype(float)
        curve: dict[str, Any] = {"class": result.classes[index], "auc": asdict(scores.auc(positive, score, cluster[answered]))}
        false, found, thresholds = scores.roc(positive, score) if curve["auc"]["value"] is not None else (np.empty(0),) * 3
        chosen = scores.thin(false, found) if len(false) else np.empty(0, int)
        for name, values in (("false_positive_rate", false), ("true_positive_rate", found), ("threshold", thresholds)):
            curve[name] = np.round(values[chosen], 6).tolist()
        curves.append(curve)
    return curves


def _calibration(probabilities: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    confidence = probabilities.max(1, initial=0).astype(float)
    error, bins = scores.calibration(confidence, right)
    averages = (float(confidence.mean()), float(right.mean())) if len(right) else (None, None)
    return {"expected_error": error, "confidence": averages[0], "accuracy": averages[1], "bins": bins}


def _hardest(result: RunResult, labels: np.ndarray, predictions: np.ndarray, losses: np.ndarray) -> list[dict[str, Any]]:
    """The images of highest loss, not finite first."""
    order = np.argsort(-np.nan_to_num(losses, nan=np.inf), kind="stable")[:HARDEST]
    return [
        {
            "index": int(index),
            "key": result.keys[index],
            "group": result.groups[index],
            "label": result.classes[labels[index]],
            "prediction": result.classes[predictions[index]] if predictions[index] >= 0 else None,
            "probability": float(result.probabilities[index].max()),
            "label_probability": float(result.probabilities[index, labels[index]]),
            "loss": float(losses[index]),
        }
        for index in order
    ]


def _worst_fraction(losses: np.ndarray) -> dict[str, Any] | None:
    """How much of the whole loss the worst 1 % of the images carry."""
    if not len(losses) or not np.isfinite(losses).all() or not losses.sum():
        return None
    images = math.ceil(len(losses) / 100)
    return {"images": images, "fraction": float(np.sort(losses)[-images:].sum() / losses.sum())}


def _strict(value: Any) -> Any:
    """JSON types only; None for what is not finite."""
    if isinstance(value, dict):
        return {str(key): _strict(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
