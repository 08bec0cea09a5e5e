"""Causes: which one wins, when none does, and what a user reads about it."""

from dataclasses import replace

import numpy as np
import pytest

from spikewise import causes
from spikewise.causes import attribute
from spikewise.probes import TITLES
from spikewise.records import Case, Event, Hyperparameters, Probe
from tests.spikewise.cases import (
    AGAIN,
    BATCH,
    CHANCE,
    CHANGED,
    COOLED,
    EVENT,
    FEW,
    FLOAT32,
    HIGHER,
    LINE,
    LONG,
    MEAN,
    ONLY_VALIDATION,
    QUIET,
    RATE,
    SHIFT,
    SPIKE,
    STABLE,
    STATISTICS,
    THEN,
    WINS,
    WORSE,
    case,
    probe,
)


@pytest.mark.parametrize("cause", causes.NAMES)
def test_each_cause_is_named_with_one_sentence_and_one_remedy(cause):
    """A cause that can never win explains nothing, and a sentence that cannot be built would crash the diagnosis."""
    verdict = attribute(WINS[cause])[0]
    assert verdict.name == cause
    assert verdict.evidence.endswith(".")
    assert verdict.evidence[0].isupper()
    assert verdict.remedy.endswith(".")
    assert verdict.remedy[0].islower()
    if verdict.short_remedy is not None:
        assert verdict.remedy.startswith(verdict.short_remedy)
    assert not {"nan", "inf", "None"} & {word.strip(".,:;()%") for word in f"{verdict.evidence} {verdict.remedy}".split()}


def test_each_cause_has_its_own_module_and_one_title():
    """Otherwise a contributor who adds a cause would have to search several places, and a report call it by two names."""
    for kind in causes.PRECEDENCE:
        assert getattr(causes, kind.name).CAUSE.name == kind.name
        assert kind.title == causes.kind_of(kind.name).title
        assert kind.harms_training == causes.kind_of(kind.name).harms_training
    assert causes.kind_of("of another version") is None


def test_the_last_cause_always_claims_the_case():
    """Otherwise a spike without any evidence would have no verdict."""
    assert causes.PRECEDENCE[-1].rule(Case(SPIKE)).decides
    assert [cause.name for cause in attribute(Case(SPIKE))] == ["unexplained"]


@pytest.mark.parametrize("other", ["batch_size", "optimizer_reset", "world_size"])
def test_a_raised_learning_rate_is_not_hidden_by_another_change(other):
    """A user who compiles again with a higher rate would be told to go back to the batch size."""
    events = (Event(other, SPIKE.epoch, RATE.step, 32, 64), RATE)
    found = case([STABLE, EVENT], training=replace(LONG, length_after=(4.0, 4.0), jumps=(1.0, 1.0)), events=events)
    assert (attribute(found)[0].name, attribute(found)[0].event) == ("run_event", "learning_rate")


def test_weights_that_oscillate_are_not_said_not_to():
    """A sentence that its own number refutes makes a reader doubt all others."""
    oscillates = case([STABLE, BATCH, MEAN], training=replace(QUIET, straightness=0.3))
    noise = next(cause for cause in attribute(oscillates) if cause.name == "gradient_noise")
    assert "did not oscillate" not in noise.evidence


ORDER = [
    ("nondeterministic_evaluation", [AGAIN]),
    ("precision", [FLOAT32]),
    ("few_examples", [FEW]),
    ("distribution_shift", [THEN]),
    ("run_event", [EVENT]),
    ("training_data_changed", [CHANGED]),
    ("bad_batch", [BATCH]),
    ("variance_shift", [SHIFT]),
    ("overshoot", [LINE]),
    ("gradient_noise", [MEAN]),
    ("batchnorm_statistics", [replace(STATISTICS, fraction=0.55, low=0.5, high=0.6)]),
    ("overconfidence", [COOLED]),
]


@pytest.mark.parametrize("number", range(len(ORDER)))
def test_what_changed_goes_before_the_mechanism(number):
    """Steps ten times as long also make statistics lag; blaming the statistics would mislead the user."""
    found = [one for _, probes in ORDER[number:] for one in probes]
    probes = found if AGAIN in found else [STABLE, *found]
    ranked = attribute(case(probes, training=replace(LONG, gradient=2.5, train_rise=0.01), events=(RATE,)))
    assert ranked[0].name == ORDER[number][0]
    assert len({cause.name for cause in ranked}) == len(ranked)
    assert [cause.fraction for cause in ranked[1:]] == sorted((cause.fraction for cause in ranked[1:]), reverse=True)


