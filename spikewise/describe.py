"""Diagnoses in plain words: for the log (`block`) and for the report (`summary`, `headline`). Pure: values in, text out.

What a cause is called and how it ended is said here alone; numbers and evidence come from the Diagnosis as they are.
"""

import math
import textwrap
from collections.abc import Sequence

from spikewise.detect import PATIENCE
from spikewise.records import Cause, Diagnosis, Overfitting, Spike
from spikewise.suspects import look

WIDTH = 110
SHOWN = 3
"""Causes named in the log."""
LISTED = 5
"""Epochs listed for one cause."""

CAUSES = {
    "divergence": "a divergence",
    "nondeterministic_evaluation": "an evaluation that cannot be repeated",
    "few_examples": "a few images",
    "sampling_noise": "chance, with this few validation images",
    "run_event": "an event in the run",
    "bad_batch": "a bad training batch",
    "batchnorm_statistics": "lagging BatchNorm statistics",
    "variance_shift": "dropout before BatchNorm",
    "overshoot": "steps that were too long",
    "gradient_noise": "gradient noise",
    "distribution_shift": "a shift of the validation images",
    "overfitting": "overfitting",
    "unexplained": "unexplained",
}
EVENTS = {
    "restart": "a restart",
    "optimizer_reset": "a lost optimizer state",
    "learning_rate": "a raised learning rate",
    "world_size": "another number of workers",
    "batch_size": "another batch size",
    "data": "other training data",
}
PROBES = {
    "few_examples": "without the images that rose most",
    "repetition": "evaluated a second time",
    "earlier_weights": "what the earlier weights show as well",
    "path": "within the steepest stretch of steps",
    "before_event": "with the weights from before the event",
    "statistics": "BatchNorm statistics estimated anew",
    "variance_shift": "what dropout adds to the statistics",
    "line": "had the steps been as long as usual",
    "averaged": "weights averaged over the epoch",
    "bad_batches": "without the batches that stand out",
}
HARMLESS = {"nondeterministic_evaluation", "few_examples", "sampling_noise", "batchnorm_statistics", "variance_shift"}
"""Causes that are in how the network was evaluated, not in its weights."""
NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")


def summary(diagnoses: Sequence[Diagnosis], overfitting: Overfitting | None, epochs: int) -> str:
    """The answer to "what happened to my validation loss?" after `epochs` epochs: what, why, how it ended, what to do."""
    return " ".join(sentences(diagnoses, overfitting, epochs))


def sentences(diagnoses: Sequence[Diagnosis], overfitting: Overfitting | None, epochs: int) -> list[str]:
    """The sentences of `summary`; the first one alone says how many spikes there were."""
    trend = [_trend(overfitting)] if overfitting else []
    if not diagnoses:
        return [f"No spike in {_amount(epochs, 'epoch')}.", *trend]
    found: dict[str, list[Diagnosis]] = {}
    for diagnosis in diagnoses:
        found.setdefault(name(diagnosis), []).append(diagnosis)
    groups = sorted(found.items(), key=lambda pair: -len(pair[1]))
    count = f"{_amount(len(diagnoses), 'spike')} in {_amount(epochs, 'epoch')}"
    if len(groups) == 1:
        why, same = groups[0]
        together = {1: "", 2: "both "}.get(len(same), "all ")
        said = [f"{count}: {together}{why} ({_epochs(same)})."]
    else:
        said = [f"{count}."]
        for why, same in groups:
            said.append(f"{_counted(len(same))} {'was' if len(same) == 1 else 'were'} {why} ({_epochs(same)}).")
    return [*said, *_ends(diagnoses), *trend, *_advice([same for _, same in groups], overfitting)]


def name(diagnosis: Diagnosis) -> str:
    """What the verdict is called: "4 images, probably mislabelled"."""
    verdict, images = diagnosis.verdict.name, diagnosis.suspects
    if verdict == "run_event":
        if diagnosis.training.foreign and not diagnosis.verdict.event:
            return "weights written from outside"
        return EVENTS.get(diagnosis.verdict.event or "", CAUSES[verdict])
    if verdict != "few_examples" or not images:
        return CAUSES[verdict]
    looks = look(images)
    called = {"mislabelled": "mislabelled", "damaged": "replaced or damaged"}.get(looks or "")
    return _amount(len(images), "image") + (f", probably {called}" if called else "")


def probe(name: str) -> str:
    """What a probe is called; those of another version by their own name."""
    return PROBES.get(name, name.replace("_", " "))


def headline(spike: Spike) -> str:
    """What happened, in a sentence."""
    end = {
        "open": "",
        "recovered": f" It was back after epoch {spike.outcome_epoch}.",
        "level shift": f" It stayed high for at least {PATIENCE} epochs.",
        "divergence": " It has not come back: training diverged.",
    }[spike.outcome]
    what, expected = f"After epoch {spike.epoch} the validation loss was", _expected(spike)
    if not math.isfinite(spike.loss):
        return f"{what} not a finite number{expected}.{end}"
    return f"{what} {spike.loss:.3f}{expected}: {spike.rise:.3f} more (95 %: {spike.low:.3f} to {spike.high:.3f}).{end}"


