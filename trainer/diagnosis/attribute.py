"""From what the probes found to ranked causes. Pure: probe results in, a verdict out.

The verdict is the first of these that holds; the others follow by their share. What changed in this epoch goes before the
mechanism through which it acted: when steps are ten times as long, BatchNormalization's statistics lag behind the weights and
re-estimating them removes most of the rise, yet the steps are the cause.

     1  divergence                   the loss is no number, or later: it never came back
     2  nondeterministic_evaluation  the same weights, evaluated again, have another loss
     3  few_examples                 without at most 2 % of the images there would be no alarm, and half of the rise is gone
     4  sampling_noise               on other draws of the validation images there might be no rise
     5  distribution_shift           the earlier weights, evaluated today, show the rise: the images or their preparation changed
     6  run_event                    a restart, a changed learning rate or the like left a trace, and the rise came after it
     7  bad_batch                    batches stand out for the earlier weights too; undoing the steps from them on removes it
     8  variance_shift               statistics without dropout remove it, statistics with dropout do not
     9  overshoot                    steps were longer than their gradients explain; usual lengths remove it
    10  gradient_noise               gradients were larger throughout; averaged weights do not show it
    11  batchnorm_statistics         re-estimated statistics remove it, and nothing above was unusual
    12  gradient_noise               as 10, with gradients as usual
    13  overfitting                  training images do not rise with it, and validation had been climbing before
        distribution_shift           training images do not rise with it
    14  unexplained                  nothing above removes half of the rise

A probe decides when it removes at least half and its interval, its own noise included, stays above 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.diagnosis.records import Cause, Event, Overfitting, Probe, Spike

HALF = 0.5
NONDETERMINISTIC = 0.01
"""Mean difference of an image's loss between two evaluations of the same weights, as a share of the rise, that is not rounding."""
CERTAIN = 2.0
"""Standard errors of the rise below which it may be chance."""
LONGER = 2.0
"""Times its usual length, given the gradient, beyond which a step is too long."""
TRACE = 1.5
"""The same for a step after an event."""
LARGER = 1.5
"""Times the usual gradient norm, in the epoch's median, beyond which gradients were unusual."""
AVERAGED = 0.75
"""Share that averaging removes where steps go to and fro; a straight way to worse weights leaves it about half of the way."""
SHARED = 0.2
"""Part of the rise that training images show as well, below which they do not rise with it."""


@dataclass(frozen=True)
class Training:
    """What was unusual in how the epoch was trained; from steps.py."""

    length: float = 1.0
    """Largest step, in multiples of what is usual given the gradients."""
    length_at: int = 0
    length_after: tuple[float, ...] = ()
    """For each event: the same, over the steps after it."""
    gradient: float = 1.0
    """Median gradient norm, in multiples of the usual."""
    foreign: tuple[int, int, float] | None = None
    """Between these steps the weights moved so much farther than the steps did."""
    train_rise: float = 0.0
    """Of the sampled training images in inference mode since the reference epoch, nats."""
    train_loss: float = np.nan
    """Theirs at the reference epoch."""


@dataclass(frozen=True)
class Settings:
    """What remedies are stated in."""

    learning_rate: float = np.nan
    batch_size: int = 0
    steps: int = 0
    """Of an epoch."""
    momentum: float = np.nan
    """BatchNormalization's."""


@dataclass(frozen=True)
class Case:
    """All that attribution knows."""

    spike: Spike
    probes: dict[str, Probe] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    settings: Settings = field(default_factory=Settings)
    events: Sequence[Event] = ()
    overfitting: Overfitting | None = None
    keys: Sequence[str] | None = None
    """Names of the validation images."""
    predicted: dict[int, tuple[str, str, float]] = field(default_factory=dict)
    """For single validation images: label, prediction, its probability."""

    def decides(self, name: str) -> bool:
        probe = self.probes.get(name)
        return probe is not None and probe.share >= HALF and probe.low > 0

    def share(self, name: str) -> float:
        return self.probes[name].share if name in self.probes else 0.0


