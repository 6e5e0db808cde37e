"""The bootstrap over subjects: against repeated comparisons, its laws, and known uncertainty."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdd_ray.core.assessment import assess
from sdd_ray.core.comparisons import ComparedPairs, compare_tile
from sdd_ray.core.ranked_sides import ComparedSides, Protocol, rank_sides
from sdd_ray.core.resampling import (
    drawn_figures,
    interval,
    stacked,
    subject_draw,
    subjects_of,
    weigh,
)

PROTOCOL = Protocol((0.3, 0.05), (0.3, 0.95), (0.0, 0.12, 0.4))


def faces(rng, people=9, each=4, levels=6):
    codes = np.repeat(np.arange(people), each)
    noise = rng.integers(0, levels, len(codes)) / levels
    unit = rng.standard_normal((people, 6))[codes]
    unit += 2 * noise[:, None] * rng.standard_normal(unit.shape)
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).round(1).astype(np.float32)
    qualities = np.where(rng.random(len(codes)) < 0.1, np.nan, -noise)
    return codes, compare_tile(unit, codes, (0, len(codes)), 1.0, 0), qualities


def figures(sides, codes, qualities, draw, protocol=PROTOCOL):
    drawn = weigh(sides, codes, draw)
    return drawn_figures(sides, rank_sides(sides, qualities, protocol), drawn, protocol)


def assert_equal_to(found, assessments, protocol):
    asked = np.searchsorted(protocol.grid, protocol.fractions)
    for row, a in enumerate(assessments):
        np.testing.assert_allclose(found.edc[row][asked], a.table_edc, atol=1e-12)
        np.testing.assert_allclose(found.evrc[row][asked], a.table_evrc, atol=1e-12)
        areas = [area.normalised.value for area in a.areas.values()]
        np.testing.assert_allclose(found.paucs[row], areas, atol=1e-12)
        np.testing.assert_allclose(found.aocs[row], a.aoc.value, atol=1e-12)


@pytest.mark.parametrize("discarded", ["images", "comparisons"])
def test_everybody_once_is_the_evaluation_itself(discarded):
    codes, pairs, qualities = faces(np.random.default_rng(0))
    protocol = Protocol(PROTOCOL.fmrs, (0.3, 0.95), (0.0, 0.12), discarded=discarded)
    sides = ComparedSides.of(*pairs, protocol.fmrs)
    found = figures(sides, codes, qualities, np.ones(9, np.int64), protocol)
    assert_equal_to(found, assess(sides, qualities, protocol), protocol)


@given(seed=st.integers(0, 2**32 - 1), discarded=st.sampled_from(["images", "comparisons"]))
@settings(max_examples=60)
def test_a_draw_is_an_evaluation_of_repeated_comparisons(seed, discarded):
    rng = np.random.default_rng(seed)
    codes, pairs, qualities = faces(rng)
    draw = subject_draw(9, seed, 3)
    weights = draw[codes]
    protocol = Protocol(PROTOCOL.fmrs, (0.3, 0.95), (0.0, 0.12), discarded=discarded)
    found = figures(ComparedSides.of(*pairs, protocol.fmrs), codes, qualities, draw, protocol)

    places = np.cumsum(weights) - weights  # of the first copy of each image
    copies = []
    for side, both in zip(pairs, (False, True), strict=True):
        times = weights[side.first] * (weights[side.second] if both else 1)
        first, second = (
            np.repeat(places[of], times).astype(np.int32) for of in (side.first, side.second)
        )
        copies.append(ComparedPairs(first, second, np.repeat(side.similarities, times)))
    repeated = ComparedSides.of(*copies, protocol.fmrs)
    assert_equal_to(found, assess(repeated, np.repeat(qualities, weights), protocol), protocol)


def test_draws_depend_on_seed_and_number_alone():
    draw = subject_draw(50, 1, 7)
    assert draw.sum() == 50
    np.testing.assert_array_equal(draw, subject_draw(50, 1, 7))
    assert not np.array_equal(draw, subject_draw(50, 1, 8))
    assert not np.array_equal(draw, subject_draw(50, 2, 7))


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Sixty people with one mated comparison each: FNMR is a mean of independent trials."""
    rng = np.random.default_rng(5)
    people, covered, trials = 40, 0, 25
    nonmated = [
        (2 * a, 2 * b, s / 780)
        for s, (a, b) in enumerate((a, b) for a in range(people) for b in range(a))
    ]
    for _ in range(trials):
        wrong = rng.random(people) < 0.3
        mated = [(2 * n, 2 * n + 1, -1.0 if w else 2.0) for n, w in enumerate(wrong)]
        sides = ComparedSides.of(_pairs(mated), _pairs(nonmated), [0.1])
        codes = np.arange(2 * people) // 2
        protocol = Protocol((0.1,), (0.3,), (0.0,))
        ranked = rank_sides(sides, np.ones(2 * people), protocol)
        draws = [
            drawn_figures(sides, ranked, weigh(sides, codes, subject_draw(people, 0, n)), protocol)
            for n in range(80)
        ]
        found = interval(stacked(draws).edc[:, 0, 0])
        covered += found.low <= 0.3 <= found.high
    # 23 or 24 are expected; intervals of half the width would cover it 16 times.
    assert covered >= 20


def _pairs(rows):
    first, second, similarities = zip(*rows, strict=True)
    return ComparedPairs(
        np.array(first, np.int32), np.array(second, np.int32), np.array(similarities, np.float32)
    )


def test_interval_of_figures_that_are_mostly_undefined():
    values = np.arange(100.0)
    assert not math.isnan(interval(np.where(values < 5, np.nan, values)).low)
    assert math.isnan(interval(np.where(values < 6, np.nan, values)).low)
    assert math.isnan(interval(np.zeros(0)).high)


def test_a_draw_without_any_error_or_comparison_is_undefined_not_zero():
    codes, pairs, qualities = faces(np.random.default_rng(1))
    sides = ComparedSides.of(*pairs, PROTOCOL.fmrs)
    one = np.zeros(9, np.int64)
    one[4] = 9  # one person nine times: nobody to be confused with
    found = figures(sides, codes, qualities, one)
    for name in ("edc", "evrc", "paucs", "aocs"):
        assert np.isnan(getattr(found, name)).all()


def test_subjects_from_mated_comparisons():
    codes, (mated, _), _ = faces(np.random.default_rng(2))
    found = subjects_of(mated, len(codes) + 1)
    np.testing.assert_array_equal(found[:-1], codes)
    assert found[-1] == 9
