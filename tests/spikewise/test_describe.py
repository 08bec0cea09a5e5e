"""What a person reads about a spike: true, short, and in the order in which it is needed."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikewise import describe
from spikewise.causes import NAMES
from spikewise.records import (
    Cause,
    Course,
    Diagnosis,
    Event,
    Overfitting,
    Probe,
    Restless,
    Rise,
    Spike,
    Suspect,
    Training,
)

HOSTILE = "Tp/\x1b[2J\n\u202egnp.exe"


def spike(epoch: int = 4, outcome: str = "recovered", **values: float) -> Spike:
    settled = None if outcome == "open" else epoch + 1
    numbers = {
        "loss": 0.9,
        "baseline": 0.5,
        "scale": 0.03,
        "threshold": 0.24,
        "rise": 0.4,
        "low": 0.31,
        "high": 0.49,
        "error": 0.05,
    }
    return Spike(epoch=epoch, **{**numbers, **values}, images=300, outcome=outcome, outcome_epoch=settled)  # type: ignore[arg-type]


def statistics(epoch: int, outcome: str = "recovered") -> Diagnosis:
    short = "set BatchNormalization's momentum to 0.9"
    remedy = f"{short} (at 0.99 the statistics need 69 steps to follow half of a change; an epoch has 50)."
    return Diagnosis(spike(epoch, outcome), (Cause("batchnorm_lag", 0.92, 0.85, 0.98, "Evidence.", remedy, None, short),))


def images(epoch: int, keys: list[str] | None = None) -> Diagnosis:
    """Of a spike that four mislabelled images made."""
    entries = [{"image": i, "before": 0.3, "now": 9.0} for i in range(4)]
    probe = Probe("few_examples", 0.8, 0.8, 0.85, facts={"images": entries, "left": 0.08, "of": 300})
    remedy = f"look at these 4 images, which stand out and look mislabelled: {', '.join(keys or ['a', 'b', 'c', 'd'])}."
    suspects = tuple(Suspect(i, 0.3, 9.0, "cat", "dog", 0.99, "mislabelled") for i in range(4))
    return Diagnosis(spike(epoch), (Cause("few_examples", 0.8, 0.8, 0.85, "Evidence.", remedy),), (probe,), suspects=suspects)


def of(cause: str, epoch: int = 4, outcome: str = "recovered") -> Diagnosis:
    return Diagnosis(spike(epoch, outcome), (Cause(cause, 0.8, 0.7, 0.9, "Evidence.", "do this."),))


def event(kind: str) -> Diagnosis:
    """Of a spike that this event caused."""
    return Diagnosis(spike(), (Cause("run_event", 0.8, 0.7, 0.9, "Evidence.", "do this.", kind),))


CLIMBS = (
    "Apart from spikes, the validation loss has climbed by 0.013 per epoch since epoch 12 "
    "while the loss on training images fell: the model memorizes them (overfitting)."
)
TREND = Overfitting(epoch=12, loss=0.4, climb=0.013, gap=0.5)


@pytest.mark.parametrize(
    ("diagnoses", "overfitting", "text"),
    [
        ([], None, "No spike in 100 epochs."),
        ([], TREND, f"No spike in 100 epochs. {CLIMBS}"),
        (
            [statistics(4), statistics(7), images(31)],
            None,
            "3 spikes in 100 epochs. Two were lagging BatchNorm statistics (epochs 4 and 7). "
            "One was 4 images, probably mislabelled (epoch 31). The loss recovered in the next epoch each time. "
            "Your model is fine; set BatchNormalization's momentum to 0.9; look at the images of epoch 31.",
        ),
        (
            [statistics(4), statistics(7)],
            TREND,
            "2 spikes in 100 epochs: both lagging BatchNorm statistics (epochs 4 and 7). "
            f"The loss recovered in the next epoch each time. {CLIMBS} "
            "The spikes did the model no harm; set BatchNormalization's momentum to 0.9.",
        ),
        (
            [of("overshoot", 9, "level shift")],
            None,
            "1 spike in 100 epochs: steps that were too long (epoch 9). "
            "After epoch 9 the loss stayed high for at least 5 epochs (a level shift). Do this.",
        ),
        (
            [of("divergence", 9, "divergence")],
            None,
            "1 spike in 100 epochs: a divergence (epoch 9). Training diverged in epoch 9. Do this.",
        ),
        (
            [of("unexplained", 100, "open")],
            None,
            "1 spike in 100 epochs: unexplained (epoch 100). It is not known yet whether the loss recovers after epoch 100.",
        ),
    ],
)
def test_summary(diagnoses: list[Diagnosis], overfitting: Overfitting | None, text: str) -> None:
    """These are the report's first lines; if they are wrong or unreadable, the user has no answer."""
    assert describe.summary(diagnoses, overfitting, 100) == text


