"""False match and false non-match rates: hand-counted, against scikit-learn, and at the ties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from sdd_ray.core.error_rates import (
    counts_within,
    fmr,
    fnmr,
    is_false_match,
    is_false_non_match,
    threshold_at_fmr,
)


def test_rates_are_hand_counted():
    nonmated = np.array([0.1, 0.3, 0.3, 0.5])
    mated = np.array([0.2, 0.3, 0.3, 0.6, 0.9])
    assert fmr(nonmated, 0.3) == 1 / 4  # only 0.5 is above; the two 0.3 are not
    assert fnmr(mated, 0.3) == 1 / 5  # only 0.2 is below; the two 0.3 are not
    assert fmr(nonmated, 0.29) == 3 / 4
    assert fnmr(mated, 0.31) == 3 / 5


def test_a_tie_with_the_threshold_is_no_error_of_either_kind():
    tie = np.array([0.25])
    assert not is_false_match(tie, 0.25)[0]
    assert not is_false_non_match(tie, 0.25)[0]


def test_float32_similarities_are_not_rounded_onto_the_threshold():
    similarities = np.array([0.3], dtype=np.float32)  # 0.300000012 in binary
    assert fmr(similarities, 0.3) == 1.0
    assert fnmr(similarities, 0.3) == 0.0


def test_rates_equal_scikit_learns_roc():
    rng = np.random.default_rng(7)
    mated = np.round(rng.normal(0.5, 0.2, 400), 2)
    nonmated = np.round(rng.normal(0.1, 0.2, 900), 2)
    scores = np.concatenate([mated, nonmated])
    truth = np.repeat([1, 0], [mated.size, nonmated.size])
    # scikit-learn accepts score >= threshold: strictly above the next lower threshold. Halfway
    # between two observed scores nothing ties, and both conventions must give the same rates.
    false_match, true_match, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    observed = np.unique(scores)
    for index in range(2, thresholds.size):
        position = np.searchsorted(observed, thresholds[index])
        below = observed[position - 1] if position else observed[0] - 1
        halfway = (thresholds[index] + below) / 2
        assert fmr(nonmated, halfway) == pytest.approx(false_match[index], abs=1e-12)
        assert fnmr(mated, halfway) == pytest.approx(1 - true_match[index], abs=1e-12)


def test_nan_threshold_gives_nan_rates():
    similarities = np.array([0.1, 0.2])
    assert math.isnan(fmr(similarities, math.nan))
    assert math.isnan(fnmr(similarities, math.nan))


@pytest.mark.parametrize(
    ("fraction", "total", "count"),
    [
        (0.1, 30, 3),
        (0.29, 100, 29),
        (1e-3, 3000, 3),
        (0.07, 100, 7),
        (1e-4, 3000, 0),
        (0.95, 20, 19),
    ],
)
def test_counts_within_survive_binary_rounding(fraction, total, count):
    assert counts_within(np.array([fraction]), total).tolist() == [count]


@given(numerator=st.integers(0, 10**6), total=st.integers(1, 10**6))
def test_counts_within_are_exact_for_every_ratio(numerator, total):
    numerator = min(numerator, total)
    assert counts_within(np.array([numerator / total]), total).tolist() == [numerator]


def test_threshold_is_the_k_th_largest():
    # 10 similarities, FMR 0.3: 3 may be above, so the 4th largest is the threshold.
    point = threshold_at_fmr(np.arange(10) / 10, 0.3)
    assert (point.threshold, point.achieved_fmr, point.num_nonmated) == (0.6, 0.3, 10)
    # FMR 0.35 allows no fourth false match: 4 / 10 > 0.35.
    assert threshold_at_fmr(np.arange(10) / 10, 0.35).threshold == 0.6


def test_ties_lower_the_achieved_rate_and_never_raise_it():
    # 2 of 10 may be above; the 3rd largest is 0.5, with which the two largest but one tie.
    nonmated = np.array([0.9, 0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    point = threshold_at_fmr(nonmated, 0.2)
    assert (point.threshold, point.achieved_fmr) == (0.5, 0.1)


@given(
    values=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    asked=st.floats(1e-6, 0.999),
)
def test_achieved_rate_is_within_the_asked_one_and_the_threshold_is_the_lowest(values, asked):
    nonmated = np.array(values) / 12
    point = threshold_at_fmr(nonmated, asked)
    assert point.attainable == (1 / len(values) <= asked)
    if point.attainable:
        assert point.achieved_fmr == fmr(nonmated, point.threshold) <= asked
        lower = nonmated[nonmated < point.threshold]
        assert lower.size == 0 or fmr(nonmated, lower.max()) > asked
    else:
        assert math.isnan(point.threshold)
        assert math.isnan(point.achieved_fmr)


def test_too_few_comparisons_are_unattainable_and_not_a_rate_of_zero():
    point = threshold_at_fmr(np.linspace(0, 1, 999), 1e-3)
    assert not point.attainable
    assert math.isnan(fnmr(np.array([0.5]), point.threshold))
    assert threshold_at_fmr(np.linspace(0, 1, 1000), 1e-3).attainable


@pytest.mark.parametrize("asked", [0.0, 1.0, -0.1, math.nan])
def test_rates_outside_the_open_interval_are_refused(asked):
    with pytest.raises(ValueError, match=r"expected a false match rate in \(0, 1\), got"):
        threshold_at_fmr(np.array([0.1, 0.2]), asked)


def test_empty_nan_and_two_dimensional_similarities_are_refused():
    with pytest.raises(ValueError, match=r"at least one mated similarity .* got shape \(0,\)"):
        fnmr(np.array([]), 0.5)
    with pytest.raises(ValueError, match=r"nonmated .* got shape \(2, 2\)"):
        fmr(np.zeros((2, 2)), 0.5)
    with pytest.raises(ValueError, match="nonmated similarities without NaN, got 1 of 2"):
        threshold_at_fmr(np.array([0.1, np.nan]), 0.5)
