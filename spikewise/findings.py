"""Everything that the diagnosis has found in a run, as one value that can be stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spikewise.curve import Parts, parts_from
from spikewise.records import Diagnosis, Overfitting, diagnosis_from
from spikewise.standing import Standing, standing_from


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found since the start of the run."""

    diagnoses: tuple[Diagnosis, ...] = ()
    """One for each spike."""
    overfitting: Overfitting | None = None
    parts: tuple[Parts, ...] = ()
    """What the loss is made of, for each epoch in which that was measured."""
    standing: tuple[Standing, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "spikes": [diagnosis.as_dict() for diagnosis in self.diagnoses],
            "overfitting": self.overfitting and self.overfitting.as_dict(),
            "parts": [parts.as_dict() for parts in self.parts],
            "standing": [one.as_dict() for one in self.standing],
        }


def findings_from(values: Mapping[str, Any]) -> Findings:
    """The inverse of `Findings.as_dict`, also after a round trip through JSON. Raises KeyError, TypeError or ValueError."""
    trend = values["overfitting"]
    return Findings(
        tuple(diagnosis_from(one) for one in values["spikes"]),
        None if trend is None else Overfitting(**trend),
        tuple(parts_from(one) for one in values.get("parts", ())),
        tuple(standing_from(one) for one in values.get("standing", ())),
    )
