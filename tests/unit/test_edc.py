"""Error versus discard curves: hand-computed, against brute force, and the laws they obey."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdd_ray.core.edc import (
    EVRC_DISCARD_FRACTIONS,
    Comparisons,
    errors_at,
    evrc,
    fnm_edc,
    pair_qualities,
)
from sdd_ray.core.error_rates import fnmr

# Few distinct values on purpose: ties in quality and similarity, and failures to assess.
_QUALITIES = st.sampled_from([math.nan, 0.0, 1.0, 2.0, 3.0])
_SIMILARITIES = st.sampled_from([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0])


def _comparisons(min_size, max_size):
    rows = st.lists(st.tuples(_SIMILARITIES, _QUALITIES), min_size=min_size, max_size=max_size)
    return rows.map(lambda pairs: Comparisons(*np.array(pairs, dtype=np.float64).T))


def _random_comparisons(rng, num, num_levels):
    qualities = rng.integers(0, num_levels, num).astype(np.float64)
    qualities[rng.random(num) < 0.1] = np.nan
    return Comparisons(rng.normal(0.05 * np.nan_to_num(qualities), 0.2), qualities)


def _kept(comparisons, lowest):
    """The rows that stay when everything below `lowest` goes; a NaN is below every number."""
    return [
        similarity
        for similarity, quality in zip(
            comparisons.similarities, comparisons.pair_qualities, strict=True
        )
        if lowest is None or (not math.isnan(quality) and quality >= lowest)
    ]


def _levels(*sides):
    """None (nothing goes), then each quality that is a boundary; NaN is below the first."""
    qualities = np.concatenate([side.pair_qualities for side in sides])
    finite = sorted(set(qualities[~np.isnan(qualities)].tolist()))
    return [None, *(finite if np.isnan(qualities).any() else finite[1:])]


def _brute_force_edc(mated, threshold):
    """One (discard fraction, error, remaining) for each boundary, counted row by row."""
    total = len(mated.similarities)
    points = []
    for lowest in _levels(mated):
        kept = _kept(mated, lowest)
        wrong = sum(similarity < threshold for similarity in kept)
        points.append(((total - len(kept)) / total, wrong / len(kept), len(kept)))
    return points


def _brute_force_evrc(mated, nonmated, fmr, discard_fraction):
    """Error and threshold when the most boundaries within the fraction of both kinds have gone."""
    total = len(mated.similarities) + len(nonmated.similarities)
    chosen = None
    for lowest in _levels(mated, nonmated):
        num_kept = len(_kept(mated, lowest)) + len(_kept(nonmated, lowest))
        if (total - num_kept) / total <= discard_fraction:
            chosen = lowest
    kept_nonmated = sorted(_kept(nonmated, chosen), reverse=True)
    kept_mated = _kept(mated, chosen)
    allowed = [k for k in range(1, len(kept_nonmated)) if k / len(kept_nonmated) <= fmr]
    if not kept_mated or not allowed:
        return math.nan, math.nan
    threshold = kept_nonmated[max(allowed)]
    return sum(s < threshold for s in kept_mated) / len(kept_mated), threshold


def test_edc_is_hand_computed():
    # quality     NaN   1    1    2    2    2    3    5
    # similarity  0.1  0.9  0.2  0.8  0.4  0.5  0.3  0.9     threshold 0.5: 4 of 8 are below
    # none gone:                8 left, wrong 0.1 0.2 0.4 0.3  -> 4/8
    # NaN gone:    1/8 discarded, 7 left, wrong 0.2 0.4 0.3    -> 3/7
    # q < 2 gone:  3/8 discarded, 5 left, wrong 0.4 0.3        -> 2/5   (0.5 ties: no error)
    # q < 3 gone:  6/8 discarded, 2 left, wrong 0.3            -> 1/2
    # q < 5 gone:  7/8 discarded, 1 left, none wrong           -> 0/1
    mated = Comparisons(
        np.array([0.1, 0.9, 0.2, 0.8, 0.4, 0.5, 0.3, 0.9]),
        np.array([np.nan, 1, 1, 2, 2, 2, 3, 5]),
    )
    curve = fnm_edc(mated, 0.5)
    assert curve.discard_fractions.tolist() == [0, 1 / 8, 3 / 8, 6 / 8, 7 / 8]
    assert curve.errors.tolist() == [4 / 8, 3 / 7, 2 / 5, 1 / 2, 0]
    assert curve.num_remaining.tolist() == [8, 7, 5, 2, 1]
    assert curve.thresholds.tolist() == [0.5] * 5
    # Between two steps the lower one counts.
    assert errors_at(curve, np.array([0, 0.124, 0.125, 0.3, 0.74, 0.9])).tolist() == [
        4 / 8, 4 / 8, 3 / 7, 3 / 7, 2 / 5, 0,
    ]  # fmt: skip


def test_evrc_is_hand_computed():
    # mated     quality 1 1 2 3   similarity 0.1 0.6 0.4 0.9
    # nonmated  quality 1 1 2 3 3 3   similarity 0.7 0.2 0.5 0.3 0.0 0.1          10 pooled, FMR 1/3
    # none gone: 6 nonmated, floor(6/3) = 2 may be above -> 3rd largest of .7 .5 .3 .2 .1 0 is 0.3;
    #            mated below 0.3: 0.1 -> 1/4
    # q < 2 gone (4 of 10): nonmated .5 .3 0 .1, floor(4/3) = 1 -> 2nd largest 0.3; mated .4 .9 -> 0
    # q < 3 gone (6 of 10): nonmated .3 0 .1, 1 may be above -> 0.1; mated 0.9 -> 0
    mated = Comparisons(np.array([0.1, 0.6, 0.4, 0.9]), np.array([1.0, 1, 2, 3]))
    nonmated = Comparisons(np.array([0.7, 0.2, 0.5, 0.3, 0.0, 0.1]), np.array([1.0, 1, 2, 3, 3, 3]))
    curve = evrc(mated, nonmated, 1 / 3, np.array([0, 0.35, 0.4, 0.5, 0.6, 0.9]))
    assert curve.thresholds.tolist() == [0.3, 0.3, 0.3, 0.3, 0.1, 0.1]
    assert curve.errors.tolist() == [1 / 4, 1 / 4, 0, 0, 0, 0]
    assert curve.num_remaining.tolist() == [4, 4, 2, 2, 1, 1]


@settings(deadline=None, max_examples=300)
@given(mated=_comparisons(1, 40), threshold=_SIMILARITIES)
def test_edc_equals_brute_force_with_heavy_ties_and_failures(mated, threshold):
    curve = fnm_edc(mated, threshold)
    fractions, errors, remaining = zip(*_brute_force_edc(mated, threshold), strict=True)
    np.testing.assert_allclose(curve.discard_fractions, fractions, rtol=0, atol=1e-12)
    np.testing.assert_allclose(curve.errors, errors, rtol=0, atol=1e-12)
    assert curve.num_remaining.tolist() == list(remaining)


@settings(deadline=None, max_examples=200)
@given(
    mated=_comparisons(1, 30),
    nonmated=_comparisons(1, 40),
    fmr=st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.5]),
)
def test_evrc_equals_brute_force_with_heavy_ties_and_failures(mated, nonmated, fmr):
    curve = evrc(mated, nonmated, fmr)
    expected = [
        _brute_force_evrc(mated, nonmated, fmr, fraction) for fraction in EVRC_DISCARD_FRACTIONS
    ]
    np.testing.assert_allclose(curve.errors, [e for e, _ in expected], rtol=0, atol=1e-12)
    np.testing.assert_allclose(curve.thresholds, [t for _, t in expected], rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_levels", [3, 100, 10**6])
def test_both_curves_equal_brute_force_on_larger_sets(num_levels):
    rng = np.random.default_rng(num_levels)
    mated = _random_comparisons(rng, 300, num_levels)
    nonmated = _random_comparisons(rng, 500, num_levels)
    curve = fnm_edc(mated, 0.1)
    np.testing.assert_allclose(
        curve.errors, [e for _, e, _ in _brute_force_edc(mated, 0.1)], rtol=0, atol=1e-12
    )
    moving = evrc(mated, nonmated, 0.02)
    for index in (0, 1, 6, 19):
        error, threshold = _brute_force_evrc(mated, nonmated, 0.02, index / 20)
        np.testing.assert_allclose(moving.errors[index], error, rtol=0, atol=1e-12)
        np.testing.assert_allclose(moving.thresholds[index], threshold, rtol=0, atol=1e-12)


def test_monotone_transforms_of_the_quality_change_nothing():
    rng = np.random.default_rng(3)
    mated, nonmated = _random_comparisons(rng, 500, 20), _random_comparisons(rng, 700, 20)
    for transform in (lambda q: 3 * q - 50, np.exp, lambda q: -1 / (q + 1)):
        other = [
            Comparisons(c.similarities, transform(c.pair_qualities)) for c in (mated, nonmated)
        ]
        _assert_same(fnm_edc(mated, 0.3), fnm_edc(other[0], 0.3))
        _assert_same(evrc(mated, nonmated, 0.05), evrc(*other, 0.05))


def test_the_order_of_the_comparisons_changes_nothing():
    rng = np.random.default_rng(4)
    mated, nonmated = _random_comparisons(rng, 500, 7), _random_comparisons(rng, 700, 7)
    shuffled = []
    for side in (mated, nonmated):
        order = rng.permutation(side.similarities.size)
        shuffled.append(Comparisons(side.similarities[order], side.pair_qualities[order]))
    _assert_same(fnm_edc(mated, 0.3), fnm_edc(shuffled[0], 0.3))
    _assert_same(evrc(mated, nonmated, 0.05), evrc(*shuffled, 0.05))


def _assert_same(curve, other):
    for name in ("discard_fractions", "errors", "thresholds", "num_remaining"):
        np.testing.assert_array_equal(getattr(curve, name), getattr(other, name))


def test_a_failure_to_assess_leaves_first_and_is_never_the_best():
    mated = Comparisons(np.array([0.0, 0.9, 0.9]), np.array([np.nan, -1e9, 5.0]))
    curve = fnm_edc(mated, 0.5)
    assert curve.errors.tolist() == [1 / 3, 0, 0]
    assert curve.discard_fractions.tolist() == [0, 1 / 3, 2 / 3]


@pytest.mark.parametrize("quality", [4.0, np.nan, np.inf, -np.inf])
def test_a_constant_quality_discards_nothing(quality):
    mated = Comparisons(np.array([0.1, 0.9, 0.9, 0.2]), np.full(4, quality))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve = fnm_edc(mated, 0.5)
        moving = evrc(mated, mated, 0.25)
    assert (curve.discard_fractions.tolist(), curve.errors.tolist()) == ([0], [0.5])
    assert len(set(moving.errors.tolist())) == 1


def test_evrc_says_undefined_where_too_few_nonmated_comparisons_remain():
    qualities = np.arange(100.0)
    comparisons = Comparisons(np.linspace(0, 1, 100), qualities)
    curve = evrc(comparisons, comparisons, 0.02)
    # 0.02 needs 50 nonmated comparisons: 50 % is the last fraction with as many.
    assert np.isnan(curve.errors).tolist() == [False] * 11 + [True] * 9
    assert np.isnan(curve.thresholds).tolist() == [False] * 11 + [True] * 9


def test_evrc_is_undefined_where_all_mated_or_all_nonmated_comparisons_are_gone():
    low = Comparisons(np.array([0.4, 0.6]), np.array([1.0, 1.0]))
    high = Comparisons(np.linspace(0, 1, 10), np.full(10, 2.0))
    assert evrc(low, high, 0.2).num_remaining[-1] == 0
    assert math.isnan(evrc(low, high, 0.2).errors[-1])
    assert math.isnan(evrc(high, low, 0.5).errors[-1])


def test_an_unattainable_threshold_makes_the_whole_curve_undefined():
    mated = Comparisons(np.array([0.1, 0.9]), np.array([1.0, 2.0]))
    assert np.isnan(fnm_edc(mated, math.nan).errors).all()


def test_the_curve_starts_at_the_error_rate_of_the_whole_set():
    rng = np.random.default_rng(5)
    mated = Comparisons(rng.random(1000).astype(np.float32), rng.random(1000).astype(np.float32))
    assert fnm_edc(mated, 0.3).errors[0] == fnmr(mated.similarities, 0.3)


def test_discarding_by_the_minimum_is_discarding_images():
    rng = np.random.default_rng(6)
    image_qualities = rng.integers(0, 10, 50).astype(np.float64)
    first, second = rng.integers(0, 50, (2, 400))
    of_pairs = pair_qualities(image_qualities[first], image_qualities[second])
    kept_images = image_qualities >= 4
    np.testing.assert_array_equal(of_pairs >= 4, kept_images[first] & kept_images[second])


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match=r"equal shape, got \(2,\) and \(3,\)"):
        pair_qualities(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match=r"one pair quality for each .* \(3,\) and \(2,\)"):
        Comparisons(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="at least one comparison similarity"):
        Comparisons(np.zeros(0), np.zeros(0))
    some = Comparisons(np.zeros(2), np.zeros(2))
    for fractions in ([0.1, 0.2], [0, 0.2, 0.2], [0, 1.0], []):
        with pytest.raises(ValueError, match="increase from 0 to below 1"):
            evrc(some, some, 0.5, np.array(fractions))
    with pytest.raises(ValueError, match=r"discard fractions in \[0, 1\)"):
        errors_at(fnm_edc(some, 0.5), np.array([1.0]))


def test_evrc_over_images_discards_images_and_their_comparisons():
    # Five images of quality 1..5; image 0 (the worst) takes part in the first mated and the first
    # nonmated comparison. At a fifth of the images both are gone, and nothing else.
    images = np.arange(1.0, 6.0)
    mated = Comparisons(np.array([0.1, 0.6, 0.7]), np.array([1.0, 2.0, 3.0]))
    nonmated = Comparisons(np.array([0.9, 0.2, 0.3, 0.4]), np.array([1.0, 2.0, 2.0, 4.0]))
    curve = evrc(mated, nonmated, 0.3, np.array([0.0, 0.19, 0.2]), population=images)
    # All: 1 of 4 nonmated may pass, so the threshold is the second largest, 0.4: 0.1 is missed.
    # Without image 0: floor(0.3 * 3) = 0 may pass, which no threshold can show: undefined.
    assert curve.thresholds[:2].tolist() == [0.4, 0.4]
    assert curve.errors[:2].tolist() == [1 / 3, 1 / 3]
    assert math.isnan(curve.errors[2])
    assert curve.num_remaining.tolist() == [3, 3, 2]


def test_evrc_over_images_equals_removing_them():
    rng = np.random.default_rng(5)
    quality = rng.integers(0, 12, 60).astype(np.float64)
    quality[::17] = np.nan
    first, second = np.triu_indices(60, 1)
    similarities = rng.normal(0.1 * np.nan_to_num(np.fmin(quality[first], quality[second])), 1.0)
    is_mated = first // 6 == second // 6
    pairs = pair_qualities(quality[first], quality[second])
    sides = [Comparisons(similarities[m], pairs[m]) for m in (is_mated, ~is_mated)]
    fractions = np.array([0.0, 0.1, 0.35, 0.6])
    curve = evrc(*sides, 0.05, fractions, population=quality)
    ranked = np.where(np.isnan(quality), -np.inf, quality)
    for fraction, error, threshold in zip(fractions, curve.errors, curve.thresholds, strict=True):
        levels = [t for t in np.unique(ranked) if (ranked < t).mean() <= fraction + 1e-12]
        kept = ranked >= max(levels)
        left = kept[first] & kept[second]
        allowed = int(0.05 * (left & ~is_mated).sum() + 1e-9)
        expected = np.sort(similarities[left & ~is_mated])[-allowed - 1]
        assert threshold == expected
        assert error == np.mean(similarities[left & is_mated] < expected)