@pytest.mark.parametrize(("alone", "verdict"), [(0.9, "batchnorm_statistics"), (0.55, "gradient_noise")])
def test_weights_are_not_blamed_for_what_other_statistics_remove_alone(alone, verdict):
    """Averaged weights have statistics estimated anew. Where those suffice, a user would slow training down in vain."""
    noisy = replace(QUIET, gradient=2.5)
    statistics = replace(STATISTICS, fraction=alone, low=alone - 0.05, high=alone + 0.05)
    ranked = attribute(case([STABLE, MEAN, statistics], training=noisy))
    assert ranked[0].name == verdict
    astray = attribute(case([STABLE, MEAN, STATISTICS], training=replace(noisy, astray=5.0)))
    assert astray[0].name == "gradient_noise"  # training suffered too


def test_few_groups_are_no_excuse():
    """Otherwise every spike on images from five photographs would be chance, and lagging statistics never be named."""
    assert attribute(case([STABLE, STATISTICS], spike=CHANCE, training=ONLY_VALIDATION))[0].name == "sampling_noise"
    few = replace(CHANCE, groups=5, group="rocket", group_fraction=0.8)
    ranked = attribute(case([STABLE, STATISTICS], spike=few, training=ONLY_VALIDATION))
    assert [cause.name for cause in ranked][:2] == ["batchnorm_statistics", "sampling_noise"]
    assert attribute(case([STABLE], spike=few, training=ONLY_VALIDATION))[0].name == "sampling_noise"
    assert "80% of it comes from the images of rocket" in ranked[1].evidence
    assert ranked[1].remedy == "use at least 20 groups of validation images: with only 5, a single group can move the mean."


def test_a_step_that_was_far_too_long_rules_out_chance():
    """Otherwise a small rise after a step 300 times too long would be called chance, and the next one would break the network."""
    long = replace(LONG, train_rise=0.01)
    assert attribute(case([STABLE, LINE], spike=CHANCE, training=long))[0].name == "sampling_noise"
    assert attribute(case([STABLE, LINE], spike=CHANCE, training=replace(long, length=300.0)))[0].name == "overshoot"


RESTART = Event("restart", 9, 10)
AFTER = probe("before_event", 0.97, **RESTART.as_dict())


def test_a_restart_is_blamed_only_for_what_it_lost():
    """Otherwise every lag after a restart would be blamed on it, or statistics that it lost be called a lag."""
    lost = replace(QUIET, length_after=(1.0,), jumps=(7.0,))
    verdict = attribute(case([STABLE, AFTER, STATISTICS], training=lost, events=(RESTART,)))[0]
    assert verdict.name == "run_event"
    assert "moving statistics moved 7 times as far as anywhere else" in verdict.evidence
    kept = replace(lost, jumps=(1.2,))
    assert attribute(case([STABLE, AFTER, STATISTICS], training=kept, events=(RESTART,)))[0].name == "batchnorm_statistics"


def test_a_change_made_at_a_restart_goes_before_the_restart():
    """Otherwise a user who resumes with ten times the learning rate would search the checkpoint for what it lost."""
    events = (RESTART, RATE)
    both = replace(LONG, length_after=(4.0, 4.0), jumps=(1.0, 1.0))
    verdict = attribute(case([STABLE, AFTER], training=both, events=events))[0]
    assert (verdict.name, verdict.event) == ("run_event", "learning_rate")
    assert "The learning rate was changed from 0.0001 to 0.001" in verdict.evidence
    lower = (RESTART, replace(RATE, after=1e-5))
    assert attribute(case([STABLE, AFTER], training=both, events=lower))[0].event == "restart"


