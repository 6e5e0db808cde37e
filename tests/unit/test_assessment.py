"""Assessments: a case counted by hand, the mean of repeats, and reading curves at fractions."""

import dataclasses

import numpy as np
import pytest

from sdd_ray.core.assessment import EDC_DISCARD_FRACTIONS, assess, mean_assessment
from sdd_ray.core.comparisons import ComparedPairs, compare_tile


def pairs(*rows):
    first, second, similarities = zip(*rows, strict=True)
    return ComparedPairs(
        np.array(first, np.int32), np.array(second, np.int32), np.array(similarities, np.float32)
    )


@pytest.fixture
def case():
    """Five images of quality 1 to 5, four mated and ten nonmated comparisons."""
    mated = pairs((0, 1, 0.1), (1, 2, 0.9), (2, 3, 0.2), (3, 4, 0.8))
    places = [(a, b) for a in range(5) for b in range(a + 1, 5)]
    nonmated = pairs(*((a, b, k / 20) for k, (a, b) in enumerate(places)))
    return mated, nonmated, np.array([1.0, 2.0, 3.0, 4.0, 5.0])


def test_counted_by_hand(case):
    found = assess(*case, fmr=0.1, discard_limit=0.5)
    # Nonmated similarities 0, 0.05, ... 0.45: one of ten may lie above the threshold.
    assert found.fmr == 0.1
    assert found.point.threshold == pytest.approx(0.4)
    assert found.point.achieved_fmr == pytest.approx(0.1)
    # Pair qualities 1, 2, 3, 4, and the first and third comparison are below 0.4.
    steps = {0.0: 1 / 2, 0.24: 1 / 2, 0.25: 1 / 3, 0.49: 1 / 3, 0.5: 1 / 2, 0.74: 1 / 2, 0.75: 0}
    assert found.edc_at(list(steps)) == pytest.approx(list(steps.values()))
    # Areas of the steps up to 0.5, over the error at zero discard.
    assert found.normalised_pauc == pytest.approx((0.25 / 2 + 0.25 / 3) / (0.5 / 2))
    # Without the worst of five images six nonmated comparisons remain: none may lie above the
    # threshold, the rate 0.1 cannot be counted, and the error is undefined from there on.
    assert found.evrc_at([0.0, 0.15]) == pytest.approx([0.5, 0.5])
    assert np.isnan(found.evrc_at([0.2])[0])
    assert np.isnan(found.aoc)


def test_threshold_is_solved_again_for_the_paper_curve(case):
    found = assess(*case, fmr=0.34, discard_limit=0.5)
    # All ten: three may lie above 0.3, and 0.1 and 0.2 are below. Without image 0 six remain,
    # 0.2 to 0.45: two may lie above 0.35, and of 0.9, 0.2, 0.8 one is below.
    assert found.point.threshold == pytest.approx(0.3)
    assert found.evrc_at([0.0, 0.19, 0.2]) == pytest.approx([0.5, 0.5, 1 / 3])
    # Without images 0 and 1 three remain, 0.35 to 0.45: one may lie above 0.4; 0.2 of two is below.
    assert found.evrc_at([0.4]) == pytest.approx([0.5])
    assert found.edc.shape == EDC_DISCARD_FRACTIONS.shape == (96,)
    assert found.evrc.shape == (20,)


def test_quality_that_knows_the_errors_beats_one_that_hides_them(case):
    mated, nonmated, _ = case
    knows = assess(mated, nonmated, np.array([1.0, 4.0, 2.0, 5.0, 6.0]), 0.1, 0.5)
    hides = assess(mated, nonmated, np.array([6.0, 4.0, 5.0, 7.0, 1.0]), 0.1, 0.5)
    assert knows.normalised_pauc < 1 < hides.normalised_pauc


def test_constant_quality_is_worth_nothing(case):
    mated, nonmated, _ = case
    found = assess(mated, nonmated, np.full(5, 3.0), 0.1, 0.5)
    assert found.normalised_pauc == pytest.approx(1.0)
    assert set(found.edc) == {0.5}
    assert found.aoc == pytest.approx(0.05)


def test_failed_images_leave_first(case):
    mated, nonmated, qualities = case
    failed = np.where(qualities == 1, np.nan, qualities)
    with_nan = assess(mated, nonmated, failed, 0.34, 0.5)
    lowest = assess(mated, nonmated, qualities, 0.34, 0.5)
    np.testing.assert_array_equal(with_nan.edc, lowest.edc)
    np.testing.assert_array_equal(with_nan.evrc, lowest.evrc)


def test_only_the_order_of_qualities_matters():
    rng = np.random.default_rng(1)
    unit = rng.standard_normal((60, 6)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    mated, nonmated = compare_tile(unit, np.arange(60) // 4, (0, 60), 1.0, 0)
    qualities = rng.random(60)
    one = assess(mated, nonmated, qualities, 0.05, 0.3)
    other = assess(mated, nonmated, np.exp(5 * qualities) - 9, 0.05, 0.3)
    np.testing.assert_array_equal(one.edc, other.edc)
    np.testing.assert_array_equal(one.evrc, other.evrc)
    assert (one.aoc, one.normalised_pauc) == (other.aoc, other.normalised_pauc)


def test_mean_of_repeats(case):
    mated, nonmated, qualities = case
    one = assess(mated, nonmated, qualities, 0.34, 0.5)
    two = assess(mated, nonmated, qualities[::-1].copy(), 0.34, 0.5)
    mean = mean_assessment([one, two])
    assert mean.fmr == 0.34
    assert mean.point == one.point
    np.testing.assert_allclose(mean.edc, (one.edc + two.edc) / 2)
    np.testing.assert_allclose(mean.evrc, (one.evrc + two.evrc) / 2)
    assert mean.normalised_pauc == pytest.approx((one.normalised_pauc + two.normalised_pauc) / 2)
    assert one.normalised_pauc != two.normalised_pauc
    same = mean_assessment([one])
    assert dataclasses.asdict(same).keys() == dataclasses.asdict(one).keys()
    np.testing.assert_array_equal(same.edc, one.edc)


def test_mean_of_nothing():
    with pytest.raises(ValueError, match="expected at least one assessment, got none"):
        mean_assessment([])


def test_fractions_are_read_where_binary_numbers_fall_short(case):
    found = assess(*case, fmr=0.1, discard_limit=0.5)
    # 0.07 * 5 is above 0.35 in binary and 1 - 0.9 below 0.1; each must be read at its own step.
    marked = dataclasses.replace(found, edc=np.arange(96.0))
    for place in range(96):
        equal = [place / 100, place * 0.01, 1 - (100 - place) / 100]
        assert marked.edc_at(equal) == [place] * 3
    marked = dataclasses.replace(found, evrc=np.arange(20.0))
    assert marked.evrc_at([k * 0.05 for k in range(20)]) == list(range(20))


def test_missing_comparisons(case):
    mated, nonmated, qualities = case
    none = ComparedPairs(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="similarity"):
        assess(none, nonmated, qualities, 0.1, 0.5)
    with pytest.raises(ValueError, match="similarity"):
        assess(mated, none, qualities, 0.1, 0.5)
    with pytest.raises(ValueError, match="false match rate"):
        assess(mated, nonmated, qualities, 1.0, 0.5)
