"""The training data of the epoch are other ones, or in another order, from some batch on."""

import numpy as np

from spikewise.batches import CLUSTERED
from spikewise.causes.kind import CauseKind, Claim, Fact, came_afterwards, claim_from, no_step_needed
from spikewise.records import Case
from spikewise.suspects import HALF


def _rule(case: Case) -> Claim | None:
    return claim_from(case.probes.get("training_data"), unless=[no_step_needed(case), _dropout(case)])


def _dropout(case: Case) -> Fact:
    """The fact that dropout makes the batches differ, not their order: their classes are mixed as always, and nothing else about
    the images changed."""
    facts = case.probes["training_data"].facts if "training_data" in case.probes else {}
    only = bool(facts) and not facts["shifted"] and facts["loss"] <= facts["loss_limit"]
    mixed = only and facts.get("sorting", np.nan) < CLUSTERED  # False for NaN
    return mixed and case.fraction("variance_shift") >= HALF, "the classes are mixed as always, and dropout makes batches differ"


def _since(case: Case) -> str:
    first = case.probes["training_data"].facts["first"]
    return f"from batch {first + 1} of epoch {case.spike.epoch} on" if first else f"in epoch {case.spike.epoch}"


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    facts = case.probes["training_data"].facts
    came = came_afterwards(case, "training_data") if facts["first"] else ""
    signs = []
    if facts["loss"] > facts["loss_limit"]:
        signs.append(f"had a loss of {facts['loss']:.2f} with the weights of the epoch before (usual: {facts['usual_loss']:.2f})")
    if facts["shifted"]:
        means = f"moved the first BatchNorm's means by {facts['shift']:.1f} standard deviations"
        signs.append(f"{means} and multiplied its variances by {facts['factor']:.3g}")
    if not signs and facts.get("sorting", 0.0) > facts["clustering"]:
        times = facts["sorting"] ** 0.5
        signs.append(
            f"held one class more than others: its fraction varied {times:.1f} times as much as in batches in random order"
        )
    elif not signs:
        signs.append(f"differed from each other {facts['clustering']:.1f} times as much as batches in random order do")
    return "; ".join(text for text in (f"The training batches {_since(case)} {' and '.join(signs)}", came) if text) + "."


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    facts = case.probes["training_data"].facts
    if facts["loss"] <= facts["loss_limit"] and not facts["shifted"]:
        return "shuffle the training images: they came sorted, such as class by class."
    return f"find what changed in the training images, their labels or their preparation (scaling, colors) {_since(case)}."


CAUSE = CauseKind(
    "training_data_changed",
    "changed training data",
    harms_training=True,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
)
