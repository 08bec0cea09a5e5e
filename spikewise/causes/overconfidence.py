"""Overconfidence: the network is right as often as before, but surer of itself where it is wrong.

One temperature removes the rise (Guo et al. 2017, On Calibration of Modern Neural Networks).
"""

from spikewise.causes.kind import CauseKind, Claim, claim_from, no_step_needed, percent
from spikewise.outputs import HOTTEST
from spikewise.records import Case

SMOOTHING = 0.1
"""Label smoothing that is suggested (Szegedy et al. 2016)."""
DECAY = 0.01
"""Weight decay that is suggested for a run that smooths its labels already."""


def _rule(case: Case) -> Claim | None:
    probe = case.probes.get("temperature")
    if probe is None or probe.facts["temperature"] > 0.9 * HOTTEST:  # the outputs say nothing, at any temperature
        return None
    facts = probe.facts
    fell = facts["accuracy_before"] - facts["accuracy"] > facts["accuracy_error"]
    return claim_from(
        probe,
        unless=[
            no_step_needed(case),
            (fell, f"the accuracy fell from {facts['accuracy_before']:.1%} to {facts['accuracy']:.1%}"),
            (facts["temperature"] <= facts["temperature_before"], "the network did not become more confident"),
        ],
    )


def _evidence(case: Case, claim: Claim) -> str:  # noqa: ARG001
    facts = case.probes["temperature"].facts
    return (
        f"With outputs at the best temperature ({facts['temperature']:.2f}, before: {facts['temperature_before']:.2f}), the loss "
        f"went from {facts['before']:.3f} to {facts['now']:.3f}: {percent(case.fraction('temperature'))} of the rise disappears; "
        f"the accuracy went from {facts['accuracy_before']:.1%} to {facts['accuracy']:.1%}."
    )


def _smooths(case: Case) -> bool:
    """Whether the run smooths its labels as much already."""
    return float(case.hyperparameters.settings.get("training.label_smoothing", 0)) >= SMOOTHING


def _remedy(case: Case, claim: Claim) -> str:  # noqa: ARG001
    temperature = case.probes["temperature"].facts["temperature"]
    smooth = f"set weight decay to {DECAY:g}" if _smooths(case) else f"smooth the labels by {SMOOTHING:g}"
    return (
        f"{smooth}, or divide the logits by {temperature:.2f} when probabilities are needed; the predicted classes stay the same."
    )


def _settings(case: Case, claim: Claim) -> tuple[str, ...]:  # noqa: ARG001
    return (f"optimizer.weight_decay={DECAY:g}",) if _smooths(case) else (f"training.label_smoothing={SMOOTHING:g}",)


CAUSE = CauseKind(
    "overconfidence",
    "overconfidence",
    harms_training=True,
    rule=_rule,
    evidence=_evidence,
    remedy=_remedy,
    settings=_settings,
)
