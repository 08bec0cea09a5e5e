"""What is wrong with the loss as a whole."""

import json
from dataclasses import replace

import pytest

from spikewise import standing
from spikewise.curve import Parts
from spikewise.looks import Look
from spikewise.records import Hyperparameters
from spikewise.standing import Matched, Tried, Unseen, standing_from

GUESS = 0.693
NOW = Hyperparameters(learning_rate=1e-4, batch_size=32, steps=50, momentum=0.99)
HEALTHY = Parts(6, 0.5, 0.01, 0.01, 0.08, 0.4, (0.004, 0.004, 0.02, 0.02), 0.45)
LAGS = Parts(6, 1.5, 1.0, 0.0, 0.1, 0.4, (0.05, 0.01, 0.05, 0.02), 0.45)
TRIED = Tried(1.5, 0.5, {0.9: 0.45, 0.999: 2.0})
UNSEEN = Unseen(44, 0.6, 1.4, 0.05)
MATCHED = Matched(Look("brightness", None, 120.0, 90.0, 0.8), own=1.0, changed=0.6, error=0.01)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ([], set()),
        ([HEALTHY, HEALTHY], set()),
        ([LAGS], {"statistics"}),  # more than half of a loss above guessing
        ([replace(LAGS, loss=0.6, statistics=0.2)], set()),  # once may be an accident
        ([replace(LAGS, loss=0.6, statistics=0.2)] * 2, {"statistics"}),
        ([replace(LAGS, loss=0.6, statistics=0.2, errors=(0.1, 0, 0, 0))] * 2, set()),  # not certain
        ([HEALTHY, replace(LAGS, loss=0.6, statistics=0.2)], set()),
        ([replace(HEALTHY, wandering=0.2)] * 2, {"wandering"}),
        ([replace(HEALTHY, loss=1.0, generalization=0.7)] * 2, {"generalization"}),
        ([replace(HEALTHY, fit=0.68, loss=0.7)] * 2, {"fit"}),
        ([replace(HEALTHY, fit=0.68, loss=0.7)], set()),  # although the batches of the epoch were learned
        ([replace(HEALTHY, fit=0.68, loss=0.7, training=0.69)], {"fit"}),
        ([replace(HEALTHY, fit=0.68, loss=0.7, epoch=2)] * 2, set()),  # too early
        ([replace(LAGS, loss=float("nan"))] * 2, set()),
        (
            [replace(HEALTHY, loss=0.8, generalization=0.35, fit=0.45)] * 2,
            {"generalization"},
        ),  # less than half of it, but above guessing
        ([replace(HEALTHY, loss=0.8, generalization=0.35, fit=0.45), HEALTHY], set()),
        ([replace(HEALTHY, loss=0.8, generalization=0.12, fit=0.66, epoch=2)] * 2, set()),  # nothing is learned yet
    ],
)
def test_a_part_that_stays_high_is_found(measured, expected):
    """A run whose whole curve is wrong would end with "No spike"; or a healthy one would be blamed."""
    assert standing.find(measured, GUESS) == expected


def test_a_cause_is_over_only_well_below_its_limits():
    """A part that hovers about its limit would be called over where the next line says how large it is."""
    lower = replace(LAGS, loss=0.6, statistics=0.12)  # a fifth of it, and not certain
    assert standing.find([LAGS, lower], GUESS, {"statistics"}) == {"statistics"}
    assert standing.find([LAGS, lower], GUESS) == set()
    assert standing.find([LAGS, replace(lower, statistics=0.05)], GUESS, {"statistics"}) == set()


def test_validation_images_unlike_unseen_training_images_are_found():
    """Other preparation of the validation images looks like overfitting from the second epoch on."""
    assert standing.differs(UNSEEN)
    assert not standing.differs(replace(UNSEEN, validation=0.7))  # within the error
    assert not standing.differs(replace(UNSEEN, validation=0.4))
    assert not standing.differs(replace(UNSEEN, error=0.5))
    assert standing.differs(replace(UNSEEN, error=0.5, ranks=9.0))  # a few huge losses, but nearly all are higher


