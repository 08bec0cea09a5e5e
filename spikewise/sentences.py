"""What each cause's evidence is and what to do about it: two plain sentences with the numbers of the case. Decides nothing."""

from collections.abc import Callable

import numpy as np

from spikewise.describe import PROBES, part
from spikewise.detect import CERTAIN, FEW_GROUPS
from spikewise.records import Case, Event
from spikewise.steps import JUMP
from spikewise.suspects import HALF, look, suspects

SHOWN = 7
"""Images that are named."""

Sentences = tuple[str, str]


def explain(name: str, case: Case, event: Event | None = None) -> Sentences:
    """One sentence of evidence and one of what to do. `event`: the one that is blamed."""
    return _event(case, event) if name == "run_event" else SENTENCES[name](case)


def _divergence(case: Case) -> Sentences:
    rate = case.settings.learning_rate
    slower = f"a learning rate of {rate / 10:.2g}" if np.isfinite(rate) else "a lower learning rate"
    what = "has not come back" if np.isfinite(case.spike.loss) else "is not finite"
    start = f"from a checkpoint before epoch {case.spike.epoch} and" if case.spike.epoch > 1 else "with"
    return f"The loss {what}.", f"start again {start} {slower}."


def _nondeterministic(case: Case) -> Sentences:
    difference = case.probes["repetition"].facts["difference"]
    evidence = f"The losses of the same weights, evaluated twice, differ by {difference:.3f} an image."
    return evidence, "evaluate every validation image once, in inference mode, without augmentation, shuffling or sampling."


def _few_examples(case: Case) -> Sentences:
    facts = case.probes["few_examples"].facts
    images = [entry["image"] for entry in facts["images"]]
    one = len(images) == 1
    before, now = (float(np.mean([entry[when] for entry in facts["images"]])) for when in ("before", "now"))
    whose, them = ("Its", "it") if one else ("Their", f"these {len(images)} of {facts['of']} images")
    evidence = f"{whose} loss went from {before:.2f} to {now:.2f}; without {them} {max(facts['left'], 0):.3f} of the rise is left."
    looks = look(suspects(case))
    if looks == "damaged":
        what = f"{'was' if one else 'were'} replaced, damaged or labelled anew since the epoch before"
    elif looks == "mislabelled":
        what = f"{'looks' if one else 'look'} mislabelled"
    else:
        what = "became much harder for the network"
    shown = ", ".join(case.keys[i] if case.keys else f"number {i}" for i in images[:SHOWN])
    shown += f" and {len(images) - SHOWN} more" if len(images) > SHOWN else ""
    return evidence, f"look at {'this image' if one else f'these {len(images)} images'}, which {what}: {shown}."


def _sampling_noise(case: Case) -> Sentences:
    spike = case.spike
    grouped = spike.groups is not None and spike.groups < spike.images
    count, what = (spike.groups, "groups of validation images") if grouped else (spike.images, "validation images")
    assert count is not None
    evidence = f"On other draws of {count} {what} the rise would lie between {spike.low:.3f} and {spike.high:.3f}"
    if spike.group is not None and spike.group_fraction >= 0.5:
        evidence += f"; {part(spike.group_fraction)} of it comes from the images of {spike.group}"
    if spike.low > 0:
        evidence += f"; the rise is {spike.rise / spike.error:.1f} standard errors, and chance alone makes one of {CERTAIN} "
        evidence += "in one of 20 runs of 100 epochs"
    evidence += "."
    if grouped and count < FEW_GROUPS:  # too few even to say how many would do
        return evidence, f"there are only {count} {what}, so that one of them can move the mean: take {FEW_GROUPS} or more."
    needed = 10 * np.ceil(count * (CERTAIN * spike.error / spike.rise) ** 2 / 10)
    return evidence, f"there are {count} {what}: with about {needed:,.0f} a rise of {spike.rise:.3f} would be more than chance."


def _distribution_shift(case: Case) -> Sentences:
    if case.fraction("earlier_weights") < 0.5:
        return _training_did(case), "compare validation with training images: source, camera, compression, share of the classes."
    today, recorded = (case.probes["earlier_weights"].facts[when] for when in ("today", "recorded"))
    evidence = f"The weights of the epoch before, evaluated again, have a loss of {today:.3f} where they had {recorded:.3f}."
    return evidence, "find what changed in the validation images or their preparation (size, colours, scaling) since then."


def _overfitting(case: Case) -> Sentences:
    best = f"keep epoch {case.overfitting.epoch}" if case.overfitting else "keep the best epoch"
    return _training_did(case), f"{best}, or add data, augmentation or dropout."


def _training_did(case: Case) -> str:
    change, rise = case.training.train_rise, case.training.validation_rise
    rise = case.spike.rise if rise is None else rise
    did = f"rose by {change:.3f}" if change > 0 else f"fell by {-change:.3f}"
    return f"The loss of training images, in inference mode, {did} while that of validation images rose by {rise:.3f}."


def _event(case: Case, event: Event | None) -> Sentences:
    if event is None:
        start, stop, excess = case.training.foreign or (0, 0, 0.0)
        evidence = f"Between steps {start} and {stop} the weights moved {excess:.3g} farther than these steps are long."
        return evidence, "find what else writes the weights: a restore, a callback, another process, faulty memory."
    told, remedy = _told(event)
    when = f"before step {event.step + 1} of the epoch" if event.epoch == case.spike.epoch else f"in epoch {event.epoch}"
    evidence = f"{told} {when}; {part(case.fraction('before_event'))} of the rise came after"
    number = list(case.events).index(event)
    if (longer := case.training.length_after[number]) >= 1.5:
        evidence += f", with steps up to {longer:.1f} times as long as their gradients explain"
    if (jump := case.training.jumps[number]) >= JUMP:
        evidence += f"; there BatchNorm's moving statistics went {jump:.0f} times as far as anywhere else in the epoch"
    return f"{evidence}.", remedy


