"""Everything that the diagnosis has found in a run, as one value that can be stored."""

from dataclasses import dataclass
from typing import Any

from spikewise.curve import Parts
from spikewise.records import Diagnosis, Overfitting
from spikewise.standing import Standing


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