def test_validation_images_that_look_otherwise_are_named_if_that_costs_loss():
    """Sources of their own, or augmented training images, make sets differ, which is no mistake; a scaling that one lacks is."""
    assert standing.costs(MATCHED)
    assert not standing.costs(replace(MATCHED, changed=0.95))
    assert not standing.costs(replace(MATCHED, error=0.2))
    assert not standing.costs(replace(MATCHED, changed=0.85))
    assert standing.costs(replace(MATCHED, changed=0.85), active=True)
    finding, *_ = standing.say("appearance", LAGS, NOW, GUESS, TRIED, None, MATCHED)
    assert finding == (
        "Their brightness is 90 on average, that of training images 120; with mean and deviation of those, their loss is 0.600 "
        "instead of 1.000."
    )


@pytest.mark.parametrize("name", standing.TITLES)
def test_each_cause_has_evidence_and_a_remedy(name):
    """A sentence that cannot be built would end the diagnosis of the epoch."""
    finding, evidence, remedy, settings = standing.say(name, LAGS, NOW, GUESS, TRIED, UNSEEN, MATCHED)
    assert finding[0].isupper()
    assert finding.endswith(".")
    assert evidence[0].isupper()
    assert evidence.endswith(".")
    assert remedy[0].islower()
    assert remedy.endswith(".")
    assert "nan" not in evidence + remedy + " ".join(settings)
    unknown = standing.say(name, LAGS, Hyperparameters(), float("inf"), Tried(1.5, 0.5), UNSEEN, MATCHED)
    assert not {text for text in (*unknown[:3], *unknown[3]) if " nan" in text or " inf " in text}


@pytest.mark.parametrize("name", ["wandering", "generalization"])
def test_nothing_is_advised_that_the_run_does_already(name):
    """A user would look for a mistake in settings that are right."""
    settings = {"optimizer.ema": 0.99, "training.keep": "best", "training.early_stopping": 20, "augmentation.shift": 8}
    said = standing.say(name, LAGS, replace(NOW, settings=settings), GUESS, TRIED, UNSEEN)
    assert (said.remedy, said.settings) == {
        "wandering": ("halve the learning rate to 5e-05.", ("optimizer.learning_rate=5e-05",)),
        "generalization": ("add training images.", ()),
    }[name]


def test_the_setting_that_measured_best_comes_first():
    """The user tries the first one; a setting that measured worse must not be offered."""
    _, evidence, remedy, settings = standing.say("statistics", LAGS, NOW, GUESS, TRIED, None)
    assert settings == ("model.momentum=0.9", "model.statistics=precise")
    assert remedy == "set BatchNormalization's momentum to 0.9 (now 0.99)."
    assert "1.500 as it is, 0.450 with momentum 0.9, 2.000 with momentum 0.999, 0.500 with statistics estimated anew" in evidence
    assert standing.say("statistics", LAGS, NOW, GUESS, Tried(1.5, 1.6), None).settings == ()


def test_a_standing_cause_is_new_once_and_ends():
    """The log would repeat it after every epoch, or the report would keep what is over."""

    def say(name):
        return standing.say(name, LAGS, NOW, GUESS, TRIED, UNSEEN)

    known, new = standing.update([], {"statistics", "preparation"}, 1, say)
    assert [one.name for one in new] == ["preparation", "statistics"]
    known, new = standing.update(known, {"statistics"}, 4, say)
    assert not new
    assert [(one.name, one.since, one.epoch, one.over) for one in known] == [
        ("preparation", 1, 1, False),
        ("statistics", 1, 4, False),
    ]
    known, new = standing.update(known, set(), 7, say)
    assert [(one.name, one.epoch, one.over) for one in known] == [("preparation", 1, False), ("statistics", 4, True)]
    assert [standing_from(json.loads(json.dumps(one.as_dict()))) for one in known] == known
    known, new = standing.update(known, {"statistics"}, 30, say)  # returns, and is said again
    assert [(one.name, one.since, one.epoch, one.over) for one in new] == [("statistics", 30, 30, False)]
    assert [(one.name, one.since, one.epoch) for one in known] == [("preparation", 1, 1), ("statistics", 30, 30)]
    known, new = standing.update(known, {"statistics"}, 33, say)
    assert [(one.name, one.since, one.epoch) for one in known] == [("preparation", 1, 1), ("statistics", 30, 33)]
    assert not new
