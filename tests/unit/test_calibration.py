import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from sdd_ray.core.calibration import (
    QuantileMap,
    SigmoidMap,
    calibration_from_dict,
    integer_quality,
)
from sdd_ray.core.models import Architecture, QualityArchitecture, build_quality
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.store.location import Location
from sdd_ray.store.model_folder import QualityModel, load_model, save_model

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


@pytest.mark.parametrize("kind", [QuantileMap, SigmoidMap])
@given(PREDICTIONS, PREDICTIONS)
def test_map_is_monotone_and_bounded(kind, fitted, raw):
    raw = np.sort(raw)
    quality = kind.fit(fitted).apply(raw)
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


def test_quartiles_of_symmetric_predictions_lie_at_25_50_and_75():
    raw = np.linspace(-3, 11, 41)
    fitted = SigmoidMap.fit(raw)
    quartiles = np.percentile(raw, [25, 50, 75])
    np.testing.assert_allclose(fitted.apply(quartiles), [25, 50, 75])
    np.testing.assert_allclose(fitted.apply(8 - raw), 100 - fitted.apply(raw), atol=1e-9)


def test_sigmoid_against_the_logistic_distribution():
    fitted = SigmoidMap.fit(np.random.default_rng(0).gamma(2, 3, 999))
    raw = np.linspace(-50, 80, 200)
    wanted = 100 * stats.logistic.cdf(raw, fitted.centre, fitted.scale)
    np.testing.assert_allclose(fitted.apply(raw), wanted)


def test_median_of_skewed_predictions_is_50_and_their_quartiles_keep_their_distance():
    raw = np.random.default_rng(0).gamma(2, 3, 999)
    low, middle, high = np.percentile(raw, [25, 50, 75])
    fitted = SigmoidMap.fit(raw)
    quality = fitted.apply(np.array([low, middle, high, middle - (high - low) / 2]))
    assert quality[1] == 50
    assert quality[3] == pytest.approx(25)
    log_odds = np.log(quality / (100 - quality))
    assert log_odds[2] - log_odds[0] == pytest.approx(2 * np.log(3))


@given(PREDICTIONS, st.floats(0.01, 100), st.floats(-1e3, 1e3))
def test_sigmoid_does_not_depend_on_units_and_origin_of_predictions(raw, factor, shift):
    low, high = np.percentile(raw, [25, 75])
    assume(high - low > 1e-3 * max(1, np.abs(raw).max()))
    other = SigmoidMap.fit(factor * raw + shift)
    found = other.apply(factor * raw + shift)
    np.testing.assert_allclose(found, SigmoidMap.fit(raw).apply(raw), rtol=0, atol=1e-4)


@pytest.mark.parametrize("raw", [[3.5] * 9, [3.5], [-900, 3.5, 3.5, 3.5, 3.5, 900]])
def test_quartiles_that_are_one_value_have_a_scale_of_one(raw):
    assert SigmoidMap.fit(np.array(raw)) == SigmoidMap(3.5, 1.0)


def test_sigmoid_tells_apart_what_lies_beyond_all_predictions_and_ends_at_0_and_100():
    fitted = SigmoidMap.fit(np.arange(10.0))
    assert (np.diff(fitted.apply(np.arange(-20, 30.0))) > 0).all()
    assert fitted.apply(np.array([-1e9, 1e9])).tolist() == [0.0, 100.0]
    assert SigmoidMap(0.0, 5e-324).apply(np.array([-1.0, 0.0, 1.0])).tolist() == [0, 50, 100]


@pytest.mark.parametrize("kind", [QuantileMap, SigmoidMap])
def test_predictions_that_are_not_finite_stay_visible(kind):
    quality = kind.fit(np.arange(10.0)).apply(np.array([np.nan, np.inf, -np.inf, 4.5]))
    assert np.isnan(quality[:3]).all()
    assert quality[3] == 50.0
    assert integer_quality(quality).tolist() == [-1, -1, -1, 50]


@pytest.mark.parametrize("kind", [QuantileMap, SigmoidMap])
@pytest.mark.parametrize("raw", [[], [1.0, np.nan], [[1.0]], [np.inf]])
def test_fit_refuses_what_has_no_percentiles(kind, raw):
    with pytest.raises(ValueError, match=r"\(N,\) finite predictions"):
        kind.fit(np.array(raw))


@pytest.mark.parametrize("kind", [QuantileMap, SigmoidMap])
def test_map_survives_json_exactly(kind):
    fitted = kind.fit(np.random.default_rng(0).normal(size=333).astype(np.float32))
    again = calibration_from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted


def test_description_of_an_older_model_is_a_quantile_map():
    description = {"raw": [1.0, 2.0], "quality": [0.0, 100.0]}
    assert calibration_from_dict(description) == QuantileMap((1.0, 2.0), (0.0, 100.0))


@pytest.mark.parametrize(
    "description",
    [
        {"raw": [1.0, 2.0], "quality": [0.0, 100.0]},
        {"kind": "quantile", "raw": [1.0, 2.0], "quality": [0.0, 100.0]},
        {"kind": "sigmoid", "centre": 40.0, "scale": 7.0},
    ],
)
def test_model_folders_of_all_ages_and_kinds_open(tmp_path, description):
    architecture = QualityArchitecture(Architecture(width=0.25, input_size=(32, 32)), "average")
    given = calibration_from_dict(description)
    preprocessing = Preprocessing(height=32, width=32)
    model = QualityModel(build_quality(architecture), architecture, preprocessing, given)
    save_model(Location(str(tmp_path)), model)
    written = json.loads((tmp_path / "model.json").read_text())
    assert written["calibration"] == given.to_dict()
    written["calibration"] = description
    (tmp_path / "model.json").write_text(json.dumps(written))
    assert load_model(Location(str(tmp_path))).calibration == given


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
        ({"kind": "quantile", "raw": [1]}, r"keys quality and raw, got \['raw'\]"),
        ({"kind": "sigmoid", "raw": [1], "quality": [2]}, "expected the keys centre and scale"),
        ({"kind": "sigmoid", "centre": 1}, "expected the keys centre and scale"),
        ({"kind": "sigmoid", "centre": 1, "scale": 0}, "finite scale > 0"),
        ({"kind": "sigmoid", "centre": 1, "scale": float("inf")}, "finite scale > 0"),
        ({"kind": "sigmoid", "centre": float("nan"), "scale": 1}, "finite centre"),
        ({"kind": "isotonic"}, "kind quantile or sigmoid, got 'isotonic'"),
        ({"kind": None}, "kind quantile or sigmoid, got None"),
    ],
)
def test_damaged_maps_are_refused(description, message):
    with pytest.raises(ValueError, match=message):
        calibration_from_dict(description)


def test_halves_round_up_and_values_are_clipped():
    quality = np.array([-5, 0.49, 0.5, 1.5, 2.5, 99.5, 101, np.inf, -np.inf])
    integers = integer_quality(quality)
    assert integers.dtype == np.int8
    assert integers.tolist() == [0, 0, 1, 2, 3, 100, 100, 100, 0]
