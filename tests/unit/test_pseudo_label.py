import json

import numpy as np
import pytest
from scipy.stats import rankdata

from sdd_ray.core.pseudo_label import NUM_KNOTS, LabelScale, fit_scale

DISTANCES = np.random.default_rng(0).beta(4, 6, 3000)


def fit(distances, method="min_max") -> LabelScale:
    return fit_scale(np.asarray(distances, np.float64), method)


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


@pytest.mark.parametrize("method", ["min_max", "quantile", "none"])
def test_order_and_images_without_a_label_do_not_matter(method):
    some = np.insert(DISTANCES, [0, 7, 3000], np.nan)
    shuffled = np.random.default_rng(1).permutation(some)
    assert fit(some, method) == fit(shuffled, method) == fit(DISTANCES, method)


def test_knots_are_the_quantiles():
    scale = fit(DISTANCES, "quantile")
    assert len(scale.knots) == NUM_KNOTS == 101
    wanted = np.quantile(DISTANCES, np.arange(101) / 100)
    np.testing.assert_allclose(scale.knots, wanted, rtol=1e-12)
    assert fit(DISTANCES).knots == (DISTANCES.min(), DISTANCES.max())
    np.testing.assert_allclose(scale.apply(np.array(scale.knots)), np.arange(101), atol=1e-9)


@pytest.mark.parametrize("method", ["min_max", "quantile"])
def test_values_of_any_size_and_sign_are_scaled(method):
    """Such as the change of an error when an image leaves, about 1e-6 and of either sign."""
    values = (DISTANCES - 0.4) * -3e-6
    labels = fit(values, method).apply(values)
    wanted = 100 - fit(DISTANCES, method).apply(DISTANCES)
    np.testing.assert_allclose(labels, wanted, atol=1e-6)


@pytest.mark.parametrize("method", ["min_max", "quantile"])
def test_two_values(method):
    labels = fit([0.2, np.nan, 0.6], method).apply(np.array([0.2, 0.3, 0.6, -1.0, 9.0]))
    np.testing.assert_allclose(labels, [0, 25, 100, 0, 100], atol=1e-9)


@pytest.mark.parametrize("method", ["min_max", "quantile"])
def test_many_equal_values_keep_one_label(method):
    values = np.repeat([0.1, 0.5, 0.9], [10, 80, 10])
    labels = fit(values, method).apply(values)
    assert len(set(labels.tolist())) == 3
    assert labels[0] < labels[50] < labels[-1] == 100


def test_scale_goes_through_json():
    scale = fit(DISTANCES, "quantile")
    stored = json.loads(json.dumps(scale.to_dict()))
    assert LabelScale(stored["method"], tuple(stored["knots"])) == scale


@pytest.mark.parametrize("method", ["min_max", "quantile"])
@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_nothing_labelled_is_an_error(values, method):
    with pytest.raises(ValueError, match="at least one labelled image, got none"):
        fit(values, method)


def test_unknown_method_is_an_error():
    with pytest.raises(ValueError, match=r"expected a method of .* got 'rank'"):
        fit(DISTANCES, "rank")