def test_a_restart_that_lost_statistics_goes_before_a_change_an_epoch_ago():
    """Otherwise a user would lower a learning rate that is fine, and keep a checkpoint that lacks its statistics."""
    events = (RESTART, replace(RATE, epoch=RESTART.epoch - 1))
    lost = replace(LONG, length_after=(4.0, 4.0), jumps=(7.0, 1.0))
    assert attribute(case([STABLE, AFTER], training=lost, events=events))[0].event == "restart"
    kept = replace(lost, jumps=(1.2, 1.0))
    assert attribute(case([STABLE, AFTER], training=kept, events=events))[0].event == "learning_rate"


def test_harm_to_the_weights_goes_before_chance_and_before_the_images_it_hurts():
    """Otherwise overwritten weights would be called chance on few images, and the images that long steps hurt first be blamed."""
    assert attribute(case([STABLE], spike=CHANCE, training=replace(ONLY_VALIDATION, foreign=(3, 6, 0.5))))[0].name == "run_event"
    assert attribute(case([STABLE, FEW, LINE], training=LONG))[0].name == "overshoot"
    assert attribute(case([STABLE, FEW, THEN, LINE], training=replace(LONG, train_rise=0.01)))[0].name == "few_examples"


def test_weights_that_went_astray_are_not_called_a_lag():
    """Otherwise the remedy for a wrong gradient would be another momentum."""
    ranked = attribute(case([STABLE, STATISTICS], training=replace(QUIET, astray=8.0)))
    assert [cause.name for cause in ranked] == ["unexplained", "batchnorm_statistics"]


@pytest.mark.parametrize("one", [THEN, BATCH, SHIFT, LINE, STATISTICS])
def test_a_condition_that_removes_less_than_half_is_never_the_verdict(one):
    """Otherwise a guess would look like an explanation."""
    weak = replace(one, fraction=0.49, low=0.45, high=0.53)
    ranked = attribute(case([STABLE, weak], training=LONG))
    assert ranked[0].name == "unexplained"
    assert ranked[1].fraction == 0.49


@pytest.mark.parametrize("one", [FEW, THEN, BATCH, SHIFT, LINE, STATISTICS])
def test_a_probe_as_noisy_as_the_rise_decides_nothing(one):
    """Otherwise a lucky draw of batches would name the cause."""
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
    """Otherwise a rise over two epochs, shared by training images, would be blamed on the validation images."""
    training = replace(QUIET, train_rise=train_rise, train_loss=1.0, validation_rise=validation_rise)
    assert attribute(case([STABLE], training=training))[0].name == verdict


PATH = Probe("path", 0.95, 0.95, 0.95, passes=3, facts={"first": 0, "last": 10})


@pytest.mark.parametrize(
    ("one", "training", "text"),
    [
        (replace(STATISTICS, fraction=0.4), QUIET, "half of the rise (most, 40%: BatchNorm statistics re-estimated)."),
        (
            replace(STATISTICS, low=-0.1),
            QUIET,
            "one (BatchNorm statistics re-estimated) removes 90% of it, but its interval includes 0.",
        ),
        (STATISTICS, replace(QUIET, astray=8.0), "but the training loss of the last batches was unusually high"),
        (LINE, QUIET, "but no step was twice as long as its gradient and the schedule of"),
        (MEAN, QUIET, "but gradients were not unusual"),
        (PATH, QUIET, "accounts for half of the rise (most, 0%: evaluated a second time)."),
        (EVENT, QUIET, "but the event left no trace in the steps after it"),
        (FEW, QUIET, "but training images rose as well"),
    ],
)
def test_an_unexplained_spike_does_not_contradict_itself(one, training, text):
    """A report that says \"nothing accounts for half of it (most, 95%)\" is not trusted in anything else."""
    events = (RATE,) if one is EVENT else ()
    training = replace(training, length_after=(1.0,) * len(events), jumps=(1.0,) * len(events))
    lower = [replace(event, after=event.before) for event in events]
    verdict, *others = attribute(case([STABLE, PATH, one], training=training, events=lower))
    assert verdict.name == "unexplained"
    assert text in verdict.evidence
    for other in others:
        assert other.fraction < 0.5 or "it is not the verdict, because " in other.evidence


