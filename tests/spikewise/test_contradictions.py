"""No cause is the verdict against a measured fact, and no sentence contradicts its numbers."""

from dataclasses import replace

import numpy as np
import pytest

from spikewise import causes
from spikewise.causes import attribute
from spikewise.records import Case, Event, Spike, case_from
from tests.spikewise.cases import (
    BATCH,
    CHANCE,
    CHANGED,
    COOLED,
    FEW,
    FLOAT32,
    FULL_STEPS,
    HIGHER,
    LINE,
    LONG,
    MEAN,
    ONLY_VALIDATION,
    QUIET,
    SHIFT,
    STABLE,
    STATISTICS,
    THEN,
    WINS,
    WORSE,
    case,
    probe,
)


def changed(cause: str, probes=(), training=None, **facts) -> Case:
    """The case in which the cause wins, with a contradicting fact: further probes, fields of Training, or facts of its probes."""
    won = WINS[cause]
    known = dict(won.probes) | {one.name: one for one in probes}
    if facts:
        known = {name: replace(one, facts={**one.facts, **facts}) for name, one in known.items()}
    return replace(won, probes=known, training=replace(won.training, **(training or {})))


NO_STEP_NEEDED = {"probes": [THEN], "training": {"train_rise": 0.39}}
"""The earlier weights show the rise today as well, on training images too."""

CONTRADICTIONS = [
    ("divergence", {"training": {"lost": False}}),
    ("nondeterministic_evaluation", {"difference": 0.0}),
    ("nondeterministic_evaluation", {"probes": [replace(STABLE, facts={"difference": 0.02}), THEN]}),
    ("divergence", {"training": {"lost": None, "batch_loss": 0.3, "usual_batch_loss": 0.4}}),
    ("precision", {"probes": [replace(FLOAT32, low=-0.1)]}),
    ("precision", {"now": 5.0}),
    ("run_event", NO_STEP_NEEDED),
    ("run_event", {"training": {"length_after": (1.0,), "jumps": (1.0,)}, "after": 1e-4}),
    ("few_examples", {"training": {"train_rise": 0.39}}),
    ("few_examples", {"training": {"length": 4.0}}),
    ("few_examples", {"left": 0.3}),
    ("sampling_noise", {"training": {"train_rise": 0.15}}),
    ("sampling_noise", {"training": {"length": 300.0}}),
    ("sampling_noise", {"probes": [THEN]}),
    ("sampling_noise", {"probes": [BATCH]}),
    ("distribution_shift", {"training": {"train_rise": 0.39}}),
    ("distribution_shift", {"probes": [THEN], "training": {"train_loss": 0.02, "train_rise": 0.02}}),
    ("training_data_changed", NO_STEP_NEEDED),
    ("bad_batch", NO_STEP_NEEDED),
    ("batchnorm_lag", NO_STEP_NEEDED),
    ("batchnorm_lag", {"training": {"astray": 5.0}}),
    ("batchnorm_shock", NO_STEP_NEEDED),
    ("batchnorm_shock", {"training": {"astray": 5.0}}),
    ("variance_shift", NO_STEP_NEEDED),
    ("variance_shift", {"with_dropout": 0.55, "without": 0.55}),
    ("variance_shift", {"with_dropout": 20.0, "without": 5.0}),
    ("stale_optimizer_state", NO_STEP_NEEDED),
    ("stale_optimizer_state", {"training": {"raised": 6.0}}),
    ("stale_optimizer_state", {"training": {"stride": 0.3}}),
    ("stale_optimizer_state", {"training": {"length": 1.2}}),
    ("stale_optimizer_state", {"training": {"stride": np.nan}}),
    ("overshoot", NO_STEP_NEEDED),
    ("overshoot", {"training": {"length": 1.1}}),
    ("gradient_noise", NO_STEP_NEEDED),
    ("gradient_noise", {"training": {"gradient": 1.0}}),
    ("gradient_noise", {"now": 5.0}),
    ("overconfidence", NO_STEP_NEEDED),
    ("overconfidence", {"accuracy": 0.6}),
    ("overconfidence", {"temperature": 1.0}),
    ("overconfidence", {"temperature": 20.0}),
    ("overfitting", NO_STEP_NEEDED),
    ("overfitting", {"training": {"train_rise": 0.39}}),
]
"""Cause, and a measured fact that contradicts it, as arguments of `changed`."""


@pytest.mark.parametrize(("cause", "fact"), CONTRADICTIONS)
def test_a_measured_fact_that_contradicts_a_cause_keeps_it_from_being_the_verdict(cause, fact):
    """A user would follow advice that the numbers beside it refute, such as chance for a rise that training images share."""
    found = changed(cause, **fact)
    if cause == "run_event" and "after" in fact:
        found = replace(found, events=tuple(replace(event, after=1e-4) for event in found.events))
    verdict = attribute(found)[0]
    if cause == "run_event" and fact is NO_STEP_NEEDED:  # no event of the run, but the evaluation itself
        assert verdict.event is None
    else:
        assert verdict.name != cause