@pytest.mark.parametrize(
    ("diagnoses", "course", "text"),
    [
        (
            [],
            Course(largest=Rise(8, 3.57, 1.88, 4.5)),
            "No alarm in 100 epochs. Largest rise: +3.57 in epoch 8; an alarm needs +4.50.",
        ),
        ([], Course(largest=Rise(8, 0.1, 0.7, 0.3)), "No spike in 100 epochs."),
        (
            [of("overshoot", 9, "level shift")],
            Course(largest=Rise(30, 0.4, 0.7, 0.5), restless=(Restless(21, 65, 13, 0.62),)),
            "1 spike in 100 epochs: steps that were too long (epoch 9). "
            "After epoch 9 the loss stayed high for at least 5 epochs (a level shift). "
            "Largest rise without an alarm: +0.40 in epoch 30; an alarm needs +0.50. "
            "From epoch 21 to 65 the loss was restless: in 13 of these 45 epochs it rose by more than 15% in one epoch, "
            "at most by 0.62. "
            "Do this.",
        ),
        (
            [],
            Course(lowest=0.8, guess=0.693),
            "No spike in 100 epochs. "
            "The loss never got below that of guessing the class frequencies: 0.800 at best, against 0.693.",
        ),
        ([], Course(lowest=0.3, guess=np.inf), "No spike in 100 epochs."),
        ([], Course(lowest=0.3, guess=0.0), "No spike in 100 epochs."),
    ],
)
def test_the_rest_of_the_curve_is_summarized(diagnoses: list[Diagnosis], course: Course, text: str) -> None:
    """A user who sees a rise, forty restless epochs or a loss worse than guessing in the curve would read "No spike"."""
    assert describe.summary(diagnoses, None, 100, course) == text


def test_only_a_healthy_model_is_called_fine() -> None:
    """Otherwise a user would deploy a network that overfits, diverged, or was harmed."""
    for text in (
        describe.summary([statistics(4)], TREND, 100),
        describe.summary([statistics(4, "level shift")], None, 100),
        describe.summary([statistics(100, "open")], None, 100),
        describe.summary([statistics(4), of("bad_batch")], None, 100),
        describe.summary([of("unexplained")], None, 100),
        describe.summary([statistics(4)], None, 100, Course(lowest=0.8, guess=0.693)),
        describe.summary([statistics(4)], None, 100, Course(restless=(Restless(21, 65, 13, 0.62),))),
    ):
        assert "fine" not in text


@pytest.mark.parametrize(
    ("fraction", "low", "high", "text"),
    [
        (1.27, 0.98, 1.53, "100% of the rise (98% to 100%)"),
        (0.72, -0.4, 1.31, "72% of the rise (0% to 100%)"),
        (1.01, 1.0, 1.02, "100% of the rise\n"),
    ],
)
def test_percentages_lie_between_0_and_100(fraction: float, low: float, high: float, text: str) -> None:
    """\"127% of the rise\" above a line that says \"100% of the rise disappears\" would confuse the reader."""
    one = Cause("batchnorm_lag", fraction, low, high, "seen.", "do.")
    assert text in describe.block(replace(of("unexplained"), causes=(one,)))


def test_many_spikes_stay_a_few_lines() -> None:
    """Otherwise a user would have to read a list of 40 epochs."""
    causes = ("bad_batch", "overshoot", "gradient_noise")
    text = describe.summary([of(causes[epoch % 3], epoch) for epoch in range(4, 44)], None, 100)
    assert text.startswith("40 spikes in 100 epochs. 14 were ")
    assert "and 10 more" in text
    assert len(text) < 500


@pytest.mark.parametrize("cause", [*NAMES, "of_another_version"])
def test_every_cause_can_be_described(cause: str) -> None:
    """Otherwise a spike would crash the log or the report because of its cause, one of another version included."""
    assert describe.cause_title(cause) in describe.summary([of(cause)], None, 10)
    assert f"  1. {describe.cause_title(cause)}" in describe.block(of(cause))
    assert "_" not in describe.cause_title(cause)


@pytest.mark.parametrize(
    ("diagnosis", "called"),
    [
        (images(4), "4 images, probably mislabelled"),
        (replace(images(4), suspects=(Suspect(0, 0.3, 9.0, looks="damaged"),)), "1 image, probably replaced or damaged"),
        (replace(images(4), suspects=(Suspect(0, 0.3, 9.0, "cat", "cat", 0.4),)), "1 image"),
        (replace(images(4), suspects=()), "a few images"),
        (
            replace(event("learning_rate"), probes=(Probe("before_event", 1, 1, 1, facts=Event("restart", 4).as_dict()),)),
            "a raised learning rate",
        ),
        (replace(of("run_event"), training=Training(foreign=(3, 4, 0.5))), "weights written from outside"),
        (replace(event("optimizer_reset"), training=Training(foreign=(3, 4, 0.5))), "a lost optimizer state"),
        (of("run_event"), "an event in the run"),
    ],
)
def test_a_name_says_as_much_as_is_known(diagnosis: Diagnosis, called: str) -> None:
    """Otherwise a user would have to search for a cause that is known in detail."""
    assert describe.name(diagnosis) == called


