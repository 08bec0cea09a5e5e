"""Bad training batches: wrong labels, damaged or unscaled images."""

from collections.abc import Sequence

import numpy as np

from spikewise.causes.kind import CauseKind, Claim, claim_from, no_step_needed, percent
from spikewise.records import Case, Diagnosis, Probe


def _rule(case: Case) -> Claim | None:
    return claim_from(case.probes.get("bad_batches"), unless=[no_step_needed(case)])


def _batches(case: Case) -> str:
    return _named(case.probes["bad_batches"])


def _named(probe: Probe) -> str:
    """All bad batches, counted from 1, with runs of neighbours as ranges: "batches 3, 7-12 and 15"."""
    numbers = [batch + 1 for batch in probe.facts["batches"]]
    starts = [number for number in numbers if number - 1 not in numbers]
    stops = [number for number in numbers if number + 1 not in numbers]
    texts = [f"{start}" if start == stop else f"{start}-{stop}" for start, stop in zip(starts, stops, strict=True)]
    if len(numbers) == 1:
        return f"batch {texts[0]}"
    return f"batches {', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else f"batches {texts[0]}"


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    facts = case.probes["bad_batches"].facts
    loss, had = float(np.mean(facts["losses"])), []
    if set(facts["batches"]) <= set(facts["odd"]):
        had.append("activations far from those of other batches")
    if loss > facts["usual"] or not had:
        had.append(f"a loss of {loss:.2f} (other batches: {facts['usual']:.2f})")
    losses = f" (a loss of {facts['now']:.3f}; before: {facts['before']:.3f})" if "now" in facts else ""
    return (
        f"With the weights of the epoch before, {_batches(case)} of {case.hyperparameters.steps} had {' and '.join(had)}; "
        f"undoing the steps from there on removes {percent(case.fraction('bad_batches'))} of the rise{losses}."
    )


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    return f"look at the images and labels of {_batches(case)} of epoch {case.spike.epoch}."


def _advice(diagnoses: Sequence[Diagnosis]) -> str:
    found = [(one.spike.epoch, probe) for one in diagnoses for probe in one.probes if probe.name == "bad_batches"]
    if not found:  # a result without its probes
        return diagnoses[-1].verdict.remedy.rstrip(".")
    return f"look at the images and labels of {' and '.join(f'{_named(probe)} of epoch {epoch}' for epoch, probe in found)}"


CAUSE = CauseKind(
    "bad_batch", "a bad training batch", harms_training=True, rule=_rule, evidence=_evidence, remedy=_remedy, advice=_advice
)