@pytest.mark.parametrize(
    ("rise", "error", "low", "said", "needed"),
    [(0.05, 0.02, 0.01, "the rise is 2.5 standard errors", "530"), (0.4, 0.3, -0.2, "between -0.200 and", "1,840")],
)
def test_the_number_of_images_asked_for_would_suffice(rise, error, low, said, needed):
    """Advice to use fewer images than there are, for a rise whose interval lies above 0, would be useless."""
    spike = replace(SPIKE, rise=rise, error=error, low=low)
    verdict = attribute(case([STABLE], spike=spike, training=replace(QUIET, train_rise=0.0)))[0]
    assert verdict.name == "sampling_noise"
    assert said in verdict.evidence
    assert verdict.remedy == (
        f"use about {needed} validation images instead of 300: then a rise of {rise:.3f} would be more than chance."
    )


def test_a_loss_that_is_not_finite_needs_no_probe():
    """Otherwise a run that blew up would get no diagnosis at all."""
    inf = np.inf
    lost = replace(SPIKE, loss=np.nan, rise=inf, low=inf, high=inf, error=inf, outcome="divergence")
    (verdict,) = attribute(Case(lost))
    assert verdict.name == "divergence"
    assert "is not finite" in verdict.evidence


def test_the_momentum_tells_lag_from_shock():
    """Their remedies are opposite: the advice to lower the momentum has made a shock worse."""
    lag, shock, unknown = (attribute(WINS[name])[0] for name in ("batchnorm_lag", "batchnorm_shock", "batchnorm_statistics"))
    assert lag.settings == ("model.momentum=0.9", "model.statistics=precise")
    assert shock.settings == ("model.momentum=0.999", "model.statistics=precise")
    assert unknown.settings == ("model.statistics=precise",)
    assert "from 0.500 to 0.460 with a momentum of 0.999 (100% of the rise is gone)" in shock.evidence
    assert "Batch 37 of 50 alone makes up more than half of the variance of 5 units." in shock.evidence
    for channels, which in (
        ({"bn_2": [3, 8, 9, 11, 30]}, "5 units (channels 3, 8, 9, 11, 30 of bn_2)"),
        ({"bn_1": [0], "bn_2": [3]}, "5 units (channels 0 of bn_1; 3 of bn_2; ...)"),
    ):
        named = replace(HIGHER, facts={**HIGHER.facts, "movers": [{"step": 36, "units": 5, "channels": channels}]})
        assert f"of the variance of {which}." in attribute(case([STABLE, STATISTICS, WORSE, named]))[0].evidence
    assert "Batch" not in lag.evidence


def test_the_setting_that_measured_best_is_named_first():
    """The user tries the first one."""
    precise = probe("statistics", 1.2, now=0.42, before=0.5)
    verdict = attribute(case([STABLE, precise, WORSE, HIGHER]))[0]
    assert verdict.settings == ("model.statistics=precise", "model.momentum=0.999")


def test_more_dropout_is_no_shock():
    """A higher momentum hides a changed variance as well, and the user would not look at the dropout."""
    with_dropout = probe("statistics", 0.1, now=0.86, before=0.5)
    assert attribute(case([STABLE, with_dropout, SHIFT, WORSE, HIGHER]))[0].name == "variance_shift"
    assert attribute(case([STABLE, with_dropout, WORSE, HIGHER]))[0].name == "batchnorm_shock"


def test_every_probe_that_a_cause_relies_on_has_a_title():
    """Otherwise the report would show an internal name."""
    used = {one.name for each in WINS.values() for one in each.probes.values()} | {PATH.name}
    assert used <= set(TITLES)


