"""Areas under error versus discard curves: hand-computed, bounds, and the paper's arithmetic."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from sdd_ray.core.discarding import ErrorDiscardCurve
from sdd_ray.core.edc import EVRC_DISCARD_FRACTIONS, Comparisons, evrc, fnm_edc
from sdd_ray.core.edc_areas import aoc, best_pauc, normalised_pauc, pauc


def _curve(fractions, errors):
    ones = np.ones(len(errors))
    return ErrorDiscardCurve(
        np.array(fractions, dtype=np.float64),
        np.array(errors, dtype=np.float64),
        0.5 * ones,
        ones.astype(np.int64),
    )


def test_pauc_is_hand_computed():
    curve = _curve([0, 0.1, 0.25, 0.6], [0.4, 0.3, 0.2, 0.1])
    # up to 0.3:  0.4 * 0.1 + 0.3 * 0.15 + 0.2 * 0.05 = 0.04 + 0.045 + 0.01 = 0.095
    assert pauc(curve, 0.3).value == pytest.approx(0.095, abs=1e-15)
    # normalised: 0.095 / (0.3 * 0.4) = 0.79166...
    assert normalised_pauc(curve, 0.3).value == pytest.approx(0.095 / 0.12, abs=1e-15)
    # up to 1:    0.04 + 0.045 + 0.2 * 0.35 + 0.1 * 0.4 = 0.195; the last step holds to the end
    assert pauc(curve, 1).value == pytest.approx(0.195, abs=1e-15)
    # up to a step itself: 0.4 * 0.1; within the first step: 0.4 * 0.05
    assert pauc(curve, 0.1).value == pytest.approx(0.04, abs=1e-15)
    assert pauc(curve, 0.05).value == pytest.approx(0.02, abs=1e-15)


def _stepwise_by_loop(curve, limit):
    """Follow the steps one by one, as the field's reference script does."""
    area = 0.0
    for index, (start, error) in enumerate(zip(curve.discard_fractions, curve.errors, strict=True)):
        is_last = index + 1 == len(curve.errors)
        end = limit if is_last else min(curve.discard_fractions[index + 1], limit)
        area += error * max(0.0, end - start)
    return area


@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0.0, 0.3, 0.6, 0.9]), st.integers(0, 6)), min_size=1, max_size=50
    ),
    limit=st.floats(0.01, 1),
)
def test_pauc_equals_a_loop_over_the_steps(rows, limit):
    similarities, qualities = np.array(rows, dtype=np.float64).T
    curve = fnm_edc(Comparisons(similarities, qualities), 0.5)
    assert pauc(curve, limit).value == pytest.approx(_stepwise_by_loop(curve, limit), abs=1e-12)


def test_no_gain_is_one_and_an_oracle_is_below():
    similarities = np.repeat([0.0, 1.0], [20, 80])  # error(0) = 0.2
    useless = fnm_edc(Comparisons(similarities, np.zeros(100)), 0.5)
    oracle = fnm_edc(Comparisons(similarities, np.arange(100.0)), 0.5)
    for limit in (0.05, 0.2, 0.3, 0.95):
        assert normalised_pauc(useless, limit).value == pytest.approx(1, abs=1e-12)
        assert pauc(oracle, limit).value < pauc(useless, limit).value
    # The oracle's step curve sums (20 - j) / (100 - j) / 100 over the 20 steps to its first zero.
    exact = sum((20 - j) / (100 - j) / 100 for j in range(20))
    assert pauc(oracle, 0.3).value == pytest.approx(exact, abs=1e-12)


def test_discarding_the_best_first_is_worse_than_no_gain():
    similarities = np.repeat([0.0, 1.0], [20, 80])
    harmful = fnm_edc(Comparisons(similarities, -np.arange(100.0)), 0.5)
    assert normalised_pauc(harmful, 0.3).value > 1


def test_aoc_is_hand_computed():
    # A straight fall from 0.4 at 0 to 0 at 0.95: integral 0.4 * 0.95 / 2, so AOC = 1 - 0.475.
    falling = _curve(EVRC_DISCARD_FRACTIONS, 0.4 * (1 - EVRC_DISCARD_FRACTIONS / 0.95))
    assert aoc(falling).value == pytest.approx(0.525, abs=1e-12)
    # No gain: 1 - 0.95.
    assert aoc(_curve([0], [0.3])).value == pytest.approx(0.05, abs=1e-12)
    # Gone after the first 5 %: one trapezoid of 0.05 * (1 + 0) / 2 is left of the integral.
    at_once = _curve(EVRC_DISCARD_FRACTIONS, np.r_[0.3, np.zeros(19)])
    assert aoc(at_once).value == pytest.approx(1 - 0.025, abs=1e-12)


