"""Assessments: a case counted by hand, the mean of repeats, and tables at the asked fractions."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdd_ray.core import edc as definition
from sdd_ray.core.assessment import EDC_DISCARD_FRACTIONS, assess, mean_assessment
from sdd_ray.core.comparisons import ComparedPairs, compare_tile
from sdd_ray.core.edc_areas import pauc
from sdd_ray.core.error_rates import threshold_at_fmr
from sdd_ray.core.ranked_sides import ComparedSides, Protocol, rank_sides

FRACTIONS = (0.0, 0.1)


def assess_one(mated, nonmated, qualities, fmr, discard_limit, fractions):
    """Return the assessment at one rate; its only area is `area`."""
    protocol = Protocol((fmr,), (discard_limit,), tuple(fractions))
    return assess(ComparedSides.of(mated, nonmated, [fmr]), qualities, protocol)[0]


def area(assessment):
    (found,) = assessment.areas.values()
    return found.normalised


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
    steps = {0.0: 1 / 2, 0.24: 1 / 2, 0.25: 1 / 3, 0.49: 1 / 3, 0.5: 1 / 2, 0.74: 1 / 2, 0.75: 0}
    found = assess_one(*case, fmr=0.1, discard_limit=0.5, fractions=list(steps))
    # Nonmated similarities 0, 0.05, ... 0.45: one of ten may lie above the threshold.
    assert found.fmr == 0.1
    assert found.point.threshold == pytest.approx(0.4)
    assert found.point.achieved_fmr == pytest.approx(0.1)
    # Pair qualities 1, 2, 3, 4, and the first and third comparison are below 0.4.
    assert found.table_edc.tolist() == pytest.approx(list(steps.values()))
    # Areas of the steps up to 0.5, over the error at zero discard.
    assert area(found).value == pytest.approx((0.25 / 2 + 0.25 / 3) / (0.5 / 2))
    # Without the worst of five images six nonmated comparisons remain: none may lie above the
    # threshold, the rate 0.1 cannot be counted, and the error is undefined from there on.
    assert found.table_evrc[0] == 0.5
    assert np.isnan(found.table_evrc[1:]).all()
    assert found.evrc[:4].tolist() == [0.5] * 4
    assert np.isnan(found.evrc[4:]).all()
    assert np.isnan(found.aoc.value)
    assert found.aoc.reason == "the error rate is undefined at discard fraction 0.2"


def test_threshold_is_solved_again_for_the_paper_curve(case):
    found = assess_one(*case, 0.34, 0.5, fractions=(0.0, 0.19, 0.2, 0.4))
    # All ten: three may lie above 0.3, and 0.1 and 0.2 are below. Without image 0 six remain,
    # 0.2 to 0.45: two may lie above 0.35, and of 0.9, 0.2, 0.8 one is below.
    assert found.point.threshold == pytest.approx(0.3)
    # Without images 0 and 1 three remain, 0.35 to 0.45: one may lie above 0.4; 0.2 of two is below.
    assert found.table_evrc.tolist() == pytest.approx([0.5, 0.5, 1 / 3, 0.5])
    assert found.edc.shape == EDC_DISCARD_FRACTIONS.shape == (96,)
    assert found.evrc.shape == (20,)


def test_quality_that_knows_the_errors_beats_one_that_hides_them(case):
    mated, nonmated, _ = case
    knows = assess_one(mated, nonmated, np.array([1.0, 4.0, 2.0, 5.0, 6.0]), 0.1, 0.5, FRACTIONS)
    hides = assess_one(mated, nonmated, np.array([6.0, 4.0, 5.0, 7.0, 1.0]), 0.1, 0.5, FRACTIONS)
    assert area(knows).value < 1 < area(hides).value


def test_constant_quality_is_worth_nothing(case):
    mated, nonmated, _ = case
    found = assess_one(mated, nonmated, np.full(5, 3.0), 0.1, 0.5, FRACTIONS)
    assert area(found).value == pytest.approx(1.0)
    assert set(found.edc) == {0.5}
    assert found.aoc.value == pytest.approx(0.05)


def test_failed_images_leave_first(case):
    mated, nonmated, qualities = case
    failed = np.where(qualities == 1, np.nan, qualities)
    with_nan = assess_one(mated, nonmated, failed, 0.34, 0.5, FRACTIONS)
    lowest = assess_one(mated, nonmated, qualities, 0.34, 0.5, FRACTIONS)
    np.testing.assert_array_equal(with_nan.edc, lowest.edc)
    np.testing.assert_array_equal(with_nan.evrc, lowest.evrc)


def test_only_the_order_of_qualities_matters():
    rng = np.random.default_rng(1)
    unit = rng.standard_normal((60, 6)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    mated, nonmated = compare_tile(unit, np.arange(60) // 4, (0, 60), 1.0, 0)
    qualities = rng.random(60)
    one = assess_one(mated, nonmated, qualities, 0.05, 0.3, FRACTIONS)
    other = assess_one(mated, nonmated, np.exp(5 * qualities) - 9, 0.05, 0.3, FRACTIONS)
    np.testing.assert_array_equal(one.edc, other.edc)
    np.testing.assert_array_equal(one.evrc, other.evrc)
    assert (one.aoc, area(one)) == (other.aoc, area(other))


def test_mean_of_repeats(case):
    mated, nonmated, qualities = case
    one = assess_one(mated, nonmated, qualities, 0.34, 0.5, FRACTIONS)
    two = assess_one(mated, nonmated, qualities[::-1].copy(), 0.34, 0.5, FRACTIONS)
    mean = mean_assessment([one, two])
    assert mean.fmr == 0.34
    assert mean.point == one.point
    np.testing.assert_allclose(mean.edc, (one.edc + two.edc) / 2)
    np.testing.assert_allclose(mean.evrc, (one.evrc + two.evrc) / 2)
    np.testing.assert_allclose(mean.table_edc, (one.table_edc + two.table_edc) / 2)
    np.testing.assert_allclose(mean.table_evrc, (one.table_evrc + two.table_evrc) / 2)
    areas = [area(a).value for a in (one, two)]
    assert area(mean).value == pytest.approx(sum(areas) / 2)
    assert areas[0] != areas[1]
    same = mean_assessment([one])
    assert dataclasses.asdict(same).keys() == dataclasses.asdict(one).keys()
    np.testing.assert_array_equal(same.edc, one.edc)


def test_mean_of_nothing():
    with pytest.raises(ValueError, match="expected at least one assessment, got none"):
        mean_assessment([])


def test_an_undefined_repeat_makes_the_mean_undefined_for_its_reason(case):
    mated, nonmated, qualities = case
    one = assess_one(mated, nonmated, np.full(5, 3.0), 0.1, 0.5, FRACTIONS)
    two = assess_one(mated, nonmated, qualities, 0.1, 0.5, FRACTIONS)
    assert one.aoc.reason == ""
    assert mean_assessment([one, two, two]).aoc is two.aoc
    without_errors = dataclasses.replace(mated, similarities=np.ones(4, np.float32))
    for undefined in (
        area(assess_one(without_errors, nonmated, qualities, 0.1, 0.1, FRACTIONS)),
        assess_one(without_errors, nonmated, np.ones(5), 0.1, 0.1, FRACTIONS).aoc,
    ):
        assert np.isnan(undefined.value)
        assert "no false non-match at zero discard" in undefined.reason


def test_tables_are_of_exactly_the_fractions_asked_for():
    """Two hundred images: 2, 3, 12 and 33.5 per cent lie between the points of both grids."""
    rng = np.random.default_rng(3)
    codes = np.arange(200) // 4
    noise = rng.random(200)
    unit = rng.standard_normal((50, 6))[codes] + 2 * noise[:, None] * rng.standard_normal((200, 6))
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    mated, nonmated = compare_tile(unit, codes, (0, 200), 1.0, 0)
    asked = (0.02, 0.03, 0.12, 0.335)
    found = assess_one(mated, nonmated, -noise, 0.05, 0.3, asked)
    plain = assess_one(mated, nonmated, -noise, 0.05, 0.3, (0.0, 0.1))
    # The fractions of the table leave curves and areas alone.
    np.testing.assert_array_equal(found.evrc, plain.evrc)
    np.testing.assert_array_equal(found.edc, plain.edc)
    assert (found.aoc, area(found)) == (plain.aoc, area(plain))
    assert plain.table_evrc.tolist() == [found.evrc[0], found.evrc[2]]
    ranks = np.argsort(np.argsort(-noise))
    lower = np.sort(np.minimum(ranks[mated.first], ranks[mated.second]))
    for place, fraction in enumerate(asked):
        # Without the worst images, and the threshold from the comparisons of the others.
        kept = ranks >= int(fraction * 200 + 1e-9)
        left = [c.similarities[kept[c.first] & kept[c.second]] for c in (mated, nonmated)]
        threshold = np.sort(left[1])[::-1][int(0.05 * len(left[1]))]
        assert found.table_evrc[place] == np.mean(left[0] < threshold)
        # Without as many of the worst comparisons as may leave together, the threshold fixed.
        limit = lower[int(fraction * len(lower) + 1e-9)]
        stay = np.minimum(ranks[mated.first], ranks[mated.second]) >= limit
        wrong = mated.similarities[stay] < found.point.threshold
        assert found.table_edc[place] == pytest.approx(np.mean(wrong))
    assert len(set(found.table_evrc.tolist())) == len(set(found.table_edc.tolist())) == 4


def test_missing_comparisons(case):
    mated, nonmated, qualities = case
    none = ComparedPairs(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="similarity"):
        assess_one(none, nonmated, qualities, 0.1, 0.5, FRACTIONS)
    with pytest.raises(ValueError, match="similarity"):
        assess_one(mated, none, qualities, 0.1, 0.5, FRACTIONS)
    with pytest.raises(ValueError, match="false match rate"):
        assess_one(mated, nonmated, qualities, 1.0, 0.5, FRACTIONS)


_LEVELS = [math.nan, -math.inf, 0.0, 1.0, 2.0, 3.0]


@st.composite
def sets(draw):
    """Comparisons of a few images, with heavy ties on both sides and failures to assess."""
    number = draw(st.integers(2, 12))
    image = st.integers(0, number - 1)
    value = st.sampled_from([-0.5, 0.0, 0.25, 0.5, 0.75])
    rows = st.lists(st.tuples(image, image, value), min_size=1, max_size=60)
    qualities = draw(st.lists(st.sampled_from(_LEVELS), min_size=number, max_size=number))
    return pairs(*draw(rows)), pairs(*draw(rows)), np.array(qualities)


@given(
    case=sets(),
    fmr=st.sampled_from([0.02, 0.1, 0.3, 0.7]),
    discarded=st.sampled_from(["images", "comparisons"]),
)
@settings(max_examples=150)
def test_counting_by_rank_is_the_definition(case, fmr, discarded):
    mated, nonmated, qualities = case
    protocol = Protocol((0.5, fmr), (0.05, 0.3, 0.95), (0.0, 0.12), discarded=discarded)
    found = assess(ComparedSides.of(mated, nonmated, protocol.fmrs), qualities, protocol)[1]
    sides = [
        definition.Comparisons(
            c.similarities, definition.pair_qualities(qualities[c.first], qualities[c.second])
        )
        for c in (mated, nonmated)
    ]
    assert found.point == threshold_at_fmr(nonmated.similarities, fmr) or math.isnan(
        found.point.threshold
    )
    edc = definition.fnm_edc(sides[0], found.point.threshold)
    for name, curve in (("edc", edc), ("fm_edc", definition.fm_edc(sides[1], edc.thresholds[0]))):
        expected = definition.errors_at(curve, EDC_DISCARD_FRACTIONS)
        np.testing.assert_array_equal(getattr(found, name), expected)
    population = qualities if discarded == "images" else None
    evrc = definition.evrc(*sides, fmr, protocol.grid, population)
    np.testing.assert_array_equal(found.evrc, definition.errors_at(evrc, np.arange(20) / 20))
    np.testing.assert_array_equal(found.table_evrc, evrc.errors[[0, 3]])
    for limit, areas in found.areas.items():
        np.testing.assert_array_equal(areas.raw.value, pauc(edc, limit).value)
    achieved = found.achieved[~np.isnan(found.achieved)]
    assert np.all(achieved <= fmr)


def test_thresholds_deeper_than_what_was_sorted():
    """All false matches leave first, so that the threshold lies far below the largest."""
    rng = np.random.default_rng(0)
    size = 30_000
    first, second = np.arange(size) // 3, 10_000 + np.arange(size) % 9_999
    similarities = np.sort(rng.random(size)).astype(np.float32)[::-1].copy()
    nonmated = ComparedPairs(first.astype(np.int32), second.astype(np.int32), similarities)
    mated = pairs(*((n, n + 1, n / 20_000) for n in range(0, 19_000, 3)))
    qualities = np.arange(20_000.0)
    found = assess_one(mated, nonmated, qualities, 1e-3, 0.3, (0.0, 0.25))
    # A quarter of the images: 5,000 of the first 10,000, with 15,000 comparisons, the most alike.
    left = similarities[15_000:]
    threshold = left[15]
    stay = mated.first >= 5_000
    assert found.table_evrc[1] == np.mean(mated.similarities[stay] < threshold)
    assert found.achieved[5] == 15 / 15_000


def test_other_pair_qualities_discard_comparisons(case):
    mated, nonmated, qualities = case
    sides = ComparedSides.of(mated, nonmated, [0.3])
    for how, function in (("maximum", np.maximum), ("mean", lambda a, b: (a + b) / 2)):
        protocol = Protocol((0.3,), pair_quality=how, discarded="comparisons")
        found = assess(sides, qualities, protocol)[0]
        both = [
            definition.Comparisons(
                c.similarities, function(qualities[c.first], qualities[c.second])
            )
            for c in (mated, nonmated)
        ]
        edc = definition.fnm_edc(both[0], found.point.threshold)
        np.testing.assert_array_equal(found.edc, definition.errors_at(edc, EDC_DISCARD_FRACTIONS))
        expected = definition.evrc(*both, 0.3, protocol.grid)
        np.testing.assert_array_equal(found.table_evrc[:2], expected.errors[[0, 2]])
        with pytest.raises(ValueError, match=f"images cannot be discarded by the {how}"):
            rank_sides(sides, qualities, Protocol((0.3,), pair_quality=how))


def test_order_of_comparisons_does_not_matter():
    rng = np.random.default_rng(8)
    unit = rng.standard_normal((90, 5)).astype(np.float32)
    mated, nonmated = compare_tile(unit, np.arange(90) // 3, (0, 90), 1.0, 0)
    qualities = rng.integers(0, 9, 90).astype(float)
    one = assess_one(mated, nonmated, qualities, 0.03, 0.3, FRACTIONS)
    mixed = []
    for c in (mated, nonmated):
        order = rng.permutation(len(c.first))
        mixed.append(ComparedPairs(c.second[order], c.first[order], c.similarities[order]))
    other = assess_one(*mixed, qualities, 0.03, 0.3, FRACTIONS)
    for name in ("edc", "fm_edc", "evrc", "achieved", "table_edc", "table_evrc"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