def test_weights_that_were_written_where_the_loss_did_not_rise_are_not_blamed():
    """A restore of a few weights early in the epoch would hide what broke them at its end."""
    foreign = replace(QUIET, foreign=(3, 5, 0.001))
    there, elsewhere = (probe("path", 0.95, first=first, last=first + 6) for first in (0, 30))
    assert attribute(case([STABLE, there, STATISTICS], training=foreign))[0].name == "run_event"
    verdict, *others = attribute(case([STABLE, elsewhere, STATISTICS], training=foreign))
    assert verdict.name == "batchnorm_statistics"
    assert "it is not the verdict, because the loss rose at other steps" in others[0].evidence


def test_dropout_that_makes_batches_differ_is_not_taken_for_sorted_images():
    """A user who raised dropout would be told to shuffle images that are shuffled."""
    facts = {**CHANGED.facts, "loss": 0.4, "loss_limit": 1.0, "shifted": False, "clustering": 8.0}
    mixed, by_class = (replace(CHANGED, facts={**facts, "sorting": sorting}) for sorting in (0.9, 30.0))
    assert attribute(case([STABLE, mixed, SHIFT]))[0].name == "variance_shift"
    assert attribute(case([STABLE, by_class, SHIFT]))[0].name == "training_data_changed"
    assert attribute(case([STABLE, mixed]))[0].name == "training_data_changed"  # by something else than their class


def test_every_cause_has_a_contradicting_fact():
    """A new cause would be claimed whatever else was measured."""
    always = {"unexplained", "batchnorm_statistics"}  # nothing contradicts the first; test_causes.py has those of the second
    assert {cause for cause, _ in CONTRADICTIONS} == set(causes.NAMES) - always


def test_training_images_that_share_a_rise_only_by_their_own_noise_do_not_rule_out_chance():
    """A small sample of training images would rule out chance by chance."""
    noisy = replace(ONLY_VALIDATION, train_rise=0.15, train_error=0.1)
    assert attribute(case([STABLE], spike=CHANCE, training=noisy))[0].name == "sampling_noise"


def test_the_earlier_weights_alone_do_not_blame_the_validation_images():
    """A user who changed the loss function would search the validation images for a change."""
    verdict, second, *_ = attribute(case([STABLE, THEN], training=QUIET))
    assert (verdict.name, verdict.event) == ("run_event", None)
    assert verdict.evidence.endswith("Training images rose as well, so it is not the validation images that changed.")
    assert verdict.remedy.startswith("find what changed in the evaluation of all images: the loss function, ")
    assert second.name == "distribution_shift"
    assert "it is not the verdict, because training images rose as well" in second.evidence


def test_a_reported_change_of_the_loss_goes_before_everything_that_compares_losses():
    """The probes compare losses of two functions, and blame whatever removes the difference."""
    event = Event("loss", 9, 0, detail="from cross-entropy to a focal loss")
    verdict = attribute(case([STABLE, THEN, FEW, STATISTICS], training=QUIET, events=(event,)))[0]
    assert (verdict.name, verdict.event) == ("run_event", "loss")
    assert verdict.evidence == (
        "The loss function was changed before step 1 of the epoch (from cross-entropy to a focal loss), so the loss before and "
        "after it does not compare."
    )


def test_bad_batches_are_all_named_counted_from_one_with_their_epoch():
    """The user would look at three of twelve batches, or at those of another epoch."""
    numbers = [3, *range(10, 20), 30]
    many = replace(BATCH, facts={**BATCH.facts, "batches": numbers, "losses": [3.0] * 12, "each": [[3.0]] * 12})
    verdict = attribute(case([STABLE, many]))[0]
    assert verdict.remedy == "look at the images and labels of batches 4, 11-20 and 31 of epoch 9."
    assert "batches 4, 11-20 and 31 of 50 had" in verdict.evidence


SET = {
    "model.batch_normalization": "synchronized",
    "augmentation.shift": 8,
    "training.keep": "best",
    "training.early_stopping": 5,
    "training.label_smoothing": 0.1,
    "optimizer.ema": 0.999,
    "optimizer.clip_norm": 1.0,
    "model.precision": "float32",
}


@pytest.mark.parametrize("cause", causes.NAMES)
def test_no_remedy_asks_for_what_is_set(cause):
    """A user would be told to do what the configuration says already."""
    won = WINS[cause]
    verdict = attribute(replace(won, hyperparameters=replace(won.hyperparameters, settings=SET)))[0]
    assert verdict.name == cause
    for key, value in SET.items():
        assert f"{key}={value}" not in verdict.settings
        assert not [line for line in verdict.settings if line.startswith(("augmentation.shift", "optimizer.ema", "optimizer.clip"))]
    assert "shift the training images" not in verdict.remedy
    assert "clip gradients" not in verdict.remedy
    assert "average the weights" not in verdict.remedy


