"""Diagnoses as text: for the log (`block`) and for the report (`summary`, `headline`). Pure: values in, text out.

The text about one cause, its title included, is in `spikewise.causes`.
"""

import math
import textwrap
from collections.abc import Sequence

from spikewise import probes
from spikewise.causes import kind_of
from spikewise.causes.kind import percent as percent
from spikewise.detect import JUMP, PATIENCE
from spikewise.records import Cause, Course, Diagnosis, Overfitting, Spike

WIDTH = 110
"""Characters of a line in the log."""
SHOWN = 3
"""Number of causes in the log, and of remedies in a summary."""
LISTED = 5
"""Number of epochs listed for one cause."""
HUGE = 10_000
"""From this loss on, decimals say nothing."""
VISIBLE = 0.25
"""A rise of this fraction of the expected loss is seen by anybody who looks at the curve."""
NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")

probe = probes.title
"""The name of a probe for people."""


def summary(diagnoses: Sequence[Diagnosis], overfitting: Overfitting | None, epochs: int, course: Course | None = None) -> str:
    """What happened to the validation loss in `epochs` epochs: the spikes, their causes, how they ended, and what to do."""
    return " ".join([*happened(diagnoses, overfitting, epochs, course), *advice(diagnoses, overfitting, course)])


def happened(
    diagnoses: Sequence[Diagnosis], overfitting: Overfitting | None, epochs: int, course: Course | None = None
) -> list[str]:
    """The sentences of `summary` without those about what to do; the first one gives the number of spikes. `course`: the rest of
    the curve, if it is known."""
    course = course or Course()
    trend = [_trend(overfitting)] if overfitting else []
    unseen, rest = _unseen(course, alarms=bool(diagnoses)), _rest(course)
    if not diagnoses:
        return [f"No {'alarm' if unseen else 'spike'} in {_amount(epochs, 'epoch')}.", *unseen, *rest, *trend]
    groups = _by_cause(diagnoses)
    count = f"{_amount(len(diagnoses), 'spike')} in {_amount(epochs, 'epoch')}"
    if len(groups) == 1:
        (same,) = groups
        together = {1: "", 2: "both "}.get(len(same), "all ")
        spikes = [f"{count}: {together}{name(same[0])} ({_epochs(same)})."]
    else:
        spikes = [f"{count}."]
        for same in groups:
            spikes.append(f"{_counted(len(same))} {'was' if len(same) == 1 else 'were'} {name(same[0])} ({_epochs(same)}).")
    return [*spikes, *_ends(diagnoses), *unseen, *rest, *trend]


def _by_cause(diagnoses: Sequence[Diagnosis]) -> list[list[Diagnosis]]:
    """The diagnoses of each cause, the most frequent cause first."""
    found: dict[str, list[Diagnosis]] = {}
    for diagnosis in diagnoses:
        found.setdefault(name(diagnosis), []).append(diagnosis)
    return sorted(found.values(), key=lambda same: -len(same))


def _rest(course: Course) -> list[str]:
    """What else is wrong with the curve."""
    return [*_restless(course), *_guessing(course)]


def name(diagnosis: Diagnosis) -> str:
    """The name of the verdict for people, as specific as possible: "4 images, probably mislabelled"."""
    kind = kind_of(diagnosis.verdict.name)
    return (kind and kind.specific_title(diagnosis)) or cause_title(diagnosis.verdict.name)


def cause_title(name: str) -> str:
    """The name of a cause for people. A cause of another version, which has no title here, keeps its identifier."""
    kind = kind_of(name)
    return kind.title if kind else name.replace("_", " ")


def headline(spike: Spike) -> str:
    """What happened in an epoch, and how it ended, in one or two sentences."""
    end = {
        "open": "",
        "recovered": f" It had recovered by epoch {spike.outcome_epoch}.",
        "level shift": f" It stayed high for at least {PATIENCE} epochs.",
        "divergence": " It has not recovered: training diverged.",
    }[spike.outcome]
    what, expected = f"After epoch {spike.epoch} the validation loss was", _expected(spike)
    if not math.isfinite(spike.loss):
        return f"{what} not a finite number{expected}.{end}"
    return f"{what} {nats(spike.loss)}{expected}: {nats(spike.rise)} more (95 %: {nats(spike.low)} to {nats(spike.high)}).{end}"


