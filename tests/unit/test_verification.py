"""Accuracy over folds, equal error rate and area under the ROC against brute force and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold

from sdd_ray.core.verification import (
    area_under_roc,
    consecutive_folds,
    equal_error_rate,
    fold_accuracy,
)

INFINITE = float("inf")


def brute_force(similarities, mated, folds):
    """Try every threshold on the other folds, the highest first; yield accuracy and threshold."""
    for number in sorted(set(folds.tolist())):
        own = folds == number
        best, chosen = -1, None
        for threshold in [INFINITE, *sorted(set(similarities[~own].tolist()), reverse=True)]:
            right = sum((similarities[~own] >= threshold) == mated[~own])
            if right > best:
                best, chosen = right, threshold
        yield np.mean((similarities[own] >= chosen) == mated[own]), chosen


def drawn(seed, size=120, decimals=2):
    """Return similarities with ties, mated and nonmated ones overlapping, in mixed order."""
    rng = np.random.default_rng(seed)
    mated = rng.random(size) < 0.4
    similarities = np.round(rng.normal(np.where(mated, 0.4, 0.1), 0.2), decimals)
    return similarities, mated, rng.integers(0, 7, size)


@pytest.mark.parametrize("decimals", [0, 1, 2, 12])
@pytest.mark.parametrize("seed", range(5))
def test_accuracy_equals_brute_force_over_all_thresholds(seed, decimals):
    similarities, mated, folds = drawn(seed, decimals=decimals)
    found = fold_accuracy(similarities, mated, folds)
    accuracies, thresholds = zip(*brute_force(similarities, mated, folds), strict=True)
    assert found.accuracies.tolist() == list(accuracies)
    assert found.thresholds.tolist() == list(thresholds)


@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.booleans(), st.integers(-1, 2)), min_size=2, max_size=30
    ).filter(lambda rows: len({fold for *_, fold in rows}) > 1)
)
def test_accuracy_equals_brute_force_where_nearly_everything_ties(rows):
    values, mated, folds = (np.array(column) for column in zip(*rows, strict=True))
    similarities = values / 4
    found = fold_accuracy(similarities, mated, folds.astype(np.int64))
    accuracies, thresholds = zip(*brute_force(similarities, mated, folds), strict=True)
    assert found.accuracies.tolist() == list(accuracies)
    assert found.thresholds.tolist() == list(thresholds)


def test_accuracy_equals_scikit_learns_folds():
    similarities, mated, _ = drawn(9, size=203)
    found = fold_accuracy(similarities, mated, consecutive_folds(203, 10))
    for place, (others, own) in enumerate(KFold(10, shuffle=False).split(similarities)):
        tried = np.append(np.unique(similarities[others]), INFINITE)
        right = [np.sum((similarities[others] >= t) == mated[others]) for t in tried]
        threshold = tried[np.flatnonzero(right == np.max(right))[-1]]
        assert found.thresholds[place] == threshold
        decided = similarities[own] >= threshold
        assert found.accuracies[place] == np.mean(decided == mated[own])


def test_accuracy_is_hand_counted():
    # Fold 0 decides fold 1 and the other way round. From fold 1: 0.6 and 0.4 both get 3 of 4 right
    # (0.5 is nonmated), and the higher is taken; from fold 0: 0.4, below which nothing is mated.
    similarities = np.array([0.8, 0.4, 0.3, 0.1, 0.6, 0.5, 0.4, 0.2])
    mated = np.array([True, True, False, False, True, False, True, False])
    found = fold_accuracy(similarities, mated, np.repeat([0, 1], 4))
    assert found.thresholds.tolist() == [0.6, 0.4]
    assert found.accuracies.tolist() == [3 / 4, 3 / 4]


def test_a_similarity_at_the_threshold_matches():
    similarities, mated = np.array([0.5, 0.5, 0.1]), np.array([True, True, False])
    found = fold_accuracy(similarities, mated, np.array([0, 1, 1]))
    assert (found.thresholds[0], found.accuracies[0]) == (0.5, 1.0)


def test_similarities_that_only_float64_tells_apart():
    similarities = 0.5 + 1e-12 * np.array([1, 2, 3, 4, 1.5, 3.5])
    mated = np.array([False, False, True, True, False, True])
    found = fold_accuracy(similarities, mated, np.array([0, 0, 0, 0, 1, 1]))
    assert found.thresholds.tolist() == [similarities[5], similarities[2]]
    assert found.accuracies.tolist() == [3 / 4, 1.0]


def test_where_nothing_is_better_than_to_match_none():
    similarities, mated = np.array([0.9, 0.8, 0.7, 0.6]), np.array([False, True, False, False])
    found = fold_accuracy(similarities, mated, np.array([0, 1, 0, 1]))
    assert found.thresholds[0] == 0.8  # fold 1 alone is told apart
    assert found.thresholds[1] == INFINITE  # fold 0 holds no mated comparison
    assert found.accuracies.tolist() == [1 / 2, 1 / 2]


def test_accuracy_depends_on_no_order_and_no_scale():
    similarities, mated, folds = drawn(3)
    found = fold_accuracy(similarities, mated, folds)
    order = np.random.default_rng(0).permutation(len(mated))
    other = fold_accuracy(similarities[order] / 2, mated[order], 5 * folds[order] - 9)
    assert other.accuracies.tolist() == found.accuracies.tolist()
    assert (2 * other.thresholds).tolist() == found.thresholds.tolist()


@pytest.mark.parametrize(
    ("similarities", "mated", "folds", "message"),
    [
        ([0.1, 0.2], [True, False], [3, 3], "expected at least two folds, got 1"),
        ([0.1, 0.2], [True], [0, 1], r"got shapes \(2,\), \(1,\) and \(2,\)"),
        ([0.1, np.nan], [True, False], [0, 1], "without NaN, got 1 of 2"),
        ([], [], [], "expected at least one compared similarity"),
    ],
)
def test_what_gives_no_accuracy(similarities, mated, folds, message):
    with pytest.raises(ValueError, match=message):
        fold_accuracy(np.array(similarities), np.array(mated, bool), np.array(folds, np.int64))


@pytest.mark.parametrize(("total", "num_folds"), [(10, 10), (23, 10), (6000, 10), (7, 1), (29, 10)])
def test_consecutive_folds_are_scikit_learns(total, num_folds):
    found = consecutive_folds(total, num_folds)
    if num_folds == 1:
        assert set(found.tolist()) == {0}
        return
    for number, (_, own) in enumerate(KFold(num_folds).split(np.zeros(total))):
        assert np.flatnonzero(found == number).tolist() == own.tolist()


def test_more_folds_than_comparisons():
    with pytest.raises(ValueError, match="got 9 for 10"):
        consecutive_folds(9, 10)


@pytest.mark.parametrize("decimals", [1, 2, 12])
@pytest.mark.parametrize("seed", range(4))
def test_roc_figures_equal_scikit_learns(seed, decimals):
    similarities, is_mated, _ = drawn(seed, 400, decimals)
    mated, nonmated = similarities[is_mated], similarities[~is_mated]
    assert area_under_roc(mated, nonmated) == pytest.approx(
        roc_auc_score(is_mated, similarities), abs=1e-12
    )
    false_match, match, _ = roc_curve(is_mated, similarities, drop_intermediate=False)

    def excess(rate):
        # Where the ROC rises straight up, interpolation takes the upper end.
        return rate - (1 - np.interp(rate, false_match, match))

    wanted = brentq(excess, 0, 1, xtol=1e-14)
    assert equal_error_rate(mated, nonmated) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    ("mated", "nonmated", "eer", "auc"),
    [
        ([0.8, 0.9], [0.1, 0.2], 0.0, 1.0),  # told apart
        ([0.1, 0.2], [0.8, 0.9], 1.0, 0.0),  # the wrong way round
        ([0.5], [0.5], 0.5, 0.5),  # alike
        ([0.5, 0.9], [0.1, 0.5], 0.25, 0.875),  # one of four pairs ties
        ([0.2, 0.7, 0.8, 0.9], [0.0, 0.1, 0.3], 1 / 4, 11 / 12),  # 0 to 1/3 at one mated missed
        ([0.6, 0.7], [0.1, 0.2, 0.3, 0.65], 1 / 4, 7 / 8),
    ],
)
def test_roc_figures_are_hand_counted(mated, nonmated, eer, auc):
    mated, nonmated = np.array(mated), np.array(nonmated)
    assert equal_error_rate(mated, nonmated) == pytest.approx(eer, abs=1e-15)
    assert area_under_roc(mated, nonmated) == pytest.approx(auc, abs=1e-15)
    # Exchanging the kinds and the sign exchanges both kinds of error.
    assert equal_error_rate(-nonmated, -mated) == pytest.approx(eer, abs=1e-15)
    assert area_under_roc(-nonmated, -mated) == pytest.approx(auc, abs=1e-15)


@pytest.mark.parametrize("figure", [equal_error_rate, area_under_roc])
def test_what_gives_no_roc(figure):
    some = np.array([0.5])
    with pytest.raises(ValueError, match="at least one mated similarity"):
        figure(some[:0], some)
    with pytest.raises(ValueError, match="at least one nonmated similarity"):
        figure(some, some[:0])
    with pytest.raises(ValueError, match="nonmated similarities without NaN"):
        figure(some, np.array([np.nan]))