def attribute(case: Case) -> tuple[Cause, ...]:
    """The ranked causes, the verdict first; never empty."""
    causes = [(cause, decides) for rule in RULES for cause, decides in [rule(case)] if cause is not None]
    verdict = next((cause for cause, decides in causes if decides), None) or _unexplained(case)
    seen = {verdict.name}
    rest = []
    for cause, _ in sorted(causes, key=lambda pair: -pair[0].share):
        if cause.name not in seen and cause.share >= 0.1:
            seen.add(cause.name)
            rest.append(cause)
    return verdict, *rest


Claim = tuple[Cause | None, bool]
NONE: Claim = (None, False)


def _cause(name: str, probe: Probe | None, evidence: str, remedy: str, share: float | None = None) -> Cause:
    if probe is None:
        share = 1.0 if share is None else share
        return Cause(name, share, share, share, evidence, remedy)
    return Cause(name, probe.share, probe.low, probe.high, evidence, remedy)


def _divergence(case: Case) -> Claim:
    spike = case.spike
    if spike.outcome != "divergence":
        return NONE
    what = "the loss is not finite" if not np.isfinite(spike.loss) else "the loss has not come back"
    remedy = f"resume from a checkpoint before epoch {spike.epoch} with a learning rate below {case.settings.learning_rate / 3:.2g}"
    return _cause("divergence", None, f"{what[0].upper()}{what[1:]}.", f"{remedy}."), True


def _nondeterministic(case: Case) -> Claim:
    if "repetition" not in case.probes:
        return NONE
    probe = case.probes["repetition"]
    difference = probe.facts["difference"]
    part = difference / case.spike.rise
    evidence = f"The same weights, evaluated twice, differ by {difference:.3f} an image."
    remedy = "evaluate every validation image once, in inference mode, without augmentation, shuffling or sampling."
    share = float(np.clip(max(probe.share, part), 0, 1))
    return _cause("nondeterministic_evaluation", None, evidence, remedy, share), part >= NONDETERMINISTIC or case.decides(
        "repetition"
    )


def _few(case: Case) -> Claim:
    probe = case.probes.get("few_examples")
    if probe is None:
        return NONE
    images, left = probe.facts["images"], probe.facts["left"]
    names = [case.keys[entry["image"]] if case.keys else f"number {entry['image']}" for entry in images]
    shown = ", ".join(names[:7]) + (f" and {len(names) - 7} more" if len(names) > 7 else "")
    known = [case.predicted[entry["image"]] for entry in images if entry["image"] in case.predicted]
    wrong = sum(label != guess and p > 0.9 for label, guess, p in known)
    look = " and look mislabelled" if known and wrong > len(known) / 2 else ""
    if case.share("earlier_weights") >= HALF:
        look = " and are not what they were an epoch ago: replaced or damaged"
    before, now = np.mean([e["before"] for e in images]), np.mean([e["now"] for e in images])
    evidence = (
        f"Without {len(images)} of {probe.facts['of']} images {left:.3f} of the rise of "
        f"{case.spike.rise:.3f} is left; their loss went from {before:.2f} to {now:.2f}."
    )
    these = "this image" if len(images) == 1 else f"these {len(images)} images"
    remedy = f"look at {these}{', which stand out' + look if look else ''}: {shown}."
    return _cause("few_examples", probe, evidence, remedy), probe.share >= HALF and left <= case.spike.threshold


def _sampling(case: Case) -> Claim:
    spike = case.spike
    if not np.isfinite(spike.error) or spike.rise >= CERTAIN * spike.error:
        return NONE
    change = 0.05
    needed = int(np.ceil(spike.images * (1.96 * spike.error / change) ** 2 / 10) * 10)
    evidence = (
        f"On other draws of the {spike.images} validation images the rise would lie between {spike.low:.3f} and {spike.high:.3f}."
    )
    remedy = f"validation has {spike.images} images: about {needed:,} are needed to see a change of {change} for certain."
    share = float(np.clip(CERTAIN * spike.error / spike.rise, 0, 1))
    return _cause("sampling_noise", None, evidence, remedy, share), True


