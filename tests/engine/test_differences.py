"""Which method is called better: paired over the draws, and only where the interval says so."""

import math

import numpy as np
import pytest

from sdd_ray.core.assessment import assess
from sdd_ray.core.comparisons import compare_tile
from sdd_ray.core.ranked_sides import ComparedSides, Protocol
from sdd_ray.core.resampling import DrawnFigures, interval
from sdd_ray.engine.assessing import MethodResult
from sdd_ray.engine.differences import differences, ends_on, figures
from sdd_ray.engine.qualities import Qualities

PROTOCOL = Protocol((0.2, 0.1), (0.3, 0.95), (0.0, 0.12))
DRAWS = 200
NONE = Qualities(np.zeros(40), 0, 0, 0)


@pytest.fixture(scope="module")
def assessments():
    rng = np.random.default_rng(0)
    unit = rng.standard_normal((40, 5)).astype(np.float32)
    pairs = compare_tile(unit, np.arange(40) // 4, (0, 40), 1.0, 0)
    return assess(ComparedSides.of(*pairs, PROTOCOL.fmrs), rng.random(40), PROTOCOL)


def method(name, assessments, shift=0.0, spread=0.1, noise=None):
    """A method whose draws are the same noise for all, moved by a shift."""
    noise = np.random.default_rng(1).standard_normal(DRAWS) if noise is None else noise
    rates = np.broadcast_to(
        (0.5 + shift + spread * noise)[:, None, None], (DRAWS, 2, len(PROTOCOL.grid))
    )
    areas = np.broadcast_to((0.8 + shift + spread * noise)[:, None, None], (DRAWS, 2, 2))
    aocs = np.broadcast_to((0.4 - shift - spread * noise)[:, None], (DRAWS, 2))
    draws = DrawnFigures(rates, rates, areas, aocs, np.zeros((DRAWS, 2, 0)))
    return MethodResult(name, "model", NONE, assessments, draws)


def verdicts(methods):
    return {(d.method, d.other, d.figure, d.fmr): d for d in differences(methods, PROTOCOL)}


def test_paired_draws_show_what_intervals_alone_would_hide(assessments):
    low, high = method("low", assessments), method("high", assessments, shift=0.01)
    inside = figures(low, 0, PROTOCOL)[0].interval, figures(high, 0, PROTOCOL)[0].interval
    assert inside[0].high > inside[1].low
    found = verdicts([low, high])
    for name in ("normalised_pauc_0.3", "normalised_pauc_0.95", "evrc_0.12", "edc_0"):
        difference = found["low", "high", name, 0.1]
        assert difference.verdict == "better"
        assert difference.interval.low == pytest.approx(-0.01)
        assert difference.interval.high == pytest.approx(-0.01)
    # Of the paper's area more is better: the draws of `high` have less of it.
    assert found["low", "high", "aoc", 0.2].verdict == "better"
    assert verdicts([high, low])["high", "low", "aoc", 0.2].verdict == "worse"


def test_differences_that_change_sign_say_nothing(assessments):
    noise = np.random.default_rng(2).standard_normal(DRAWS)
    found = verdicts([method("a", assessments), method("b", assessments, 0.01, noise=noise)])
    assert found["a", "b", "normalised_pauc_0.3", 0.2].verdict == "undecided"


def test_a_quality_is_better_than_chance_where_its_interval_is_below_one(assessments):
    found = verdicts([method("good", assessments, spread=0.05), method("none", assessments, 0.2)])
    assert found["good", "random", "normalised_pauc_0.3", 0.1].verdict == "better"
    assert found["none", "random", "normalised_pauc_0.3", 0.1].verdict == "undecided"
    value = assessments[1].areas[0.3].normalised.value
    assert found["good", "random", "normalised_pauc_0.3", 0.1].value == value - 1
    # Rates are compared with those of the same draw before any discard.
    assert found["good", "random", "evrc_0.12", 0.1].interval.low == 0
    assert found["good", "random", "aoc", 0.1].verdict == "better"


def test_undefined_draws_decide_nothing(assessments):
    known = method("a", assessments)
    broken = method("b", assessments, noise=np.where(np.arange(DRAWS) < 11, np.nan, 0.0))
    difference = verdicts([known, broken])["a", "b", "normalised_pauc_0.3", 0.2]
    assert difference.verdict == "undefined"
    assert math.isnan(difference.interval.low)


def test_without_draws_nothing_is_compared(assessments):
    plain = MethodResult("a", "model", NONE, assessments)
    assert figures(plain, 0, PROTOCOL) == []
    assert differences([plain, plain], PROTOCOL) == []
    assert np.isnan(ends_on(PROTOCOL.grid, "evrc", plain, 0, PROTOCOL)).all()


def test_ends_of_bands_lie_at_the_points_that_were_drawn(assessments):
    one = method("a", assessments)
    grid = np.arange(96) / 100
    low, high = ends_on(grid, "edc", one, 1, PROTOCOL)
    there = np.isin(grid, PROTOCOL.grid)
    np.testing.assert_array_equal(np.isnan(low), ~there)
    expected = interval(one.draws.edc[:, 1, 0])
    assert set(low[there]) == {expected.low}
    assert set(high[there]) == {expected.high}
    assert np.isnan(ends_on(grid, "fm_edc", one, 1, PROTOCOL)).all()
