"""Owns the content of report.json, one dict of JSON types. docs/report.md describes its fields.

`scores` computes the numbers, `sentences` puts them into words; `write` makes the files.

Shapes: N validation (or test) images, K classes, E epochs.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from spikewise import describe, describe_curve, detect, proof
from spikewise.curve import shares
from spikewise.proof import Experiment
from spikewise.records import Course, Diagnosis
from trainer import __version__
from trainer.epoch import EpochReport, best
from trainer.report import scores, sentences
from trainer.report.result import EvaluatedTest, RunResult

HARDEST = 24
"""Validation images listed as the hardest."""
SUSPECTS = 12
"""Images listed for a spike, or for one of its batches."""
BATCHES = 3
"""Batches listed for a spike."""


def summarize(result: RunResult) -> dict[str, Any]:
    """Computes the content of report.json: JSON types only; a number that is unknown or not finite is None."""
    history, labels, found = result.history, np.asarray(result.labels, int), result.findings
    cluster = scores.clusters(result.groups)
    kept = next((index for index, report in enumerate(history) if report.epoch == result.epoch), None)
    lowest = best(history)
    answered, predictions = _predictions(result.probabilities)
    right = predictions == labels
    losses = _losses(result, kept, labels)
    validation = _side(result.classes, labels, cluster, losses, right, answered)
    document = {
        "spikewise": __version__,
        "run": result.run,
        "outcome": result.outcome,
        "classes": list(result.classes),
        "epochs": len(history),
        "epoch": result.epoch,
        "best_epoch": None if lowest is None else lowest.epoch,
        "best_validation_loss": None if lowest is None else lowest.validation_loss,
        "seconds": sum(report.seconds for report in history),
        "images_per_second": float(np.median([report.images_per_second for report in history])) if history else None,
        "input_wait": float(np.median([report.input_wait for report in history])) if history else None,
        "restarts": _restarts(history),
        **_explained(result, validation["guess_loss"]),
        "spikes": None if found is None else [_spike(result, diagnosis) for diagnosis in found.diagnoses],
        "overfitting": None if found is None or found.overfitting is None else found.overfitting.as_dict(),
        "parts": [] if found is None else [parts.as_dict() for parts in found.parts],
        "shares": None if found is None else shares(found.parts),
        "standing": [] if found is None else [one.as_dict() for one in found.standing],
        "roll_backs": [dict(one) for one in result.roll_backs],
        "generalization_gap": None if kept is None else history[kept].validation_loss - history[kept].train_loss_inference,
        "validation": validation,
        "test": None if result.test is None else _tested(result.classes, result.test),
        "confusion": scores.confusion(labels[answered], predictions[answered], len(result.classes)).tolist(),
        "per_class": _per_class(result.classes, labels, predictions, cluster),
        "roc": _roc(result.classes, labels, result.probabilities, answered, cluster),
        "calibration": _calibration(result.probabilities[answered], right[answered]),
        "hardest": _hardest(result, labels, predictions, losses),
        "worst_fraction": _worst_fraction(losses),
        "history": [report.as_dict() for report in history],
        "data": result.data,
        "config": result.config,
        "environment": result.environment,
        "network": result.network,
    }
    document = _strict(document)
    return {**document, "headline": sentences.headline(document), "notes": sentences.notes(document)}


def _side(
    classes: tuple[str, ...], labels: np.ndarray, cluster: np.ndarray, losses: np.ndarray, right: np.ndarray, answered: np.ndarray
) -> dict[str, Any]:
    """The results on the validation or the test set as a whole."""
    counts = np.bincount(labels, minlength=len(classes))
    return {
        "images": len(labels),
        "groups": int(cluster.max()) + 1 if len(cluster) and int(cluster.max()) + 1 < len(cluster) else None,
        "by_class": dict(zip(classes, counts.tolist(), strict=True)),
        "unanswered": int((~answered).sum()),
        "loss": asdict(scores.mean(losses, cluster)),
        "accuracy": asdict(scores.fraction(right, cluster) if answered.any() else scores.NOTHING),
        "majority": {"class": classes[int(counts.argmax())], "fraction": float(counts.max() / len(labels))}
        if len(labels)
        else None,
        "guess_loss": float(-sum(c / len(labels) * math.log(c / len(labels)) for c in counts if c)) if len(labels) else None,
    }


def _explained(result: RunResult, guess: float | None) -> dict[str, Any]:
    """What happened to the validation loss: as a paragraph, and by question; both None if the run was not diagnosed."""
    found = result.findings
    if found is None or not result.history:
        return {"spikes_summary": None, "answers": None}
    count, course = len(result.history), _course(result, guess)
    tried = [_experiment(result, diagnosis) for diagnosis in found.diagnoses]
    helpful = [proof.sentence(one, one.best) for one in tried if one and one.best]
    useless = [sentence for one in tried if one and not one.best for sentence in proof.sentences(one)]
    answers = describe_curve.answers(found, count, course, [*helpful, *useless])
    if found.diagnoses and not any(tried):
        answers.tried.append(_not_tried(result, found.diagnoses))
    return {"spikes_summary": describe_curve.explained(found, count, course, helpful), "answers": answers._asdict()}


def _not_tried(result: RunResult, diagnoses: Sequence[Diagnosis]) -> str:
    """The command that tries the remedies of the spike with the largest rise."""
    worst = max(diagnoses, key=lambda one: np.nan_to_num(one.spike.rise, nan=np.inf)).spike.epoch
    storage = result.config.get("run", {}).get("storage", "...")
    command = f"python -m jobs.replay --run {result.run} --storage {storage} --spike {worst}"
    return f"Not trained again yet. To try what the diagnosis proposes, on machines like those of the run: {command}"


def _course(result: RunResult, guess: float | None) -> Course:
    """What there is to say about the curve besides its spikes."""
    sensitivity = result.config.get("diagnosis", {}).get("sensitivity", 1.0)
    known = {one.spike.epoch for one in result.findings.diagnoses} if result.findings else ()
    detector = detect.replay([report.validation_loss for report in result.history], sensitivity, known)
    return detect.course(detector, math.nan if guess is None else guess)


def _tested(classes: tuple[str, ...], test: EvaluatedTest) -> dict[str, Any]:
    labels, cluster = np.asarray(test.labels, int), scores.clusters(test.groups)
    answered, predictions = _predictions(test.probabilities)
    return {
        **_side(classes, labels, cluster, test.losses.astype(float), predictions == labels, answered),
        "auc": [
            {"class": curve["class"], **curve["auc"]} for curve in _roc(classes, labels, test.probabilities, answered, cluster)
        ],
        "confusion": scores.confusion(labels[answered], predictions[answered], len(classes)).tolist(),
    }


def _predictions(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, K] -> whether all probabilities of an image are finite, bool [N], and its predicted class, int [N] (-1 if not)."""
    answered = np.isfinite(probabilities).all(1)
    return answered, np.where(answered, np.where(answered[:, None], probabilities, 0).argmax(1), -1)