SETTINGS = {
    "divergence": (
        "restart from a checkpoint before epoch 9 with a learning rate of 0.0001.",
        ("optimizer.learning_rate=0.0001",),
    ),
    "nondeterministic_evaluation": (None, ()),
    "few_examples": (None, ()),
    "precision": (None, ("model.precision=float32",)),
    "training_data_changed": (None, ()),
    "stale_optimizer_state": (
        "restore the optimizer together with the weights, lower Adam's beta_2 from 0.999 to 0.99, or warm up over 3 epochs after "
        "each start.",
        ("optimizer.arguments.beta_2=0.99", "optimizer.warmup_epochs=3"),
    ),
    "overconfidence": (
        "smooth the labels by 0.1, or divide the logits by 2.10 when probabilities are needed; the predicted classes stay the "
        "same.",
        ("training.label_smoothing=0.1",),
    ),
    "sampling_noise": (
        "use about 1,840 validation images instead of 300: then a rise of 0.400 would be more than chance.",
        (),  # 1,840 images are more than there are
    ),
    "run_event": (
        "go back to 0.0001, or start again and warm up to 0.001 over 3 epochs.",
        ("optimizer.learning_rate=0.0001", "optimizer.learning_rate=0.001 optimizer.warmup_epochs=3"),
    ),
    "bad_batch": ("look at the images and labels of batch 31 of epoch 9.", ()),
    "batchnorm_shock": (
        "set BatchNormalization's momentum to 0.999, or re-estimate BatchNormalization's statistics on training batches before "
        "evaluating (at 0.99 the statistics average over about 100 batches, too few for units that fire rarely).",
        ("model.momentum=0.999", "model.statistics=precise"),
    ),
    "batchnorm_lag": (
        "set BatchNormalization's momentum to 0.9, or re-estimate BatchNormalization's statistics on training batches before "
        "evaluating (at 0.99 the statistics need 69 steps to follow half of a change; an epoch has 50).",
        ("model.momentum=0.9", "model.statistics=precise"),
    ),
    "batchnorm_statistics": (
        "re-estimate BatchNormalization's statistics on training batches before evaluating.",
        ("model.statistics=precise",),
    ),
    "variance_shift": (
        "re-estimate BatchNormalization's statistics without dropout before evaluating, or lower dropout to 0.25: dropout changes "
        "the variance that the statistics measure.",
        ("model.statistics=precise", "model.dropout=0.25"),
    ),
    "overshoot": (
        "lower the learning rate to 0.00025 and warm it up over 3 epochs, or clip gradients at a norm of 2.3 (95 % of the earlier "
        "ones stayed below).",
        ("optimizer.learning_rate=0.00025 optimizer.warmup_epochs=3", "optimizer.clip_norm=2.3"),
    ),
    "gradient_noise": (
        "average the weights with a decay of 0.98, use a batch of 128 instead of 32 images, or halve the learning rate to 0.0005.",
        ("optimizer.ema=0.98", "training.batch_size=128", "optimizer.learning_rate=0.0005"),
    ),
    "distribution_shift": (None, ()),
    "overfitting": (
        "keep the best epoch (so far 3) and stop 10 epochs after it, or shift the training images at random by up to 4 pixels; "
        "more training images, which no setting adds, help most.",
        ("training.keep=best training.early_stopping=10", "augmentation.shift=4"),
    ),
    "unexplained": (None, ()),
}
"""Remedy, if it contains numbers, and settings of the verdict in each case of WINS."""


@pytest.mark.parametrize("cause", causes.NAMES)
def test_a_remedy_and_its_settings_say_the_same(cause):
    """A user who copies the settings would try something else than what the report explains."""
    verdict, (remedy, settings) = attribute(WINS[cause])[0], SETTINGS[cause]
    assert remedy in (None, verdict.remedy)
    assert verdict.settings == settings


@pytest.mark.parametrize(
    ("event", "remedy", "settings"),
    [
        (Event("restart", 9, 10), "restore weights", ()),
        (Event("optimizer_reset", 9, 10), "restore it together", ()),
        (Event("world_size", 9, 10, 2, 4), "synchronize BatchNorm", ("model.batch_normalization=synchronized",)),
        (Event("batch_size", 9, 10, 32, 256), "go back to a batch of 32 images.", ("training.batch_size=32",)),
        (Event("batch_size", 9, 10), "undo the change.", ()),
        (Event("data", 9, 10), "compare the new data", ()),
        (Event("frozen_layers", 9, 10, 4, 12), "train the new ones at a learning rate ten times lower", ()),
        (Event("optimizer", 9, 10), "go back to the one before", ("optimizer.warmup_epochs=3",)),
        (Event("loss", 9, 0), "compare losses of the same function only", ()),
    ],
)
def test_each_event_has_its_remedy_and_settings(event, remedy, settings):
    """Advice to go back to a value that is not known, or to a setting of something else, would be followed."""
    before = probe("before_event", 0.97, **event.as_dict())
    verdict = attribute(case([STABLE, before], training=LONG, events=(event,)))[0]
    assert verdict.event == event.kind
    assert verdict.remedy.startswith(remedy)
    assert verdict.settings == settings


