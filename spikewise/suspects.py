"""The single validation images that made a rise, and what each looks like. Pure."""

from collections.abc import Sequence

from spikewise.records import Case, Look, Suspect

SURE = 0.9
"""Probability of another class, above which a label looks wrong."""
HALF = 0.5
"""Share of the rise from which a condition that removes it explains it."""


def suspects(case: Case) -> tuple[Suspect, ...]:
    """The images without which most of the rise is gone, the one that rose most first; empty if that was not looked at."""
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
    """What most of the images look like."""
    known = [image.looks for image in images if image.prediction is not None or image.looks]
    for one in ("damaged", "mislabelled"):
        if known.count(one) > HALF * len(known):  # type: ignore[arg-type]
            return one  # type: ignore[return-value]
    return None