def _restarts(history: list[EpochReport]) -> list[dict[str, int]]:
    """The epochs in which the run was resumed, with the number of resumes so far."""
    before = [0] + [report.restarts for report in history]
    return [{"epoch": r.epoch, "restarts": r.restarts} for r, so_far in zip(history, before, strict=False) if r.restarts > so_far]


def _spike(result: RunResult, diagnosis: Diagnosis) -> dict[str, Any]:
    """A diagnosis, its name and headline, and the images that it blames."""
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
    experiment = _experiment(result, diagnosis)
    replay = None if experiment is None else {**experiment.as_dict(), "sentences": proof.sentences(experiment)}
    words = {"replay": replay, "name": describe.name(diagnosis), "headline": describe.headline(diagnosis.spike)}
    return {**diagnosis.as_dict(), **words, "images": images, "batches": _batches(result, diagnosis)}


def _experiment(result: RunResult, diagnosis: Diagnosis) -> Experiment | None:
    """What training this spike again found; None if it was not."""
    return next((one for one in result.experiments if one.is_about(diagnosis.spike)), None)


def _batches(result: RunResult, diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """The training batches that the verdict blames, with the images of highest loss first."""
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
        # numbered from 1, as in the evidence
        found.append({"batch": number + 1, "loss": loss, "usual": facts["usual"], "of": len(each), "images": images})
    return found


def _losses(result: RunResult, kept: int | None, labels: np.ndarray) -> np.ndarray:
    """Losses [N] of the epoch shown, computed from the probabilities if they were not stored."""
    if kept is not None and kept < len(result.losses) and np.isfinite(result.losses[kept]).any():
        return result.losses[kept].astype(float)
    return -np.log(np.maximum(result.probabilities[np.arange(len(labels)), labels].astype(float), 1e-38))


def _per_class(classes: tuple[str, ...], labels: np.ndarray, predictions: np.ndarray, cluster: np.ndarray) -> list[dict[str, Any]]:
    """Images, recall and precision of each class."""

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


def _roc(
    classes: tuple[str, ...], labels: np.ndarray, probabilities: np.ndarray, answered: np.ndarray, cluster: np.ndarray
) -> list[dict[str, Any]]:
    """One curve for two classes (that of the second), else one for each class against the rest; thinned for drawing."""
    curves = []
    for index in [1] if len(classes) == 2 else range(len(classes)):
        positive, score = labels[answered] == index, probabilities[answered, index].astype(float)
        curve: dict[str, Any] = {"class": classes[index], "auc": asdict(scores.auc(positive, score, cluster[answered]))}
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
    """The images of highest loss, non-finite losses first."""
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
    """The fraction of the total loss that the worst 1 % of the images carry; None if it is not finite or 0."""
    if not len(losses) or not np.isfinite(losses).all() or not losses.sum():
        return None
    images = math.ceil(len(losses) / 100)
    return {"images": images, "fraction": float(np.sort(losses)[-images:].sum() / losses.sum())}


def _strict(value: Any) -> Any:
    """The same value in JSON types; None for a number that is not finite."""
    if isinstance(value, dict):
        return {str(key): _strict(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