@pytest.mark.parametrize(
    ("initial_error", "printed", "plain", "divided"),
    [(2.9e-3, 0.7994, 0.9994, 0.788), (0.145, 0.625, 0.9456, 0.605), (0.186, 0.7225, 0.948, 0.708)],
    ids=["LFW", "Adience", "IJB-C"],
)
def test_aoc_is_the_definition_that_reproduces_the_papers_table(
    initial_error, printed, plain, divided
):
    # The paper's figure starts at FNMR 2.9e-3, 0.145, 0.186 (FMR 1e-3) and its table prints an AOC
    # of 0.7993, 0.6307, 0.7239; the area under the digitised curves, as a share of FNMR(0), is
    # 1 - 0.7994, 1 - 0.625, 1 - 0.7225. A curve of that start and area, shaped as a fall from 1 to
    # a floor f over the first step, has the share 0.025 * (1 - f) + 0.95 * f: solve it for f.
    floor = ((1 - printed) - 0.025) / 0.925
    curve = _curve(EVRC_DISCARD_FRACTIONS, initial_error * np.r_[1, np.full(19, floor)])
    assert aoc(curve).value == pytest.approx(printed, abs=1e-12)
    # What the other readings of "1 - AUC" would have printed: they are not the table's numbers.
    integral = (1 - aoc(curve).value) * initial_error
    assert 1 - integral == pytest.approx(plain, abs=5e-4)
    assert 1 - integral / initial_error / 0.95 == pytest.approx(divided, abs=1e-3)


def test_the_papers_gains_are_relative_to_the_runner_up():
    averages = {"LFW": (0.8284, 0.7993, 0.8170), "Adience": (0.5962, 0.6307, 0.5719)}
    assert np.mean(averages["LFW"]) == pytest.approx(0.8149, abs=5e-5)
    assert np.mean(averages["Adience"]) == pytest.approx(0.5996, abs=5e-5)
    assert np.mean(averages["LFW"]) / 0.7149 - 1 == pytest.approx(0.139, abs=1e-3)


def test_aoc_of_an_evrc_with_a_useful_quality_lies_between_no_gain_and_one():
    rng = np.random.default_rng(8)
    quality = rng.random(2000)
    mated = Comparisons(rng.normal(0.3 + 0.5 * quality, 0.2), quality)
    nonmated = Comparisons(rng.normal(0, 0.2, 2000), rng.random(2000))
    assert 0.3 < aoc(evrc(mated, nonmated, 0.01)).value < 1
    shuffled = Comparisons(mated.similarities, rng.permutation(quality))
    assert aoc(evrc(shuffled, nonmated, 0.01)).value == pytest.approx(0.05, abs=0.1)


def test_no_error_at_zero_discard_is_undefined_with_the_reason_and_without_a_warning():
    curve = _curve([0, 0.5], [0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for area in (normalised_pauc(curve, 0.3), aoc(curve)):
            assert math.isnan(area.value)
            assert "no false non-match at zero discard" in area.reason
    assert pauc(curve, 0.3).value == 0


def test_an_undefined_point_before_the_limit_makes_the_area_undefined_and_is_named():
    curve = _curve([0, 0.2, 0.85], [0.2, 0.1, np.nan])
    assert pauc(curve, 0.3).value == pytest.approx(0.05, abs=1e-15)
    assert pauc(curve, 0.85).value == pytest.approx(0.2 * 0.2 + 0.1 * 0.65, abs=1e-15)
    for area in (pauc(curve, 0.9), normalised_pauc(curve, 0.9), aoc(curve)):
        assert math.isnan(area.value)
        assert area.reason == "the error rate is undefined at discard fraction 0.85"


@pytest.mark.parametrize("limit", [0, -0.1, 1.01, math.nan])
def test_limits_out_of_range_are_refused(limit):
    with pytest.raises(ValueError, match=r"discard limit in \(0, 1\], got"):
        pauc(_curve([0], [0.1]), limit)


@pytest.mark.parametrize("error", [0.0, 0.003, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("limit", [0.05, 0.3, 0.95])
def test_best_area_is_the_integral_of_the_curve_that_knows_the_errors(error, limit):
    def remaining(discarded):
        return (error - discarded) / (1 - discarded) if discarded < error else 0.0

    expected, _ = quad(remaining, 0, limit, points=[min(error, limit)])
    assert best_pauc(_curve([0], [error]), limit).value == pytest.approx(expected, abs=1e-9)


def test_no_quality_is_better_than_the_best():
    rng = np.random.default_rng(0)
    similarities = rng.random(50_000)
    knows = fnm_edc(Comparisons(similarities, similarities), 0.2)
    best = best_pauc(knows, 0.3).value
    assert best <= pauc(knows, 0.3).value == pytest.approx(best, abs=1e-4)
    guesses = fnm_edc(Comparisons(similarities, similarities + rng.random(50_000)), 0.2)
    assert pauc(guesses, 0.3).value > best + 0.001


def test_best_area_of_an_undefined_curve():
    assert best_pauc(_curve([0], [math.nan]), 0.3).reason == (
        "the error rate is undefined at discard fraction 0"
    )