def nats(value: float, sign: str = "") -> str:
    """A loss with three decimals, a huge one with three digits. `sign`: "+" to show that of a positive one."""
    return f"{value:{sign}.3f}" if abs(value) < HUGE else f"{value:{sign}.3g}"


def _expected(spike: Spike) -> str:
    return f" where {nats(spike.baseline)} was expected" if math.isfinite(spike.baseline) else ""


def block(diagnosis: Diagnosis, *, options: bool = False) -> str:
    """The log's text about a spike: several lines of at most WIDTH characters, the verdict first. `options`: below each remedy,
    also the same as command line options of the training job."""
    spike = diagnosis.spike
    where = f"SPIKE in epoch {spike.epoch}: validation loss"
    if math.isfinite(spike.loss):
        interval = f"(95 %: {nats(spike.low, '+')} to {nats(spike.high, '+')})"
        lines = [f"{where} {nats(spike.loss)}{_expected(spike)}, {nats(spike.rise, '+')} {interval}"]
    else:
        lines = [f"{where} is not finite{_expected(spike)}"]
    for number, cause in enumerate(diagnosis.causes[:SHOWN], 1):
        title = name(diagnosis) if cause is diagnosis.verdict else cause_title(cause.name)
        plain = "" if title == cause.name else f" ({cause.name})"
        lines.append(f"  {number}. {title}{plain}{_fraction(cause)}")
        for text in (cause.evidence, f"-> {cause.remedy}"):
            lines += textwrap.wrap(
                printable(text), WIDTH, initial_indent="     ", subsequent_indent="     ", break_on_hyphens=False
            )
        if options:
            alternatives = command_options(cause.settings) or ["No setting does this."]
            lines += [f"     {'or ' if other else '   '}{text}" for other, text in enumerate(alternatives)]
    return "\n".join(lines)


def requested(diagnosis: Diagnosis | None, epoch: int) -> str:
    """The text about an epoch that was to be diagnosed whether it raised an alarm or not. None: nothing was found in it."""
    if diagnosis is None:
        return (
            f"Epoch {epoch}: the validation loss did not rise above the expected one, or none was expected yet: nothing to explain."
        )
    spike, text = diagnosis.spike, block(diagnosis, options=True)
    if spike.rise > spike.threshold:
        return text
    none = f"No alarm in epoch {epoch}: the loss rose by {spike.rise:.3f}; an alarm needs {spike.threshold:.3f}."
    return f"{none}\n{text.removeprefix('SPIKE in ')}"


def command_options(settings: Sequence[str]) -> list[str]:
    """The `settings` of a cause as options of the training job's command line, one text for each alternative."""
    return [" ".join(f"--set {setting}" for setting in alternative.split()) for alternative in settings]