def _evaluation_changed(case: Case) -> Claim:
    probe = case.probes.get("earlier_weights")
    if probe is None:
        return NONE
    evidence = (
        "The earlier weights, evaluated again, have a loss of "
        f"{probe.facts['today']:.3f} where they had {probe.facts['recorded']:.3f}."
    )
    # what is left when the earlier weights' own rise is taken away
    remedy = (
        "find out what changed in the validation images or in their preparation (size, colours, scaling) since the epoch before."
    )
    return _cause("distribution_shift", probe, evidence, remedy), case.decides("earlier_weights")


def _event(case: Case) -> Claim:
    training = case.training
    if training.foreign is not None and case.share("bad_batches") < HALF:
        start, stop, excess = training.foreign
        evidence = (
            f"Between steps {start} and {stop} the weights moved {excess:.3g} "
            "farther than the steps together are long: something else changed them."
        )
        return _cause("run_event", None, evidence, "find out what wrote the weights: a restore, a callback, faulty memory."), True
    for event, length in zip(case.events, training.length_after, strict=False):
        probe = case.probes.get("before_event")
        if probe is None or not _left_a_trace(event, length, case):
            continue
        evidence = f"{_told(event)} at step {event.step} of this epoch; {max(probe.share, 0):.0%} of the rise came after it."
        if length >= TRACE:
            evidence = f"{evidence[:-1]}, and steps were then {length:.1f} times as long as their gradients explain."
        return _cause("run_event", probe, evidence, _mend(event)), case.decides("before_event")
    return NONE


def _left_a_trace(event: Event, length: float, case: Case) -> bool:
    if event.kind == "learning_rate" and event.before and event.after:
        return event.after > 1.2 * event.before
    path = case.probes.get("path")
    sudden = path is not None and path.share >= HALF and path.facts["first"] <= event.step < path.facts["last"]
    forgotten = event.kind in ("restart", "world_size") and case.share("statistics") >= HALF
    return length >= TRACE or sudden or forgotten


def _told(event: Event) -> str:
    what = {
        "restart": "The run was restarted",
        "optimizer_reset": "The optimizer's state was lost",
        "learning_rate": "The learning rate was changed",
        "world_size": "The number of workers was changed",
        "batch_size": "The batch size was changed",
        "data": "The training data were changed",
    }[event.kind]
    return f"{what} from {event.before:g} to {event.after:g}" if event.before is not None and event.after is not None else what


def _mend(event: Event) -> str:
    return {
        "restart": "restore weights, moving statistics, optimizer and position in the data together.",
        "optimizer_reset": "restore the optimizer's state with the weights, or warm the learning rate up over some 100 steps.",
        "learning_rate": f"go back to a learning rate of {event.before or 0:g}, or warm up to the new one.",
        "world_size": "keep the global batch and synchronize BatchNormalization when the number of workers changes.",
        "batch_size": "change the learning rate with the batch size.",
        "data": "compare the new training data with the old.",
    }[event.kind]


def _bad_batch(case: Case) -> Claim:
    probe = case.probes.get("bad_batches")
    if probe is None:
        return NONE
    batches, losses, usual = probe.facts["batches"], probe.facts["losses"], probe.facts["usual"]
    which = f"batch {batches[0]}" if len(batches) == 1 else f"batches {', '.join(map(str, batches))}"
    have = f"{'has' if len(batches) == 1 else 'have'} a loss of {np.mean(losses):.2f} where others have {usual:.2f}"
    evidence = (
        f"For the earlier weights {which} of this epoch {have}; undoing the "
        f"steps from there on removes {max(probe.share, 0):.0%} of the rise."
    )
    return _cause("bad_batch", probe, evidence, f"look at the images and labels of {which}, listed below."), case.decides(
        "bad_batches"
    )


def _variance(case: Case) -> Claim:
    off, on = case.probes.get("statistics_without_dropout"), case.probes.get("statistics")
    if off is None or on is None or off.share - max(on.share, 0) < 0.3 or on.share >= HALF:
        return NONE
    evidence = (
        f"Statistics re-estimated without dropout remove {off.share:.0%} of the rise, with dropout "
        f"{max(on.share, 0):.0%}: dropout changes the variance that BatchNormalization sees."
    )
    return _cause(
        "variance_shift", off, evidence, "put dropout after the last BatchNormalization, or lower its rate."
    ), case.decides("statistics_without_dropout")


