import json

import numpy as np
import pytest
from scipy.stats import rankdata

from sdd_ray.core.pseudo_label import DistanceSummary, LabelScale, fit_scale

DISTANCES = np.random.default_rng(0).beta(4, 6, 3000)


def fit(distances, method="min_max") -> LabelScale:
    return fit_scale(DistanceSummary.of(np.asarray(distances, np.float64)), method)


def test_min_max_is_the_papers():
    labels = fit(DISTANCES).apply(DISTANCES)
    expected = 100 * (DISTANCES - DISTANCES.min()) / (DISTANCES.max() - DISTANCES.min())
    np.testing.assert_allclose(labels, expected, atol=1e-9)
    assert labels.min() == 0
    assert labels.max() == 100


def test_quantile_is_the_rank_in_percent():
    labels = fit(DISTANCES, "quantile").apply(DISTANCES)
    expected = 100 * (rankdata(DISTANCES) - 1) / (len(DISTANCES) - 1)
    np.testing.assert_allclose(labels, expected, atol=1.0)
    assert labels.min() == 0
    assert labels.max() == 100
    assert (np.argsort(labels, kind="stable") == np.argsort(DISTANCES, kind="stable")).all()


def test_none_is_the_distance():
    np.testing.assert_array_equal(fit(DISTANCES, "none").apply(DISTANCES), DISTANCES)
    assert fit([np.nan], "none").apply(np.array([0.5])).tolist() == [0.5]


@pytest.mark.parametrize("method", ["min_max", "quantile"])
def test_equal_distances_give_fifty(method):
    labels = fit([0.3, 0.3, 0.3], method).apply(np.array([0.3, np.nan]))
    assert labels[0] == 50
    assert np.isnan(labels[1])


@pytest.mark.parametrize("method", ["min_max", "quantile", "none"])
def test_larger_distances_never_get_smaller_labels_and_nan_stays(method):
    labels = fit(DISTANCES, method).apply(np.append(np.sort(DISTANCES), [np.nan, 2.0]))
    assert (np.diff(labels[:-2]) >= 0).all()
    assert np.isnan(labels[-2])
    assert labels[-1] == (2.0 if method == "none" else 100.0)


@pytest.mark.parametrize("method", ["min_max", "quantile"])
def test_shards_in_any_order_give_the_scale_of_the_whole(method):
    parts = [DistanceSummary.of(part) for part in np.array_split(DISTANCES, 7)]
    parts.insert(3, DistanceSummary.of(np.array([np.nan])))
    merged = parts[0]
    for part in reversed(parts[1:]):
        merged = merged.merge(part)
    assert fit_scale(merged, method) == fit(DISTANCES, method)


def test_scale_goes_through_json():
    scale = fit(DISTANCES, "quantile")
    stored = json.loads(json.dumps(scale.to_dict()))
    assert LabelScale(stored["method"], tuple(stored["knots"])) == scale


def test_edges_of_the_range_are_counted():
    summary = DistanceSummary.of(np.array([0.0, -1e-9, 2.0, 2.0 + 1e-9]))
    assert summary.counts[[0, -1]].tolist() == [2, 2]


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="at least one labelled image, got none"):
        fit([np.nan])
    with pytest.raises(ValueError, match=r"distances in \[0, 2\], got some from 0.5 to 80.0"):
        DistanceSummary.of(np.array([0.5, 80.0]))
    with pytest.raises(ValueError, match=r"expected a method of .* got 'rank'"):
        fit(DISTANCES, "rank")
