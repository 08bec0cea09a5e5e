"""The truth about one spike: its epochs trained again from the state before it, with nothing changed and with one thing changed.

Shapes: n validation images, r spare images, k epochs that are trained again.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.natural_spikes.experiments import Change
from benchmarks.natural_spikes.remedies import DRAW, FALLBACK, ORDER, STANDARD, WITHOUT, own, parsed
from benchmarks.natural_spikes.runs import NaturalRun
from spikewise import proof
from spikewise.proof import Proof
from spikewise.records import Diagnosis, Spike
from spikewise.suspects import HALF
from trainer.run.replay import MOST_EPOCHS


def investigate(run: NaturalRun, before: dict[str, Any], diagnosis: Diagnosis, history: Sequence[np.ndarray]) -> dict[str, Any]:
    """The control, what each change does, and the facts that a verdict must not contradict. `before`: the state before the spike's
    epoch; `history`: the losses [n] of each epoch of the run. Leaves the run in another state."""
    spike = diagnosis.spike
    last = min(spike.outcome_epoch or len(history), spike.epoch + MOST_EPOCHS - 1, len(history))
    count = last - spike.epoch + 1
    resampler = run.diagnostician.detector.resampler(len(history[0]))

    run.load(before)
    earlier = run.measure()
    control, measured, batches = [], [], []
    for _ in range(count):
        losses, of_batches = run.again()
        control.append(losses)
        batches.append(of_batches)
        measured.append(run.measure())
    there = measured[0]

    bad = any(probe.name == "bad_batches" for probe in diagnosis.probes)
    first, *others = [own(cause.as_dict(), bad_batches=bad) for cause in diagnosis.causes]
    lines = first + [line for cause in others for line in cause[:1]]  # of the others, what a person would try
    proofs = []
    for line in dict.fromkeys([*STANDARD, ORDER, DRAW, *FALLBACK, *lines]):
        if line == DRAW:
            proofs.append(another_draw(spike, control[0] - history[spike.epoch - 2], there.spare - earlier.spare))
            continue
        if line in STANDARD:
            treatment = [one.losses[line] for one in measured]
        else:
            change = _change(line, diagnosis)
            run.load(before)
            treatment = [run.again(change)[0] for _ in range(count)]
        proofs.append(proof.judge(spike, line, np.array(control), np.array(treatment), resampler))
    rise = there.training - earlier.training
    recorded = {spike.epoch + number: history[spike.epoch + number - 1] for number in range(count)}
    return {
        "control_equal": proof.mismatch(recorded, {spike.epoch + i: losses for i, losses in enumerate(control)}) is None,
        "proofs": [asdict(one) for one in proofs],
        "validation_rise": float((control[0] - history[spike.epoch - 2]).mean()) if spike.epoch > 1 else None,
        "training_rise": float(rise.mean()),
        "training_error": float(rise.std() / np.sqrt(len(rise))),
        "batches": batches,
    }


def another_draw(spike: Spike, rise: np.ndarray, spare: np.ndarray) -> Proof:
    """What is left of the rise with other validation images: `rise` [n] of the images that showed it since the epoch before, and
    `spare` [r] of the unseen ones."""
    removed, error = float(rise.mean() - spare.mean()), float(spare.std() / np.sqrt(len(spare)))
    fraction, left = removed / float(rise.mean()), float(spare.mean())
    helps = removed - 1.96 * error > 0 and fraction >= proof.NOTABLE
    gone = fraction >= HALF and left <= spike.threshold
    verdict: proof.Verdict = "proven" if helps and gone else "helps in part" if helps else "does not help"
    low, high = removed - 1.96 * error, removed + 1.96 * error
    return Proof(DRAW, verdict, (spike.loss - removed,), removed, low, high, fraction, left)


def _change(line: str, diagnosis: Diagnosis) -> Change:
    if line == ORDER:
        return Change(other_order=True)
    if line == WITHOUT:
        stood_out = next(probe for probe in diagnosis.probes if probe.name == "bad_batches")
        return Change(without=tuple(stood_out.facts["batches"]))
    return Change(settings=parsed(line) or {})
