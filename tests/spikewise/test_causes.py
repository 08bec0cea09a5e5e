"""Attribution: which cause wins, when none does, and what a user is told to do."""

from dataclasses import replace

import numpy as np
import pytest

from spikewise.attribute import attribute
from spikewise.records import CAUSES, Case, Event, Hyperparameters, Overfitting, Probe, Spike, Training
from spikewise.suspects import suspects

SPIKE = Spike(9, 0.9, 0.5, 0.02, 0.16, 0.4, 0.35, 0.45, 0.025, 300)
QUIET = Training(straightness=0.9, train_rise=0.39, train_loss=0.3)
SETTINGS = Hyperparameters(learning_rate=1e-3, batch_size=32, steps=50, momentum=0.99)
RATE = Event("learning_rate", 9, 10, 1e-4, 1e-3)
IMAGES = [{"image": i, "before": 0.3, "now": 20.0} for i in (3, 8)]


def probe(name, fraction, spread=0.05, **facts):
    return Probe(name, fraction, fraction - spread, fraction + spread, 0.01, 1, facts)


def case(probes=(), spike=SPIKE, training=QUIET, **more):
    return Case(spike, {one.name: one for one in probes}, training, SETTINGS, **more)


FEW = probe("few_examples", 0.95, images=IMAGES, left=0.02, of=300)
AGAIN = probe("repetition", 0.9, difference=0.3)
STABLE = probe("repetition", 0.0, difference=0.0)
THEN = probe("earlier_weights", 0.9, recorded=0.5, today=0.86)
EVENT = probe("before_event", 0.97, **RATE.as_dict())
BATCH = probe("bad_batches", 0.9, batches=[30], losses=[3.0], usual=0.4, odd=[], each=[[3.0]])
SHIFT = probe("variance_shift", 0.8, without=0.55, with_dropout=0.88, before=0.5)
LINE = probe("line", 0.9, at=0.25, times=4.0, losses={0.0: 0.5, 0.25: 0.52, 1.0: 0.88})
MEAN = probe("averaged", 0.85, now=0.54, before=0.5)
STATISTICS = probe("statistics", 0.9, now=0.54, before=0.5)
LONG = replace(QUIET, length=4.0, length_after=(4.0,), jumps=(1.0,))