def _overshoot(case: Case) -> Claim:
    training, probe = case.training, case.probes.get("line")
    if probe is None or training.length < LONGER:
        return NONE
    evidence = (
        f"Steps were up to {training.length:.1f} times as long as their gradients "
        f"explain; with steps of the usual length the loss would be {_at(probe):.3f}."
    )
    rate = case.settings.learning_rate
    remedy = f"limit the learning rate to {rate / training.length:.2g} there, warm it up, or clip the length of a step."
    return _cause("overshoot", probe, evidence, remedy), case.decides("line")


def _at(probe: Probe) -> float:
    return probe.facts["losses"][probe.facts["at"]]


def _noise(case: Case, larger: bool) -> Claim:
    training, probe = case.training, case.probes.get("averaged")
    if probe is None or (training.gradient >= LARGER) != larger:
        return NONE
    how = f"gradients were {training.gradient:.1f} times as large as before and " if larger else ""
    evidence = f"{how}weights averaged over the epoch do not show {max(probe.share, 0):.0%} of the rise."
    remedy = f"average the weights, or use a larger batch than {case.settings.batch_size} or a smaller learning rate."
    return _cause("gradient_noise", probe, evidence[0].upper() + evidence[1:], remedy), probe.share >= AVERAGED and probe.low > 0


def _batchnorm(case: Case) -> Claim:
    probe = case.probes.get("statistics")
    if probe is None:
        return NONE
    evidence = (
        "With statistics re-estimated on training batches the loss is "
        f"{probe.facts['now']:.3f}: {max(probe.share, 0):.0%} of the rise is gone."
    )
    remedy = "re-estimate the moving statistics before evaluating, or lower BatchNormalization's momentum."
    momentum, steps = case.settings.momentum, case.settings.steps
    if np.isfinite(momentum) and steps:
        half_life = np.log(0.5) / np.log(momentum)
        better = next((m for m in (0.99, 0.9, 0.8) if np.log(0.5) / np.log(m) <= steps / 8 and m < momentum), 0.8)
        remedy = (
            f"set BatchNormalization's momentum to {better} (it is {momentum:g}: half of "
            f"an epoch's change takes {half_life:.0f} of its {steps} steps to arrive)."
        )
    return _cause("batchnorm_statistics", probe, evidence, remedy), case.decides("statistics")


def _not_in_training(case: Case) -> Claim:
    training = case.training
    if not np.isfinite(training.train_loss):
        return NONE
    part = training.train_rise / case.spike.rise
    if part > SHARED or training.train_rise > 0.1 * max(training.train_loss, 0.05):
        return NONE
    share = float(np.clip(1 - max(part, 0), 0, 1))
    moved = f"rose by {training.train_rise:.3f}" if training.train_rise > 0 else f"fell by {-training.train_rise:.3f}"
    evidence = f"Training images, in inference mode, {moved} while validation images rose by {case.spike.rise:.3f}."
    if case.overfitting is not None:
        remedy = f"stop at epoch {case.overfitting.epoch} (keep the best), or add data, augmentation or dropout."
        return _cause("overfitting", None, evidence, remedy, share), True
    remedy = "compare validation with training images: source, camera, compression, size, share of the classes."
    return _cause("distribution_shift", None, evidence, remedy, share), True


def _unexplained(case: Case) -> Cause:
    best = max(case.probes.values(), key=lambda probe: probe.share, default=None)
    tried = f"; the most, {max(best.share, 0):.0%}, goes with {best.name.replace('_', ' ')}" if best else ""
    evidence = f"No condition that was changed removes half of the rise{tried}."
    return Cause(
        "unexplained",
        0.0,
        0.0,
        0.0,
        evidence,
        "look at the epoch's data and code changes; if it comes back, the next one is probed again.",
    )


RULES: tuple[Callable[[Case], Claim], ...] = (
    _divergence,
    _nondeterministic,
    _few,
    _sampling,
    _evaluation_changed,
    _event,
    _bad_batch,
    _variance,
    _overshoot,
    lambda case: _noise(case, True),
    _batchnorm,
    lambda case: _noise(case, False),
    _not_in_training,
)
