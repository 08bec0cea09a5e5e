"""Owns the report's sentences about the whole run, made from the fields of report.json. Sentences about spikes come from
`spikewise.describe`."""

from typing import Any

import numpy as np

from trainer.report.charts import number, percent

FEW_GROUPS = 30
"""Below this many groups the bootstrap's intervals are rough."""
EXPLAINS = 0.1
"""Copies with another label explain an AUC below 0.5 if at least this fraction of the validation images has one."""
NOTABLE_WAIT = 0.2
"""A note is shown if waiting for input took more than this fraction of the training time."""


def headline(document: dict[str, Any]) -> list[str]:
    """How the run went; the first sentence is the report's title."""
    if not document["epochs"]:
        return ["No epoch finished", "There is nothing to report yet."]
    accuracy, majority = document["validation"]["accuracy"], document["validation"]["majority"]
    if accuracy["value"] is None:
        return ["No usable validation results", _course(document)]
    correct = f"{percent(accuracy['value'])} of {amount(document['validation']['images'], 'unseen image')}"
    always = f"always predicting “{majority['class']}” would get {percent(majority['fraction'])} right"
    if majority["fraction"] == 1:  # a single class: nothing to guess
        sentences = [f"{correct} classified correctly"]
    elif accuracy["low"] is not None and accuracy["low"] <= majority["fraction"]:
        worse = accuracy["high"] < majority["fraction"] or _ranks_wrongly(document)
        title = "Worse than guessing" if worse else "Not clearly better than guessing"
        sentences = [title, f"{correct} are classified correctly; {always}."]
    else:
        sentences = [f"{correct} classified correctly", f"{always[0].upper()}{always[1:]}."]
    if _ranks_wrongly(document):
        sentences += _why_below_guessing(document)
    if document["test"]:
        sentences.append(_tested(document["test"]))
    sentences.append(_course(document))
    shown, best = document["epoch"], document["best_epoch"]
    if best not in (None, shown):
        sentences.append(f"This page shows the results of epoch {shown}.")
        if document["config"]["training"]["keep"] == "last":
            sentences.append(f'Set training.keep = "best" to keep the model of epoch {best}.')
    return sentences


def notes(document: dict[str, Any]) -> list[str]:
    """What to know before trusting the numbers; empty for an undisturbed run on clean data."""
    validation, data = document["validation"], document["data"]
    found = []
    missing = [name for name, count in validation["by_class"].items() if not count]
    if validation["images"] and missing:
        found.append(f"No validation images of {', '.join(missing)}: how well the model recognizes this is unknown.")
    if validation["groups"] and validation["groups"] < FEW_GROUPS:
        found.append(f"The validation images come from only {amount(validation['groups'], 'group')}: the intervals are rough.")
    if validation["unanswered"]:
        counted = "; they count as wrong" if validation["accuracy"]["value"] is not None else ""
        found.append(f"The model gave no finite probability for {amount(validation['unanswered'], 'validation image')}{counted}.")
    if leaked := data["near_leaked"]["images"] * (not data["near_leaked"]["left_out"]):
        where = ("Validation or test", "training or validation") if document["test"] else ("Validation", "training")
        found.append(f"{where[0]} images with a near copy in {where[1]}: {leaked:,} (see Data); they are not unseen.")
    if copies := data["conflicting_labels"]["images"]:
        found.append(f"Exact copies with different labels: {amount(copies, 'image')} (see Data).")
    if data["quarantined"]:
        found.append(f"Left out because they cannot be decoded: {amount(len(data['quarantined']), 'image')} (see Data).")
    for back in document["roll_backs"]:
        target = f"to the end of epoch {back['to_epoch']}" if back["to_epoch"] else "to the beginning"
        found.append(f"{back['what']} The run went back {target}, with {back['settings']}.")
    if document["restarts"]:
        epochs = ", ".join(str(restart["epoch"]) for restart in document["restarts"])
        found.append(f"Training resumed from a checkpoint in epoch {epochs}.")
    if (wait := document["input_wait"] or 0) > NOTABLE_WAIT:
        found.append(f"The slowest worker spent {percent(wait)} of the training time waiting for input.")
    return found


def _ranks_wrongly(document: dict[str, Any]) -> bool:
    """Whether the AUC of two classes is significantly below that of guessing."""
    auc = document["roc"][0]["auc"] if len(document["roc"]) == 1 else {"high": None}
    return auc["high"] is not None and auc["high"] < 0.5


def _why_below_guessing(document: dict[str, Any]) -> list[str]:
    """Why a model can rank the classes the wrong way round, with the copies that were found as evidence."""
    auc, images = document["roc"][0]["auc"], document["validation"]["images"]
    copies, near = document["data"]["contradicted"]["images"], "near copy with another label in training"
    found = [f"The AUC of {number(auc['value'])} is clearly below 0.5: the model has learned to give the wrong label."]
    if copies:
        found.append(
            f"{copies:,} of {amount(images, 'validation image')} ({percent(copies / images)}) have a {near}: a model that "
            "remembers the copy answers with the copy's label. Fix: keep such images on one side, with data.group_by or "
            "data.group_near_duplicates = true."
        )
    if copies < EXPLAINS * images:
        found.append(
            f"{'This is too few to explain it' if copies else f'No validation image has a {near}'}. Check whether the labels of "
            "one side are swapped, and whether images of one photograph with different labels are on both sides (data.group_by "
            "keeps them together)."
        )
    return found


def _tested(test: dict[str, Any]) -> str:
    """The result on the test set."""
    auc = f", AUC {number(test['auc'][0]['value'])}" if len(test["auc"]) == 1 else ""
    return f"Test set: {percent(test['accuracy']['value'])} of {amount(test['images'], 'image')} classified correctly{auc}."


def amount(count: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _course(document: dict[str, Any]) -> str:
    """How the validation loss developed over the epochs."""
    history = document["history"]
    losses = [row["validation_loss"] for row in history]
    if document["best_epoch"] is None:
        return "The validation loss was never finite."
    finite = [index for index, loss in enumerate(losses) if loss is not None]
    best = next(index for index, row in enumerate(history) if row["epoch"] == document["best_epoch"])
    lowest = f"The validation loss was lowest, {number(losses[best])}, after epoch {document['best_epoch']} of {len(history)}"
    if finite[-1] < len(history) - 1:
        return f"{lowest}. Since epoch {history[finite[-1] + 1]['epoch']} it is no longer finite: training diverged."
    if len(history) < 3:
        return f"{lowest}: too few epochs to see a trend."
    if best >= len(history) - max(2, len(history) // 10):
        return f"{lowest}, close to the end: more epochs may lower it further."
    recent = float(np.median([losses[index] for index in finite[-5:]]))
    last, median = losses[finite[-1]], f"{number(recent)} is the median of the last five epochs"
    if recent < 1.1 * losses[best]:
        return f"{lowest}, and has stayed close to it since ({median}): more epochs are unlikely to help."
    risen = (
        f"{lowest}. It has since risen to {number(last)}"
        if last > 1.1 * losses[best]
        else f"{lowest}. It has since risen ({median})"
    )
    if document["overfitting"] is not None:  # the summary of the spikes says why
        return f"{risen}."
    start, end = history[best]["train_loss_inference"], history[-1]["train_loss_inference"]
    if start is not None and end is not None and end < start:
        fell = f"the loss on training images fell from {number(start)} to {number(end)}"
        return f"{risen} while {fell}: the model memorizes them (overfitting)."
    return f"{risen}, and the loss on training images did not fall further either."
