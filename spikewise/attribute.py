"""From what the probes found to ranked causes. Pure: probe results in, a verdict out.

The verdict is the first of these that holds; the others follow by their share. What changed in this epoch goes before the
mechanism through which it acted: when steps are ten times as long, BatchNormalization's statistics lag behind the weights and
re-estimating them removes most of the rise, yet the steps are the cause.

     1  divergence                   the loss is no number, or later: it never came back
     2  nondeterministic_evaluation  the same weights, evaluated again, have another loss, and the evaluation has the rise
     3  run_event                    something wrote the weights, or a restart, a changed learning rate or the like left a trace
                                     and the rise came after it; the earlier weights, evaluated today, do not show it
     4  few_examples                 without at most 2 % of the images there would be no alarm, and half of the rise is gone;
                                     steps were not too long, or the earlier weights, evaluated today, show it as well
     5  sampling_noise               on other draws of the validation images there might be no rise; steps were not far too long
     6  distribution_shift           the earlier weights, evaluated today, show the rise: the images or their preparation changed
     7  bad_batch                    batches stand out for the earlier weights too; undoing the steps from them on removes it
     8  variance_shift               dropout spoils the statistics by as much, and did not before
     9  overshoot                    steps were longer than their gradients explain; usual lengths remove it
    10  gradient_noise               gradients were larger from the start, and averaged weights do not show it
    11  batchnorm_statistics         re-estimated statistics remove it, and the last batches were trained on as well as ever
    12  gradient_noise               weights went to and fro; their average does not show it, and it came early
    13  sampling_noise               as 5, where validation images come from few groups: any draw of so few may be without the rise
    14  overfitting                  training images do not rise with it, and validation had been climbing before
        distribution_shift           training images do not rise with it
    15  unexplained                  nothing above removes half of the rise

A probe decides when it removes at least half and its interval, its own noise included, stays above 0. Statistics and averages
must also leave no alarm, or at most twice the loss of before: of a rise of 60 nats they remove most even where the weights
themselves are broken.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from spikewise import sentences
from spikewise.detect import CERTAIN, FEW_GROUPS
from spikewise.records import Case, Cause, Event, Probe, Spike
from spikewise.steps import JUMP
from spikewise.suspects import HALF

ROUNDING = 0.01
"""Mean difference of an image's loss between two evaluations of the same weights, as a share of the rise, that rounding may
make on an accelerator."""
LONGER = 2.0
"""Times its usual length, given the gradient, beyond which a step is too long."""
FAR_LONGER = 30.0
"""The same, beyond which nobody would ask whether it was chance."""
TRACE = 1.5
"""The same for steps after an event."""
ASTRAY = 3.0
"""Standard deviations of the loss of batches beyond which not statistics but the weights themselves are to blame."""
LARGER = 2.0
"""Times the usual gradient norm beyond which gradients were unusual."""
STRAIGHT = 0.7
"""How far the weights came, as a part of the way they went, beyond which they did not go to and fro."""
SHARED = 0.2
"""Part of the rise that training images show as well, below which they do not rise with it."""


class Claim(NamedTuple):
    """One cause's case."""

    name: str
    fraction: float
    low: float
    high: float
    decides: bool
    event: Event | None = None
    """That it blames."""


def attribute(case: Case) -> tuple[Cause, ...]:
    """The ranked causes, the verdict first; never empty."""
    claims = [claim for rule in RULES if (claim := rule(case)) is not None]
    verdict = next((claim for claim in claims if claim.decides), Claim("unexplained", 0.0, 0.0, 0.0, True))
    ranked = {verdict.name: verdict}
    for claim in sorted(claims, key=lambda claim: -claim.fraction):
        if claim.fraction >= 0.1:
            ranked.setdefault(claim.name, claim)
    return tuple(
        Cause(*claim[:4], *sentences.explain(claim.name, case, claim.event), claim.event.kind if claim.event else None)
        for claim in ranked.values()
    )


def _of(probe: Probe, name: str, *, also: bool = True, event: Event | None = None) -> Claim:
    """A probe's share; it decides if it is large and certain, and `also` holds."""
    decides = probe.fraction >= HALF and probe.low > 0 and also
    return Claim(name, probe.fraction, probe.low, probe.high, decides, event)


def _healed(case: Case, probe: Probe) -> bool:
    """Whether what is left under the changed condition is neither an alarm nor more than a doubling of the loss."""
    return probe.facts["now"] - probe.facts["before"] <= max(case.spike.threshold, probe.facts["before"])


def _divergence(case: Case) -> Claim | None:
    return Claim("divergence", 1.0, 1.0, 1.0, True) if case.spike.outcome == "divergence" else None


def _nondeterministic(case: Case) -> Claim | None:
    again, earlier = case.probes.get("repetition"), case.probes.get("earlier_weights")
    if again is None or earlier is None or again.facts["difference"] < ROUNDING * case.spike.rise:
        return None
    return _of(max(again, earlier, key=lambda probe: probe.fraction), "nondeterministic_evaluation")