@pytest.mark.parametrize("cause", causes.NAMES)
def test_without_known_hyperparameters_nothing_is_invented(cause):
    """`explain` and a schedule object know no learning rate; "a learning rate of nan" would be all that a user remembers."""
    known = WINS[cause]
    verdict = attribute(
        replace(known, hyperparameters=Hyperparameters(), training=replace(known.training, ordinary_gradient=np.nan))
    )[0]
    assert "nan" not in f"{verdict.remedy} {verdict.settings}".replace("nance", "")
    assert not [line for line in verdict.settings if line.startswith(("optimizer.clip", "optimizer.ema", "model.d"))]


def test_validation_images_are_asked_for_as_a_fraction_where_there_are_enough():
    """The user would have to work out which fraction gives the number of images that the remedy asks for."""
    spike = replace(SPIKE, rise=0.05, error=0.02, low=0.01)
    verdict = attribute(case([STABLE], spike=spike, training=replace(QUIET, train_rise=0.0)))[0]
    assert verdict.remedy.startswith("use about 530 validation images instead of 300")
    assert verdict.settings == ("data.validation_fraction=0.36",)  # 0.2 * 530 / 300


def test_clipping_is_no_remedy_for_a_learning_rate_that_was_raised():
    """Adam makes steps of the same length from clipped gradients, so the next raise would do the same harm."""
    verdict = attribute(case([STABLE, LINE], training=replace(LONG, length=70.0, raised=70.0)))[0]
    assert verdict.name == "overshoot"
    assert "(step 1, where the learning rate had risen 70-fold at once)" in verdict.evidence
    assert verdict.remedy == "lower the learning rate to 0.0001 and warm it up over 3 epochs."
    assert verdict.settings == ("optimizer.learning_rate=0.0001 optimizer.warmup_epochs=3",)


def test_a_momentum_with_a_higher_loss_is_no_remedy():
    """Statistics that never fit the weights do not rise; the report would advise what measured worse."""
    for now in (0.95, 0.86):  # above the spike's loss, and so little below it that the loss is still lost
        slow = replace(HIGHER, facts={**HIGHER.facts, "now": now, "before": 1.0})
        verdict = attribute(case([STABLE, STATISTICS, WORSE, slow]))[0]
        assert (verdict.name, verdict.settings) == ("batchnorm_statistics", ("model.statistics=precise",))


def test_losses_of_two_functions_are_not_compared():
    """A few images would be blamed for a rise that the new loss function makes."""
    event = Event("loss", 9, 0, detail="mse instead of mae")
    found = attribute(case([FEW, STATISTICS, STABLE], events=(event,)))
    assert [(cause.name, cause.event) for cause in found] == [("run_event", "loss")]


@pytest.mark.parametrize(("others", "verdict"), [([], "run_event"), ([BATCH], "bad_batch")])
def test_unfrozen_layers_whose_statistics_began_to_move_are_named(others, verdict):
    """Fine-tuning in two phases would end with "lower the momentum", although the layers were unfrozen an epoch before."""
    event = Event("frozen_layers", 8, 0, 2, 10, "8 more variables train, BatchNormalization among them")
    before = probe("before_event", 1.0, **event.as_dict())
    training = replace(QUIET, length_after=(1.0,), jumps=(0.0,))
    first = attribute(case([STATISTICS, STABLE, before, *others], training=training, events=(event,)))[0]
    assert first.name == verdict
    if not others:
        assert "8 more variables train, BatchNormalization among them" in first.evidence
    still = attribute(case([STABLE, before], training=training, events=(event,)))[0]
    assert still.name == "unexplained"


@pytest.mark.parametrize(("others", "verdict"), [([], "run_event"), ([BATCH], "bad_batch")])
def test_a_lost_optimizer_state_is_named_in_the_first_epoch_that_was_watched(others, verdict):
    """Who resumes without the state of the callback would read "unexplained"; there are no earlier steps to compare with."""
    event = Event("optimizer_reset", 9, 0, detail="the optimizer has not made a step yet")
    before = probe("before_event", 1.0, **event.as_dict())
    training = replace(QUIET, length_after=(np.nan,), jumps=(0.0,))
    first = attribute(case([STABLE, before, *others], training=training, events=(event,)))[0]
    assert first.name == verdict
    assert "nan" not in first.evidence
