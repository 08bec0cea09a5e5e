"""The individual validation images behind a rise, and what each looks like. Pure."""

from collections.abc import Sequence

from spikewise.records import Case, Look, Suspect

SURE = 0.9
"""Probability of another class above which a label looks wrong."""
HALF = 0.5
"""A condition that removes at least this fraction of the rise explains it."""


def suspects(case: Case) -> tuple[Suspect, ...]:
    """The images that explain most of the rise, the largest rise first; empty without the probe `few_examples`."""
    if "few_examples" not in case.probes:
        return ()
    replaced = case.fraction("earlier_weights") >= HALF
    found = []
    for entry in case.probes["few_examples"].facts["images"]:
        label, prediction, probability = case.predicted.get(entry["image"], (None, None, None))
        wrong = label != prediction and (probability or 0) > SURE
        looks: Look | None = "damaged" if replaced else "mislabelled" if wrong else None
        found.append(Suspect(entry["image"], entry["before"], entry["now"], label, prediction, probability, looks))
    return tuple(found)


def look(images: Sequence[Suspect]) -> Look | None:
    """What more than half of the images look like; None if there is no such majority."""
    known = [image.looks for image in images if image.prediction is not None or image.looks]
    looks: tuple[Look, ...] = ("damaged", "mislabelled")
    return next((one for one in looks if known.count(one) > HALF * len(known)), None)