def _few_examples(case: Case) -> Claim | None:
    probe = case.probes.get("few_examples")
    if probe is None:
        return None
    # of long steps a few images are the victims, unless the images themselves changed
    own = case.training.length < LONGER or case.fraction("earlier_weights") >= HALF
    return _of(probe, "few_examples", also=own and probe.facts["left"] <= case.spike.threshold)


def _sampling_noise(case: Case) -> Claim | None:
    spike = case.spike
    return None if _from_few_groups(spike) or case.training.length >= FAR_LONGER else _chance(spike)


def _few_groups(case: Case) -> Claim | None:
    return _chance(case.spike) if _from_few_groups(case.spike) else None


def _from_few_groups(spike: Spike) -> bool:
    return spike.groups is not None and spike.groups < min(FEW_GROUPS, spike.images)


def _chance(spike: Spike) -> Claim | None:
    if not np.isfinite(spike.error) or spike.rise >= CERTAIN * spike.error:
        return None
    chance = float(np.clip(1.96 * spike.error / spike.rise, 0, 1))
    return Claim("sampling_noise", chance, chance, chance, True)


def _changed_evaluation(case: Case) -> Claim | None:
    probe = case.probes.get("earlier_weights")
    return _of(probe, "distribution_shift") if probe else None


def _event(case: Case) -> Claim | None:
    if case.fraction("earlier_weights") >= HALF:
        return None
    if case.training.foreign is not None and case.fraction("bad_batches") < HALF:
        return Claim("run_event", 1.0, 1.0, 1.0, True)

    def turn(pair: tuple[int, Event]) -> int:
        """What was changed with a restart leaves the same trace as a restart that lost something, and is asked first; what was
        changed in an epoch before goes after a restart that lost statistics."""
        number, event = pair
        if event.kind == "restart":
            return 1 if case.training.jumps[number] >= JUMP else 3
        return 0 if event.epoch == case.spike.epoch else 2

    for number, event in sorted(enumerate(case.events), key=turn):
        probe = case.probes.get("before_event")
        if probe is not None and probe.facts["step"] == event.step and _left_a_trace(case, event, number):
            return _of(probe, "run_event", event=event)
    return None


def _left_a_trace(case: Case, event: Event, number: int) -> bool:
    """A restart that restored everything changes nothing; what else began with it is not its doing."""
    if event.kind == "learning_rate" and event.before and event.after:
        return event.after > 1.2 * event.before
    if case.training.length_after[number] >= TRACE or case.training.jumps[number] >= JUMP:
        return True
    path = case.probes.get("path")
    sudden = path is not None and path.fraction >= HALF and path.facts["first"] <= event.step < path.facts["last"]
    return sudden and event.kind in ("batch_size", "data")


def _bad_batch(case: Case) -> Claim | None:
    probe = case.probes.get("bad_batches")
    return _of(probe, "bad_batch") if probe else None


def _variance_shift(case: Case) -> Claim | None:
    probe = case.probes.get("variance_shift")
    return _of(probe, "variance_shift") if probe else None


def _overshoot(case: Case) -> Claim | None:
    probe = case.probes.get("line")
    return _of(probe, "overshoot") if probe and case.training.length >= LONGER else None


def _noisy_gradients(case: Case) -> Claim | None:
    return _averaged(case, case.training.gradient >= LARGER)


def _statistics(case: Case) -> Claim | None:
    probe = case.probes.get("statistics")
    usual = case.training.astray < ASTRAY
    return _of(probe, "batchnorm_statistics", also=usual and _healed(case, probe)) if probe else None


def _to_and_fro(case: Case) -> Claim | None:
    # of what comes late in the epoch any average has little: that it does not show it says nothing then
    path = case.probes.get("path")
    late = path is not None and path.facts["first"] > case.settings.steps / 2
    return _averaged(case, case.training.straightness <= STRAIGHT and not late)


def _averaged(case: Case, noisy: bool) -> Claim | None:
    probe = case.probes.get("averaged")
    return _of(probe, "gradient_noise", also=noisy and _healed(case, probe)) if probe else None


def _not_in_training(case: Case) -> Claim | None:
    training, rise = case.training, case.training.validation_rise
    rise = case.spike.rise if rise is None else rise
    if rise < HALF * case.spike.rise:  # most of it was there at the epoch that training images are compared with
        return None
    part = training.train_rise / rise
    if not np.isfinite(training.train_loss) or part > SHARED or training.train_rise > 0.1 * max(training.train_loss, 0.05):
        return None
    fraction = float(np.clip(1 - part, 0, 1))
    return Claim("overfitting" if case.overfitting else "distribution_shift", fraction, fraction, fraction, True)


RULES: tuple[Callable[[Case], Claim | None], ...] = (
    _divergence,
    _nondeterministic,
    _event,
    _few_examples,
    _sampling_noise,
    _changed_evaluation,
    _bad_batch,
    _variance_shift,
    _overshoot,
    _noisy_gradients,
    _statistics,
    _to_and_fro,
    _few_groups,
    _not_in_training,
)
