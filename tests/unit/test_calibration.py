import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from sdd_ray.core.calibration import QuantileMap, integer_quality

# As a network gives them: float32, whose neighbours are never too close for a slope in float64.
PREDICTIONS = hnp.arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)
).map(lambda raw: raw.astype(np.float64))


def test_quality_is_the_percentile_rank():
    raw = np.random.default_rng(0).normal(40, 7, 5000)
    quality = QuantileMap.fit(raw).apply(raw)
    expected = stats.percentileofscore(raw, raw)
    assert np.abs(quality - expected).max() < 0.5  # Linear between knots one percent apart.
    assert (quality.min(), quality.max()) == (0.0, 100.0)


@given(PREDICTIONS, PREDICTIONS)
def test_map_is_monotone_and_bounded(fitted, raw):
    raw = np.sort(raw)
    quality = QuantileMap.fit(fitted).apply(raw)
    assert (np.diff(quality) >= -1e-12).all()  # interpolation rounds its last digit
    assert quality.min() >= 0
    assert quality.max() <= 100


@given(PREDICTIONS)
def test_knots_increase_strictly(raw):
    fitted = QuantileMap.fit(raw)
    assert (np.diff(fitted.raw) > 0).all()
    assert (np.diff(fitted.quality) > 0).all()
    assert len(fitted.raw) <= 101


def test_ties_take_the_middle_of_their_percentiles():
    # Half of the predictions are 1, so percentiles 0 to 49 lie at 1 and 51 to 100 above.
    raw = np.concatenate([np.ones(500), np.linspace(2, 3, 500)])
    low = QuantileMap.fit(raw).apply(np.array([1.0]))[0]
    assert low == pytest.approx(24.5, abs=0.5)


def test_constant_predictions_map_to_fifty():
    fitted = QuantileMap.fit(np.full(9, 3.5))
    assert fitted.raw == (3.5,)
    assert fitted.apply(np.array([3.4, 3.5, 9.0])).tolist() == [50.0, 50.0, 50.0]


def test_predictions_that_are_not_finite_stay_visible():
    quality = QuantileMap.fit(np.arange(10.0)).apply(np.array([np.nan, np.inf, -np.inf, 4.5]))
    assert np.isnan(quality[:3]).all()
    assert quality[3] == 50.0
    assert integer_quality(quality).tolist() == [-1, -1, -1, 50]


@pytest.mark.parametrize("raw", [[], [1.0, np.nan], [[1.0]], [np.inf]])
def test_fit_refuses_what_has_no_percentiles(raw):
    with pytest.raises(ValueError, match=r"\(N,\) finite predictions"):
        QuantileMap.fit(np.array(raw))


def test_map_survives_json_exactly():
    fitted = QuantileMap.fit(np.random.default_rng(0).normal(size=333).astype(np.float32))
    again = QuantileMap.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"raw": [1]}, "expected the keys quality and raw"),
        ({"raw": [], "quality": []}, "at least one, got 0 and 0"),
        ({"raw": [1, 2], "quality": [0]}, "got 1 and 2"),
        ({"raw": [2, 1], "quality": [0, 100]}, "strictly increasing"),
        ({"raw": [1, 2], "quality": [5, 5]}, "strictly increasing"),
        ({"raw": [1, float("nan")], "quality": [0, 100]}, "strictly increasing"),
        ({"raw": [1, 2], "quality": [0, 101]}, r"in \[0, 100\]"),
        ({"raw": [1], "quality": [float("nan")]}, r"in \[0, 100\]"),
    ],
)
def test_damaged_maps_are_refused(description, message):
    with pytest.raises(ValueError, match=message):
        QuantileMap.from_dict(description)


def test_halves_round_up_and_values_are_clipped():
    quality = np.array([-5, 0.49, 0.5, 1.5, 2.5, 99.5, 101, np.inf, -np.inf])
    integers = integer_quality(quality)
    assert integers.dtype == np.int8
    assert integers.tolist() == [0, 0, 1, 2, 3, 100, 100, 100, 0]
