"""What a person reads of a spike: true, short, and in the order in which it is needed."""

from dataclasses import replace

import numpy as np
import pytest

from spikewise import describe
from spikewise.records import CAUSES, Cause, Diagnosis, Event, Overfitting, Probe, Spike, Suspect, Training

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
    remedy = "set BatchNormalization's momentum to 0.9 (it is 0.99: half of an epoch's change takes 69 of its 50 steps to arrive)."
    return Diagnosis(spike(epoch, outcome), (Cause("batchnorm_statistics", 0.92, 0.85, 0.98, "Evidence.", remedy),))


def images(epoch: int, keys: list[str] | None = None) -> Diagnosis:
    """Four of them."""
    entries = [{"image": i, "before": 0.3, "now": 9.0} for i in range(4)]
    probe = Probe("few_examples", 0.8, 0.8, 0.85, facts={"images": entries, "left": 0.08, "of": 300})
    remedy = f"look at these 4 images, which stand out and look mislabelled: {', '.join(keys or ['a', 'b', 'c', 'd'])}."
    suspects = tuple(Suspect(i, 0.3, 9.0, "cat", "dog", 0.99, "mislabelled") for i in range(4))
    return Diagnosis(spike(epoch), (Cause("few_examples", 0.8, 0.8, 0.85, "Evidence.", remedy),), (probe,), suspects=suspects)


def of(cause: str, epoch: int = 4, outcome: str = "recovered") -> Diagnosis:
    return Diagnosis(spike(epoch, outcome), (Cause(cause, 0.8, 0.7, 0.9, "Evidence.", "do this (like so)."),))


def event(kind: str) -> Diagnosis:
    """That is blamed."""
    return Diagnosis(spike(), (Cause("run_event", 0.8, 0.7, 0.9, "Evidence.", "do this.", kind),))


CLIMBS = (
    "Apart from spikes the validation loss has been climbing by 0.013 an epoch since epoch 12, "
    "while training images get better: the network memorizes them (overfitting)."
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
            "One was 4 images, probably mislabelled (epoch 31). The loss was back in the next epoch each time. "
            "Your model is fine; set BatchNormalization's momentum to 0.9; look at the images of epoch 31.",
        ),
        (
            [statistics(4), statistics(7)],
            TREND,
            "2 spikes in 100 epochs: both lagging BatchNorm statistics (epochs 4 and 7). "
            f"The loss was back in the next epoch each time. {CLIMBS} "
            "The spikes did the network no harm; set BatchNormalization's momentum to 0.9.",
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
            "1 spike in 100 epochs: unexplained (epoch 100). Whether it comes back after epoch 100 is not known yet.",
        ),
    ],
)
def test_summary(diagnoses: list[Diagnosis], overfitting: Overfitting | None, text: str) -> None:
    """The report's first lines: a wrong or unreadable one and the answer never arrives."""
    assert describe.summary(diagnoses, overfitting, 100) == text


def test_no_model_is_called_fine_that_is_not() -> None:
    """A user who believes it would deploy a network that overfits, diverged, or took a bad step."""
    for told in (
        describe.summary([statistics(4)], TREND, 100),
        describe.summary([statistics(4, "level shift")], None, 100),
        describe.summary([statistics(100, "open")], None, 100),
        describe.summary([statistics(4), of("bad_batch")], None, 100),
        describe.summary([of("unexplained")], None, 100),
    ):
        assert "fine" not in told


@pytest.mark.parametrize(
    ("fraction", "low", "high", "told"),
    [
        (1.27, 0.98, 1.53, "100% of the rise (98% to 100%)"),
        (0.72, -0.4, 1.31, "72% of the rise (0% to 100%)"),
        (1.01, 1.0, 1.02, "100% of the rise\n"),
    ],
)
def test_no_share_is_above_all_or_below_nothing(fraction: float, low: float, high: float, told: str) -> None:
    """\"127% of the rise\", and a line below it \"100% of the rise is gone\": which is it?"""
    one = Cause("batchnorm_statistics", fraction, low, high, "seen.", "do.")
    assert told in describe.block(replace(of("unexplained"), causes=(one,)))


def test_many_spikes_stay_a_few_lines() -> None:
    """Nobody reads a list of 40 epochs."""
    told = describe.summary([of(CAUSES[epoch % 3 + 4], epoch) for epoch in range(4, 44)], None, 100)
    assert told.startswith("40 spikes in 100 epochs. 14 were ")
    assert "and 10 more" in told
    assert len(told) < 500


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_words(cause: str) -> None:
    """A spike must not crash the log or the report because of what it is called."""
    assert cause in describe.CAUSES
    assert describe.CAUSES[cause] in describe.summary([of(cause)], None, 10)
    assert f"  1. {describe.CAUSES[cause]}" in describe.block(of(cause))


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
    """\"An event in the run\" sends a user to search for what is already known."""
    assert describe.name(diagnosis) == called


def test_a_probe_of_another_version_is_shown_by_its_name() -> None:
    """The report of a run from last month must still be made."""
    assert describe.probe("statistics") == "BatchNorm statistics estimated anew"
    assert describe.probe("half_the_dropout") == "half the dropout"


def test_block() -> None:
    """The log is read while the run goes on: verdict first, then at most two causes, numbers with their intervals."""
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


def test_a_hostile_key_does_not_steer_the_terminal() -> None:
    """Whoever may upload an image must not clear the screen of whoever watches the run, or disguise a name."""
    text = describe.block(images(31, [HOSTILE] * 4))
    assert "Tp/\\x1b[2J\\n\\u202egnp.exe" in text
    assert all(line.isprintable() for line in text.splitlines())


def test_a_loss_that_is_no_number_is_said() -> None:
    """`+inf (95 %: +inf to +inf)` would be noise where the worst has happened."""
    lost = spike(9, "divergence", loss=np.nan, rise=np.inf, low=np.inf, high=np.inf, error=np.inf)
    cause = Cause("divergence", 1.0, 1.0, 1.0, "The loss is not finite.", "resume from a checkpoint.")
    diagnosis = Diagnosis(lost, (cause,))
    assert describe.block(diagnosis).splitlines()[:2] == [
        "SPIKE in epoch 9: validation loss is not finite where 0.500 was expected",
        "  1. a divergence (divergence)",
    ]
    assert describe.headline(lost) == (
        "After epoch 9 the validation loss was not a finite number where 0.500 was expected. "
        "It has not come back: training diverged."
    )
    assert "inf" not in describe.block(diagnosis).replace("infinite", "")


@pytest.mark.parametrize(
    ("outcome", "end"),
    [
        ("open", "0.490)."),
        ("recovered", "It was back after epoch 5."),
        ("level shift", "It stayed high for at least 5 epochs."),
        ("divergence", "training diverged."),
    ],
)
def test_headline(outcome: str, end: str) -> None:
    """How it ended decides whether a user must act at all."""
    told = describe.headline(spike(outcome=outcome))
    assert told.startswith(
        "After epoch 4 the validation loss was 0.900 where 0.500 was expected: 0.400 more (95 %: 0.310 to 0.490)."
    )
    assert told.endswith(end)