def printable(text: str) -> str:
    """The text with control, direction and other invisible characters escaped, so that a file name can neither steer a terminal
    nor disguise itself."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _fraction(cause: Cause) -> str:
    """The fraction and its interval; empty for a cause that no probe measured."""
    fraction, low, high = (percent(value) for value in (cause.fraction, cause.low, cause.high))
    if cause.low >= cause.high:
        return ""
    return f": {fraction} of the rise" + (f" ({low} to {high})" if low != high else "")


def _unseen(course: Course, *, alarms: bool) -> list[str]:
    """The largest rise that raised no alarm, if a person would see it in the curve: if it is at least VISIBLE of the loss expected
    then. Smaller ones are in every run, and are not worth a sentence."""
    largest = course.largest
    if largest is None or largest.rise < VISIBLE * largest.expected:
        return []
    which = "Largest rise without an alarm" if alarms else "Largest rise"
    return [f"{which}: {largest.rise:+.2f} in epoch {largest.epoch}; an alarm needs {largest.limit:+.2f}."]


def _restless(course: Course) -> list[str]:
    """The epochs in which the loss kept jumping. Spikes do not say so: while one is open, and after a level shift, the epochs that
    follow are not spikes of their own."""
    return [
        f"From epoch {part.first} to {part.last} the loss was restless: in {part.jumps} of these {part.last - part.first + 1} "
        f"epochs it rose by more than {percent(JUMP)} in one epoch, at most by {part.largest:.2f}."
        for part in course.restless
    ]


def _guessing(course: Course) -> list[str]:
    """A loss that was never below that of guessing."""
    if not course.lowest >= course.guess > 0:  # NaN or infinite: unknown; 0: a single class
        return []
    return [
        f"The loss never got below that of guessing the class frequencies: {course.lowest:.3f} at best, against {course.guess:.3f}."
    ]


def _trend(overfitting: Overfitting) -> str:
    return (
        f"Apart from spikes, the validation loss has climbed by {overfitting.climb:.3f} per epoch since epoch "
        f"{overfitting.epoch} while the loss on training images fell: the model memorizes them (overfitting)."
    )


def _ends(diagnoses: Sequence[Diagnosis]) -> list[str]:
    """How the spikes ended, in sentences."""
    ended: dict[str, list[Diagnosis]] = {}
    for diagnosis in diagnoses:
        ended.setdefault(diagnosis.spike.outcome, []).append(diagnosis)
    ends = []
    if "divergence" in ended:
        ends.append(f"Training diverged in {_epochs(ended['divergence'])}.")
    if "level shift" in ended:
        epochs = _epochs(ended["level shift"])
        ends.append(f"After {epochs} the loss stayed high for at least {PATIENCE} epochs (a level shift).")
    if "open" in ended:
        ends.append(f"It is not known yet whether the loss recovers after {_epochs(ended['open'])}.")
    if list(ended) == ["recovered"]:
        longest = max((d.spike.outcome_epoch or d.spike.epoch) - d.spike.epoch for d in diagnoses)
        each = "" if len(diagnoses) == 1 else " each time"
        ends.append(f"The loss recovered {'in the next epoch' if longest <= 1 else f'within {longest} epochs'}{each}.")
    return ends


def advice(
    diagnoses: Sequence[Diagnosis], overfitting: Overfitting | None = None, course: Course | None = None, *, sound: bool = True
) -> list[str]:
    """Whether the model is fine, and what to do about the most frequent causes, judged by the last spike of each. `overfitting`,
    `course`: what else may be wrong with the curve. `sound`: False if something that these do not say is wrong with it."""
    fine = all(not _harmful(d) and d.spike.outcome == "recovered" for d in diagnoses)
    actions = []
    for same in _to_act_on(diagnoses):
        verdict = same[-1].verdict
        if verdict.name == "few_examples":
            actions.append(f"look at the images of {_epochs(same)}")
        elif (kind := kind_of(verdict.name)) and kind.advice:
            actions.append(kind.advice(same))
        elif verdict.name != "unexplained":
            actions.append((verdict.short_remedy or verdict.remedy).rstrip("."))
    text = "; ".join(printable(one) for one in actions[:SHOWN])
    if not text:
        return []
    if fine and sound and overfitting is None and not _rest(course or Course()):
        return [f"Your model is fine; {text}."]
    if fine:
        return [f"The spike{'s' if len(diagnoses) > 1 else ''} did the model no harm; {text}."]
    return [f"{text[0].upper()}{text[1:]}."]


def settings(diagnoses: Sequence[Diagnosis]) -> tuple[str, ...]:
    """The first action of `advice` as settings of the training job: its alternatives."""
    return next((same[-1].verdict.settings for same in _to_act_on(diagnoses)), ())


def _to_act_on(diagnoses: Sequence[Diagnosis]) -> list[list[Diagnosis]]:
    """The diagnoses of each cause, those that harm the model first."""
    return sorted(_by_cause(diagnoses), key=lambda same: not _harmful(same[-1]))


def _harmful(diagnosis: Diagnosis) -> bool:
    kind = kind_of(diagnosis.verdict.name)
    return kind is None or kind.harms_training


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
