"""Diagnoses in plain words."""

import textwrap

from trainer.diagnosis.records import Diagnosis

WIDTH = 110
SHOWN = 3
"""Causes named in the log."""


def block(diagnosis: Diagnosis) -> str:
    """What the log says of a spike: several lines of at most WIDTH characters."""
    spike = diagnosis.spike
    lines = [
        f"SPIKE in epoch {spike.epoch}: validation loss {spike.loss:.3f} where {spike.baseline:.3f} was expected, "
        f"{spike.rise:+.3f} (95 %: {spike.low:+.3f} to {spike.high:+.3f})"
    ]
    for number, cause in enumerate(diagnosis.causes[:SHOWN], 1):
        share = f", {cause.share:.0%} of the rise ({cause.low:.0%} to {cause.high:.0%})" if cause.share == cause.share else ""
        lines.append(f"  {number}. {cause.name}{share}")
        for text in (cause.evidence, f"-> {cause.remedy}"):
            lines += textwrap.wrap(text, WIDTH, initial_indent="     ", subsequent_indent="     ")
    return "\n".join(lines)