def test_synchronized_statistics_are_not_offered_where_they_are_set():
    """The user of more workers would be told to set what is set."""
    event = Event("world_size", 9, 10, 2, 4)
    before = replace(WINS["run_event"].probes["before_event"], facts=event.as_dict())
    one = case([STABLE, before], training=LONG, events=(event,))
    known = replace(one, hyperparameters=replace(one.hyperparameters, settings=SET))
    assert attribute(one)[0].settings == ("model.batch_normalization=synchronized",)
    verdict = attribute(known)[0]
    assert verdict.remedy.startswith("go back to 2 workers")
    assert verdict.settings == ("launch.workers=2",)


@pytest.mark.parametrize(
    ("probes", "training", "sentence"),
    [
        ([MEAN], replace(QUIET, gradient=2.5), "the loss went from 0.500 to 0.540: 85% of the rise disappears"),
        ([SHIFT], QUIET, "estimated with dropout, 0.550 with statistics estimated without it, which gave 0.500 before."),
        ([LINE], LONG, "with steps of the usual length the loss would have gone from 0.500 to 0.520."),
        ([LINE], FULL_STEPS, "length the loss would have gone from 0.500 to 0.520."),
        ([COOLED], QUIET, "the loss went from 0.480 to 0.560: 80% of the rise disappears; the accuracy went from 85.5% to 85.0%."),
        (
            [CHANGED],
            QUIET,
            "batches from batch 25 of epoch 9 on had a loss of 3.10 with the weights of the epoch before (usual: 0.40);",
        ),
        ([FLOAT32], QUIET, "is 0.520 (before: 0.500): 95% of the rise disappears."),
    ],
)
def test_evidence_gives_both_losses_of_the_changed_condition(probes, training, sentence):
    """A loss of 1.5 beside a rise from 2.3 to 4.8 says nothing without what that condition gave before."""
    assert sentence in attribute(case([STABLE, *probes], training=training))[0].evidence


def test_a_collapsed_loss_scale_is_named_where_no_probe_shows_the_rise():
    """Gradients that overflow in every step would stay unexplained."""
    verdict = attribute(case([STABLE], training=replace(QUIET, loss_scale=(32768.0, 0.25))))[0]
    assert verdict.name == "precision"
    assert "fell from 32768 to 0.25" in verdict.evidence
    assert attribute(case([STABLE], training=replace(QUIET, loss_scale=(32768.0, 16384.0))))[0].name == "unexplained"


@pytest.mark.parametrize(
    ("facts", "evidence", "remedy"),
    [
        (
            {"shifted": True, "factor": 250.0},
            "means by 0.1 standard deviations and multiplied its variances by 250",
            "find",
        ),
        (
            {"clustering": 9.0, "first": 0},
            "in epoch 9 differed from each other 9.0 times as much as batches in random order",
            "shuffle",
        ),
        (
            {"clustering": 1.0, "sorting": 25.0, "first": 0},
            "in epoch 9 held one class more than others: its fraction varied 5.0 times as much as in batches in random order",
            "shuffle",
        ),
    ],
)
def test_changed_training_data_are_described_by_what_differs(facts, evidence, remedy):
    """The user would search labels where the pixels changed, or pixels where the order did."""
    one = replace(CHANGED, facts={**CHANGED.facts, "loss": 0.3, **facts})
    verdict = attribute(case([STABLE, one]))[0]
    assert evidence in verdict.evidence
    assert verdict.remedy.startswith(remedy)


def test_the_spike_of_the_documentation_is_a_shock():
    """docs/diagnosis.md begins with this spike, which once was called chance, with advice that made it worse."""
    spike = Spike(46, 2.06, 1.61, 0.05, 0.2, 0.45, -0.1, 1.0, 0.3, 344)  # not certain, over other draws of validation images
    probes = [
        STABLE,
        replace(STATISTICS, fraction=0.78, low=0.7, high=0.86, facts={"now": 1.71, "before": 1.61}),
        replace(WORSE, fraction=-0.31, low=-0.4, high=-0.2, facts={**WORSE.facts, "now": 2.20, "before": 1.61}),
        replace(HIGHER, fraction=1.44, low=1.3, high=1.5, facts={**HIGHER.facts, "now": 1.41, "before": 1.61}),
    ]
    training = replace(QUIET, train_rise=0.36, train_loss=0.88, validation_rise=0.45)
    verdict = attribute(case(probes, spike, training))[0]
    assert verdict.name == "batchnorm_shock"
    assert verdict.settings == ("model.momentum=0.999", "model.statistics=precise")
    assert "2.060" in verdict.evidence
    assert "1.410" in verdict.evidence


@pytest.mark.parametrize("cause", causes.NAMES)
def test_a_stored_case_is_judged_as_before(cause):
    """A benchmark that judges its recorded cases again would measure other cases."""
    import json

    one = replace(WINS[cause], predicted={3: ("cat", "dog", 0.9)}, keys=["a", "b"] * 150)
    assert attribute(case_from(json.loads(json.dumps(one.as_dict())))) == attribute(one)