WINS = {
    "divergence": case(spike=replace(SPIKE, outcome="divergence")),
    "nondeterministic_evaluation": case([AGAIN, THEN]),
    "few_examples": case([STABLE, FEW]),
    "sampling_noise": case([STABLE], spike=replace(SPIKE, error=0.3, low=-0.2, high=1.0)),
    "run_event": case([STABLE, EVENT], training=LONG, events=(RATE,)),
    "bad_batch": case([STABLE, BATCH]),
    "batchnorm_statistics": case([STABLE, STATISTICS]),
    "variance_shift": case([STABLE, SHIFT]),
    "overshoot": case([STABLE, LINE], training=LONG),
    "gradient_noise": case([STABLE, MEAN], training=replace(QUIET, gradient=2.5)),
    "distribution_shift": case([STABLE], training=replace(QUIET, train_rise=-0.01)),
    "overfitting": case([STABLE], training=replace(QUIET, train_rise=-0.01), overfitting=Overfitting(3, 0.4, 0.01, 0.2)),
    "unexplained": case([STABLE]),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_is_named_with_one_sentence_and_one_remedy(cause):
    """A cause that cannot win is never told; one without words would crash the diagnosis."""
    verdict = attribute(WINS[cause])[0]
    assert verdict.name == cause
    assert verdict.evidence.endswith(".")
    assert verdict.remedy.endswith(".")
    assert not {"nan", "inf", "None"} & {word.strip(".,:;()%") for word in f"{verdict.evidence} {verdict.remedy}".split()}


ORDER = [
    ("nondeterministic_evaluation", [AGAIN]),
    ("few_examples", [FEW]),
    ("distribution_shift", [THEN]),
    ("run_event", [EVENT]),
    ("bad_batch", [BATCH]),
    ("variance_shift", [SHIFT]),
    ("overshoot", [LINE]),
    ("gradient_noise", [MEAN]),
    ("batchnorm_statistics", [STATISTICS]),
]


@pytest.mark.parametrize("number", range(len(ORDER)))
def test_what_changed_goes_before_the_mechanism(number):
    """Ten times longer steps also make statistics lag; blaming the statistics would send the user the wrong way."""
    found = [one for _, probes in ORDER[number:] for one in probes]
    probes = found if AGAIN in found else [STABLE, *found]
    ranked = attribute(case(probes, training=replace(LONG, gradient=2.5), events=(RATE,)))
    assert ranked[0].name == ORDER[number][0]
    assert len({cause.name for cause in ranked}) == len(ranked)
    assert [cause.fraction for cause in ranked[1:]] == sorted((cause.fraction for cause in ranked[1:]), reverse=True)


def test_few_groups_are_no_excuse():
    """On validation images from five photographs every spike would be chance, and lagging statistics never be named."""
    spike = replace(SPIKE, error=0.3, low=-0.2, high=1.0)
    assert attribute(case([STABLE, STATISTICS], spike=spike))[0].name == "sampling_noise"
    few = replace(spike, groups=5, group="rocket", group_fraction=0.8)
    ranked = attribute(case([STABLE, STATISTICS], spike=few))
    assert [cause.name for cause in ranked] == ["batchnorm_statistics", "sampling_noise"]
    assert attribute(case([STABLE], spike=few))[0].name == "sampling_noise"
    assert "80% of it comes from the images of rocket" in ranked[1].evidence
    assert "only 5 groups of validation images" in ranked[1].remedy
    assert "take 20 or more" in ranked[1].remedy


def test_nobody_asks_for_chance_where_a_step_was_absurdly_long():
    """A small rise after a step 300 times too long would be called luck, and the next one break the network."""
    spike = replace(SPIKE, error=0.3, low=-0.2, high=1.0)
    assert attribute(case([STABLE, LINE], spike=spike, training=LONG))[0].name == "sampling_noise"
    assert attribute(case([STABLE, LINE], spike=spike, training=replace(LONG, length=300.0)))[0].name == "overshoot"


RESTART = Event("restart", 9, 10)
AFTER = probe("before_event", 0.97, **RESTART.as_dict())


def test_a_restart_is_blamed_only_for_what_it_lost():
    """Every lag after a restart would be its doing, or statistics that it lost called a lag."""
    lost = replace(QUIET, length_after=(1.0,), jumps=(7.0,))
    verdict = attribute(case([STABLE, AFTER, STATISTICS], training=lost, events=(RESTART,)))[0]
    assert verdict.name == "run_event"
    assert "moving statistics went 7 times as far as anywhere else" in verdict.evidence
    kept = replace(lost, jumps=(1.2,))
    assert attribute(case([STABLE, AFTER, STATISTICS], training=kept, events=(RESTART,)))[0].name == "batchnorm_statistics"


def test_what_was_changed_with_a_restart_goes_before_the_restart():
    """Who resumes with ten times the learning rate would be told to look for what the checkpoint lost."""
    events = (RESTART, RATE)
    both = replace(LONG, length_after=(4.0, 4.0), jumps=(1.0, 1.0))
    verdict = attribute(case([STABLE, AFTER], training=both, events=events))[0]
    assert (verdict.name, verdict.event) == ("run_event", "learning_rate")
    assert "The learning rate was changed from 0.0001 to 0.001" in verdict.evidence
    lower = (RESTART, replace(RATE, after=1e-5))
    assert attribute(case([STABLE, AFTER], training=both, events=lower))[0].event == "restart"


def test_a_restart_that_lost_statistics_goes_before_what_was_changed_an_epoch_ago():
    """Who raised the learning rate yesterday would be told to lower it, and the checkpoint that lacks statistics stay as it is."""
    events = (RESTART, replace(RATE, epoch=RESTART.epoch - 1))
    lost = replace(LONG, length_after=(4.0, 4.0), jumps=(7.0, 1.0))
    assert attribute(case([STABLE, AFTER], training=lost, events=events))[0].event == "restart"
    kept = replace(lost, jumps=(1.2, 1.0))
    assert attribute(case([STABLE, AFTER], training=kept, events=events))[0].event == "learning_rate"


def test_what_was_done_to_the_weights_goes_before_chance_and_before_its_victims():
    """On few images overwritten weights would be called bad luck, and of long steps the images be blamed that suffer most."""
    spike = replace(SPIKE, error=0.3, low=-0.2, high=1.0)
    assert attribute(case([STABLE], spike=spike, training=replace(QUIET, foreign=(3, 6, 0.5))))[0].name == "run_event"
    assert attribute(case([STABLE, FEW, LINE], training=LONG))[0].name == "overshoot"
    assert attribute(case([STABLE, FEW, THEN, LINE], training=LONG))[0].name == "few_examples"


def test_weights_that_went_astray_are_no_lag_of_the_statistics():
    """A wrong gradient would be answered with another momentum."""
    ranked = attribute(case([STABLE, STATISTICS], training=replace(QUIET, astray=8.0)))
    assert [cause.name for cause in ranked] == ["unexplained", "batchnorm_statistics"]


@pytest.mark.parametrize("one", [THEN, BATCH, SHIFT, LINE, STATISTICS])
def test_nothing_that_removes_less_than_half_is_the_verdict(one):
    """A guess would look like an explanation."""
    weak = replace(one, fraction=0.49, low=0.45, high=0.53)
    ranked = attribute(case([STABLE, weak], training=LONG))
    assert ranked[0].name == "unexplained"
    assert ranked[1].fraction == 0.49


@pytest.mark.parametrize("one", [FEW, THEN, BATCH, SHIFT, LINE, STATISTICS])
def test_a_probe_as_noisy_as_the_rise_decides_nothing(one):
    """A lucky draw of batches would name the cause."""
    assert attribute(case([STABLE, replace(one, low=-0.05)], training=LONG))[0].name == "unexplained"


@pytest.mark.parametrize(
    ("validation_rise", "train_rise", "verdict"),
    [
        (0.05, 0.004, "unexplained"),
        (0.3, 0.07, "unexplained"),
        (0.3, 0.01, "distribution_shift"),
        (None, 0.01, "distribution_shift"),
    ],
)
def test_training_images_are_compared_with_validation_images_over_the_same_epochs(validation_rise, train_rise, verdict):
    """A rise that built over two epochs, and training images with it, would be blamed on the validation images."""
    training = replace(QUIET, train_rise=train_rise, train_loss=1.0, validation_rise=validation_rise)
    assert attribute(case([STABLE], training=training))[0].name == verdict


PATH = Probe("path", 0.95, 0.95, 0.95, passes=3, facts={"first": 0, "last": 10})


@pytest.mark.parametrize(
    ("one", "training", "told"),
    [
        (replace(STATISTICS, fraction=0.4), QUIET, "half of the rise (most, 40%: BatchNorm statistics estimated anew)."),
        (replace(STATISTICS, low=-0.1), QUIET, "90%, is gone with one (BatchNorm statistics estimated anew), but its interval"),
        (STATISTICS, replace(QUIET, astray=8.0), "but the last batches were trained on worse than usual"),
        (LINE, QUIET, "but no step was twice as long as its gradient explains."),
        (MEAN, QUIET, "but gradients were not unusual"),
        (PATH, QUIET, "accounts for half of the rise (most, 0%: evaluated a second time)."),
    ],
)
def test_what_is_not_explained_is_not_contradicted(one, training, told):
    """\"Nothing accounts for half of it (most, 95%)\" and nobody believes the rest."""
    verdict = attribute(case([STABLE, PATH, one], training=training))[0]
    assert verdict.name == "unexplained"
    assert told in verdict.evidence


@pytest.mark.parametrize(
    ("rise", "error", "low", "said", "needed"),
    [(0.05, 0.02, 0.01, "the rise is 2.5 standard errors", "530"), (0.4, 0.3, -0.2, "between -0.200 and", "1,840")],
)
def test_so_many_images_are_asked_for_as_would_tell(rise, error, low, said, needed):
    """\"There are 300: about 180 are needed", of a rise whose interval lies above 0, is no answer."""
    verdict = attribute(case([STABLE], spike=replace(SPIKE, rise=rise, error=error, low=low)))[0]
    assert verdict.name == "sampling_noise"
    assert said in verdict.evidence
    assert verdict.remedy == f"there are 300 validation images: with about {needed} a rise of {rise:.3f} would be more than chance."


def test_a_loss_that_is_no_number_needs_no_probe():
    """A run that blew up would get no diagnosis at all."""
    inf = np.inf
    lost = replace(SPIKE, loss=np.nan, rise=inf, low=inf, high=inf, error=inf, outcome="divergence")
    (verdict,) = attribute(Case(lost))
    assert verdict.name == "divergence"
    assert "is not finite" in verdict.evidence


@pytest.mark.parametrize(
    ("predicted", "probes", "looks"),
    [
        ({3: ("cat", "dog", 0.99), 8: ("cat", "dog", 0.98)}, [FEW, STABLE], ["mislabelled", "mislabelled"]),
        ({3: ("cat", "dog", 0.99), 8: ("cat", "dog", 0.6)}, [FEW, STABLE], ["mislabelled", None]),
        ({3: ("cat", "cat", 0.99)}, [FEW, STABLE], [None, None]),
        ({}, [FEW, STABLE, THEN], ["damaged", "damaged"]),
        ({}, [STABLE], []),
    ],
)
def test_what_an_image_looks_like_is_a_field(predicted, probes, looks):
    """A program would have to read it out of a sentence."""
    found = suspects(case(probes, predicted=predicted))
    assert [one.looks for one in found] == looks
    assert [one.image for one in found] == [3, 8][: len(looks)]