def test_a_probe_of_another_version_is_shown_by_its_name() -> None:
    """Otherwise no report could be made of a run from last month."""
    assert describe.probe("statistics") == "BatchNorm statistics re-estimated"
    assert describe.probe("half_the_dropout") == "half the dropout"


def test_block() -> None:
    """The log is read during the run; it must begin with the verdict, stay short, and give intervals."""
    diagnosis = images(31, [f"authentic/scene-{i:04d}.jpg" for i in range(4)])
    more = tuple(Cause(name, 0.3, 0.1, 0.4, "Weak.", "ignore it.") for name in ("overshoot", "gradient_noise", "bad_batch"))
    lines = describe.block(replace(diagnosis, causes=diagnosis.causes + more)).splitlines()
    assert lines[0] == "SPIKE in epoch 31: validation loss 0.900 where 0.500 was expected, +0.400 (95 %: +0.310 to +0.490)"
    assert lines[1] == "  1. 4 images, probably mislabelled (few_examples): 80% of the rise (80% to 85%)"
    assert "authentic/scene-0003.jpg" in " ".join(lines)
    assert [line for line in lines if line.startswith("  3. ")] == [
        "  3. gradient noise (gradient_noise): 30% of the rise (10% to 40%)"
    ]
    assert "a bad training batch" not in "".join(lines)
    assert max(map(len, lines)) <= describe.WIDTH


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), ["        No setting does this."]),
        (("a.b=1",), ["        --set a.b=1"]),
        (("a.b=1 a.c=x", "d.e=0.5"), ["        --set a.b=1 --set a.c=x", "     or --set d.e=0.5"]),
    ],
)
def test_a_remedy_is_followed_by_its_options(settings: tuple[str, ...], expected: list[str]) -> None:
    """A user of the job would have to search the settings for what the remedy means; one of the callback has no such options."""
    diagnosis = replace(of("overshoot"), causes=(Cause("overshoot", 0.8, 0.7, 0.9, "Seen.", "do this.", settings=settings),))
    assert describe.block(diagnosis, options=True).splitlines()[3:] == ["     -> do this.", *expected]
    assert "setting" not in describe.block(diagnosis)
    assert "--set" not in describe.block(diagnosis)


def test_a_hostile_key_does_not_steer_the_terminal() -> None:
    """Otherwise anyone who can upload an image could clear the screen of the person who watches the run, or disguise a name."""
    text = describe.block(images(31, [HOSTILE] * 4))
    assert "Tp/\\x1b[2J\\n\\u202egnp.exe" in text
    assert all(line.isprintable() for line in text.splitlines())


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    """Otherwise some character that the test above does not know could still steer the terminal."""
    shown = describe.printable(text)
    assert shown.isprintable()
    assert describe.printable(shown) == shown
    assert not text.isprintable() or shown == text


def test_a_loss_that_is_not_finite_is_reported_in_words() -> None:
    """Otherwise the log would show `+inf (95 %: +inf to +inf)` when the worst has happened."""
    lost = spike(9, "divergence", loss=np.nan, rise=np.inf, low=np.inf, high=np.inf, error=np.inf)
    cause = Cause("divergence", 1.0, 1.0, 1.0, "The loss is not finite.", "resume from a checkpoint.")
    diagnosis = Diagnosis(lost, (cause,))
    assert describe.block(diagnosis).splitlines()[:2] == [
        "SPIKE in epoch 9: validation loss is not finite where 0.500 was expected",
        "  1. a divergence (divergence)",
    ]
    assert describe.headline(lost) == (
        "After epoch 9 the validation loss was not a finite number where 0.500 was expected. "
        "It has not recovered: training diverged."
    )
    assert "inf" not in describe.block(diagnosis).replace("infinite", "")


@pytest.mark.parametrize(
    ("outcome", "end"),
    [
        ("open", "0.490)."),
        ("recovered", "It had recovered by epoch 5."),
        ("level shift", "It stayed high for at least 5 epochs."),
        ("divergence", "training diverged."),
    ],
)
def test_headline(outcome: str, end: str) -> None:
    """How a spike ended decides whether the user must act at all."""
    text = describe.headline(spike(outcome=outcome))
    assert text.startswith(
        "After epoch 4 the validation loss was 0.900 where 0.500 was expected: 0.400 more (95 %: 0.310 to 0.490)."
    )
    assert text.endswith(end)


def test_after_two_spikes_the_summary_names_the_bad_batches_of_both():
    """The user would clean the batches of the last spike, and keep those of the first."""

    def bad(epoch: int, batches: list[int]) -> Diagnosis:
        probe = Probe("bad_batches", 0.9, 0.8, 1.0, facts={"batches": batches})
        return Diagnosis(spike(epoch), (Cause("bad_batch", 0.9, 0.8, 1.0, "Evidence.", "look at them."),), (probe,))

    summary = describe.summary([bad(4, [0, 1, 2]), bad(9, [30])], None, 20)
    assert summary.endswith("Look at the images and labels of batches 1-3 of epoch 4 and batch 31 of epoch 9.")
