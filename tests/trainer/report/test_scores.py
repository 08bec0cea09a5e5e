"""Scores equal those of scikit-learn and SciPy, and intervals cover what they claim."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from trainer.report import scores


def _answers(images: int = 500, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] and scores [N] with many ties."""
    random = np.random.default_rng(seed)
    labels = random.random(images) < 0.4
    return labels, np.round(np.clip(random.normal(0.4 + 0.25 * labels, 0.2), 0, 1), 2)


def _bounds(interval: scores.Interval) -> np.ndarray:
    """Low, value, high [3]; NaN where unknown."""
    return np.array([interval.low, interval.value, interval.high], float)


def test_roc_is_that_of_scikit_learn() -> None:
    """A wrong curve would show a wrong trade-off between found fakes and false alarms."""
    labels, values = _answers()
    for ours, theirs in zip(scores.roc(labels, values), metrics.roc_curve(labels, values, drop_intermediate=False), strict=True):
        np.testing.assert_allclose(ours, theirs)


def test_auc_is_that_of_scikit_learn_and_lies_in_its_interval() -> None:
    """A headline number of the report would be wrong, above all with tied scores."""
    labels, values = _answers()
    auc = scores.auc(labels, values, np.arange(len(labels)))
    assert auc.value == pytest.approx(metrics.roc_auc_score(labels, values))
    assert (np.diff(_bounds(auc)) > 0).all()
    assert auc.method == "bootstrap over 500 images"


def test_auc_interval_agrees_with_resampling_by_scikit_learn() -> None:
    """The interval of the AUC would be too narrow or too wide."""
    labels, values = _answers(200)
    random = np.random.default_rng(1)
    plain = [metrics.roc_auc_score(labels[draw], values[draw]) for draw in random.integers(0, 200, (1000, 200))]
    auc = scores.auc(labels, values, np.arange(200))
    np.testing.assert_allclose(_bounds(auc)[[0, 2]], np.quantile(plain, [0.025, 0.975]), atol=0.01)


@pytest.mark.parametrize("side", [True, False])
def test_auc_of_one_side_alone_is_unknown(side: bool) -> None:
    """A class without validation images would show a wrong number, or crash the report."""
    auc = scores.auc(np.full(9, side), np.linspace(0, 1, 9), np.arange(9))
    assert auc.value is None
    assert "no value" in auc.method


def test_perfect_auc_claims_no_interval() -> None:
    """An interval of 1.000 - 1.000 would claim a certainty that no validation set can give."""
    auc = scores.auc(np.arange(20) > 9, np.arange(20.0), np.arange(20))
    assert (auc.value, auc.low) == (1.0, None)


def test_confusion_is_that_of_scikit_learn() -> None:
    """With rows and columns swapped, misses would be shown as false alarms."""
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 3, 99), random.integers(0, 3, 99)
    np.testing.assert_array_equal(scores.confusion(labels, predictions, 3), metrics.confusion_matrix(labels, predictions))


def test_reliability_diagram_is_that_of_scikit_learn() -> None:
    """A wrong diagram would make a user trust the probabilities, or distrust them, for no reason."""
    right, confidence = _answers(2000)
    error, rows = scores.calibration(confidence, right)
    accuracy, mean = calibration_curve(right, confidence, n_bins=20)
    np.testing.assert_allclose([row["accuracy"] for row in rows], accuracy)
    np.testing.assert_allclose([row["confidence"] for row in rows], mean)
    weights = np.array([row["images"] for row in rows]) / 2000
    assert error == pytest.approx(float(weights @ np.abs(accuracy - mean)))


def test_calibration_of_nothing_is_unknown() -> None:
    """A run without finite probabilities would have no report."""
    assert scores.calibration(np.empty(0), np.empty(0, bool)) == (None, [])


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (7, 10), (10, 10), (838, 1000)])
def test_wilson_is_that_of_scipy(hits: int, trials: int) -> None:
    """The interval of the accuracy would be wrong."""
    theirs = binomtest(hits, trials).proportion_ci(method="wilson")
    assert scores.wilson(hits, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_grouped_images_make_wider_intervals() -> None:
    """Ten crops of one photograph would count as ten photographs, and chance would look like a finding."""
    random = np.random.default_rng(5)
    hits = np.repeat(random.random(60) < 0.8, 10)
    alone = scores.fraction(hits, np.arange(600))
    grouped = scores.fraction(hits, np.repeat(np.arange(60), 10))
    assert np.ptp(_bounds(grouped)) > 2 * np.ptp(_bounds(alone))
    assert (alone.method, grouped.method) == ("Wilson over 600 images", "bootstrap over 60 groups")


def test_all_right_still_has_an_interval() -> None:
    """100 % on 20 images would claim 100 % on the next ones."""
    assert scores.fraction(np.ones(20, bool), np.arange(20)).low == pytest.approx(0.8389, abs=1e-4)
    grouped = scores.fraction(np.ones(200, bool), np.repeat(np.arange(20), 10))
    assert grouped.low == pytest.approx(0.8389, abs=1e-4)


def test_interval_of_a_mean_is_as_wide_as_theory_says_and_repeats() -> None:
    """The interval of the validation loss would be wrong, or change with every report."""
    values = np.random.default_rng(2).gamma(1, 0.5, 2000)
    one = scores.mean(values, np.arange(2000))
    assert one == scores.mean(values, np.arange(2000))
    half = scores.Z95 * values.std() / np.sqrt(2000)
    np.testing.assert_allclose(_bounds(one), values.mean() + np.array([-half, 0, half]), atol=0.1 * half)


def test_mean_says_how_many_losses_are_not_finite() -> None:
    """The report of a diverged run would show "nan" without a reason."""
    assert scores.mean(np.array([1.0, np.nan, np.inf]), np.arange(3)).method == "no interval: not finite for 2 of 3 images"


def test_one_group_alone_has_no_interval() -> None:
    """Images of one photograph alone would claim to say something about others."""
    one = scores.mean(np.array([1.0, 2.0]), np.zeros(2, int))
    assert (one.value, one.low) == (1.5, None)


def test_images_without_a_group_stand_for_themselves() -> None:
    """All keys that group_by does not match would become one huge group."""
    assert scores.clusters(["a", "", "a", "", "b"]).tolist() == [0, 1, 0, 2, 3]


def test_thinned_curve_keeps_both_ends_and_the_area() -> None:
    """The page would be heavy with 20,000 points, or show another curve."""
    random = np.random.default_rng(4)
    labels = random.random(20_000) < 0.5
    false, found, _ = scores.roc(labels, random.normal(labels, 1.0))
    chosen = scores.thin(false, found)
    assert len(chosen) <= 202
    assert (chosen[0], chosen[-1]) == (0, len(false) - 1)
    assert metrics.auc(false[chosen], found[chosen]) == pytest.approx(metrics.auc(false, found), abs=1e-3)