def _expected(spike: Spike) -> str:
    return f" where {spike.baseline:.3f} was expected" if math.isfinite(spike.baseline) else ""


def block(diagnosis: Diagnosis) -> str:
    """What the log says of a spike: several lines of at most WIDTH characters, the verdict first."""
    spike = diagnosis.spike
    where = f"SPIKE in epoch {spike.epoch}: validation loss"
    if math.isfinite(spike.loss):
        interval = f"(95 %: {spike.low:+.3f} to {spike.high:+.3f})"
        lines = [f"{where} {spike.loss:.3f}{_expected(spike)}, {spike.rise:+.3f} {interval}"]
    else:
        lines = [f"{where} is not finite{_expected(spike)}"]
    for number, cause in enumerate(diagnosis.causes[:SHOWN], 1):
        called = name(diagnosis) if cause is diagnosis.verdict else CAUSES[cause.name]
        plain = "" if called == cause.name else f" ({cause.name})"
        lines.append(f"  {number}. {called}{plain}{_fraction(cause)}")
        for text in (cause.evidence, f"-> {cause.remedy}"):
            lines += textwrap.wrap(
                printable(text), WIDTH, initial_indent="     ", subsequent_indent="     ", break_on_hyphens=False
            )
    return "\n".join(lines)


def printable(text: str) -> str:
    """With control, direction and other invisible characters escaped: a key cannot disguise itself, nor steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _fraction(cause: Cause) -> str:
    """Nothing where no probe measured it: a cause that is simply known has no interval."""
    fraction, low, high = (part(value) for value in (cause.fraction, cause.low, cause.high))
    if cause.low >= cause.high:
        return ""
    return f": {fraction} of the rise" + (f" ({low} to {high})" if low != high else "")


def part(fraction: float) -> str:
    """Without a condition the loss may be lower than before, or the rise larger: to a reader that is all of it, or nothing."""
    return f"{min(max(fraction, 0), 1):.0%}"


def _trend(overfitting: Overfitting) -> str:
    return (
        f"Apart from spikes the validation loss has been climbing by {overfitting.climb:.3f} an epoch since epoch "
        f"{overfitting.epoch}, while training images get better: the network memorizes them (overfitting)."
    )


def _ends(diagnoses: Sequence[Diagnosis]) -> list[str]:
    """What became of the spikes, unless each was followed by ordinary epochs."""
    ended: dict[str, list[Diagnosis]] = {}
    for diagnosis in diagnoses:
        ended.setdefault(diagnosis.spike.outcome, []).append(diagnosis)
    told = []
    if "divergence" in ended:
        told.append(f"Training diverged in {_epochs(ended['divergence'])}.")
    if "level shift" in ended:
        told.append(f"After {_epochs(ended['level shift'])} the loss stayed high for at least {PATIENCE} epochs (a level shift).")
    if "open" in ended:
        told.append(f"Whether it comes back after {_epochs(ended['open'])} is not known yet.")
    if list(ended) == ["recovered"]:
        longest = max((d.spike.outcome_epoch or d.spike.epoch) - d.spike.epoch for d in diagnoses)
        each = "" if len(diagnoses) == 1 else " each time"
        told.append(f"The loss was back {'in the next epoch' if longest <= 1 else f'within {longest} epochs'}{each}.")
    return told


def _advice(groups: Sequence[Sequence[Diagnosis]], overfitting: Overfitting | None) -> list[str]:
    """Whether the network is fine, and what to do: for the three most frequent causes, as their last spike says it."""
    diagnoses = [diagnosis for same in groups for diagnosis in same]
    groups = sorted(groups, key=lambda same: same[-1].verdict.name in HARMLESS)  # what did harm comes first
    fine = all(d.verdict.name in HARMLESS and d.spike.outcome == "recovered" for d in diagnoses)
    advice = []
    for same in groups:
        last = same[-1]
        if last.verdict.name == "few_examples":
            advice.append(f"look at the images of {_epochs(same)}")
        elif last.verdict.name != "unexplained":
            advice.append(last.verdict.remedy.partition(" (")[0].rstrip("."))
    text = "; ".join(printable(one) for one in advice[:3])
    if fine and not overfitting:
        return [f"Your model is fine; {text}."]
    if fine:
        return [f"The spikes did the network no harm; {text}."]
    return [f"{text[0].upper()}{text[1:]}."] if text else []


def _epochs(diagnoses: Sequence[Diagnosis]) -> str:
    numbers = [str(diagnosis.spike.epoch) for diagnosis in diagnoses]
    if len(numbers) == 1:
        return f"epoch {numbers[0]}"
    if len(numbers) > LISTED:
        return f"epochs {', '.join(numbers[: LISTED - 1])} and {len(numbers) - LISTED + 1} more"
    return f"epochs {', '.join(numbers[:-1])} and {numbers[-1]}"


def _counted(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else f"{count:,}"


def _amount(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"