def _told(event: Event) -> Sentences:
    both = f" from {event.before:g} to {event.after:g}" if event.before is not None and event.after is not None else ""
    return {
        "restart": ("The run was restarted", "restore weights, moving statistics, optimizer and position in the data together."),
        "optimizer_reset": (
            "The optimizer's state was lost",
            "restore it with the weights, or warm the learning rate up over 100 steps.",
        ),
        "learning_rate": (f"The learning rate was changed{both}", f"go back to {event.before or 0:g}, or warm up to the new one."),
        "world_size": (
            f"The number of workers was changed{both}",
            "keep the global batch, and synchronize BatchNorm over the workers.",
        ),
        "batch_size": (f"The batch size was changed{both}", "change the learning rate with it."),
        "data": ("The training data were changed", "compare the new ones with the old."),
    }[event.kind]


def _bad_batch(case: Case) -> Sentences:
    facts = case.probes["bad_batches"].facts
    numbers, loss = [batch + 1 for batch in facts["batches"]], float(np.mean(facts["losses"]))
    which = f"batch {numbers[0]}" if len(numbers) == 1 else f"batches {', '.join(map(str, numbers))}"
    had = ["activations far from those of others"] * (set(facts["batches"]) <= set(facts["odd"]))
    if loss > facts["usual"] or not had:
        had.append(f"a loss of {loss:.2f}, others {facts['usual']:.2f}")
    evidence = f"For the weights of the epoch before, {which} of {case.settings.steps} had {', and '.join(had)}; undoing the steps "
    evidence += f"from there on removes {part(case.fraction('bad_batches'))} of the rise."
    return evidence, f"look at the images and labels of {which}."


def _variance_shift(case: Case) -> Sentences:
    facts = case.probes["variance_shift"].facts
    evidence = (
        f"With statistics estimated without dropout the loss is {facts['without']:.3f}, with dropout {facts['with_dropout']:.3f}."
    )
    return (
        evidence,
        "put dropout behind the last BatchNormalization or lower its rate: it changes the variance that the statistics see.",
    )


def _overshoot(case: Case) -> Sentences:
    facts, training = case.probes["line"].facts, case.training
    evidence = f"Steps were up to {training.length:.1f} times as long as their gradients explain (step {training.length_at + 1}); "
    evidence += f"with steps of the usual length the loss would be {facts['losses'][facts['at']]:.3f}."
    return evidence, "lower the learning rate, warm it up, or clip the length of a step."


def _gradient_noise(case: Case) -> Sentences:
    larger = case.training.gradient
    evidence = f"With weights averaged over the epoch {part(case.fraction('averaged'))} of the rise is gone"
    evidence += f"; gradients were {larger:.1f} times as large as before." if larger >= 1.5 else "."
    batch = case.settings.batch_size
    wider = f"a batch of {4 * batch} instead of {batch} images" if batch else "a larger batch"
    return evidence, f"average the weights, take {wider}, or lower the learning rate."


def _statistics(case: Case) -> Sentences:
    probe, settings = case.probes["statistics"], case.settings
    evidence = f"With moving statistics estimated anew on training batches the loss is {probe.facts['now']:.3f}: "
    evidence += f"{part(probe.fraction)} of the rise is gone."
    if not np.isfinite(settings.momentum) or not settings.steps:
        return evidence, "lower BatchNormalization's momentum, or estimate its statistics anew before evaluating."
    half = np.log(0.5) / np.log(settings.momentum)
    better = next((m for m in (0.99, 0.97, 0.9) if m < settings.momentum and np.log(0.5) / np.log(m) < settings.steps / 5), 0.8)
    now = f"it is {settings.momentum:g}, which takes {half:.0f} of the epoch's {settings.steps} steps to follow half of a change"
    return evidence, f"set BatchNormalization's momentum to {better:g} ({now})."


def _unexplained(case: Case) -> Sentences:
    tried = [probe for probe in case.probes.values() if probe.name != "path"]  # which changes no condition
    best = max(tried, key=lambda probe: probe.fraction, default=None)
    most = f" (most, {part(best.fraction)}: {PROBES[best.name]})" if best else ""
    evidence = f"No single condition that was changed accounts for half of the rise{most}."
    if best and best.fraction >= HALF:
        why = "its interval holds 0" if best.low <= 0 else UNDECIDED.get(best.name, "other signs of that cause are missing")
        evidence = f"No single condition that was changed explains the rise: most of it, {part(best.fraction)}, is gone "
        evidence += f"with one ({PROBES[best.name]}), but {why}."
    return evidence, "compare code, data and settings of this epoch with the one before."


UNDECIDED = {
    "before_event": "the event left no trace in the steps after it",
    "few_examples": "there would be an alarm without them as well, or steps were so long that these images are their victims",
    "statistics": "the last batches were trained on worse than usual, or the loss is still far too high",
    "line": "no step was twice as long as its gradient explains",
    "averaged": "gradients were not unusual, or the loss is still far too high",
}
"""Why a probe that removes half of the rise may still not decide."""


SENTENCES: dict[str, Callable[[Case], Sentences]] = {
    "divergence": _divergence,
    "nondeterministic_evaluation": _nondeterministic,
    "few_examples": _few_examples,
    "sampling_noise": _sampling_noise,
    "bad_batch": _bad_batch,
    "batchnorm_statistics": _statistics,
    "variance_shift": _variance_shift,
    "overshoot": _overshoot,
    "gradient_noise": _gradient_noise,
    "distribution_shift": _distribution_shift,
    "overfitting": _overfitting,
    "unexplained": _unexplained,
}
