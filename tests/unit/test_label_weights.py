"""Weights of labels: their laws, and each kind against its formula written out row by row."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sdd_ray.core.label_weights import HALF_WEIGHT_MATED, NEGLIGIBLE_ERROR, NUM_BINS, LabelWeights

TARGETS = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 100, width=32))
WEIGHTINGS = ["none", "num_mated", "error_bound"]


def fit(targets, balance=0.0, weighting="none", label_per_distance=200.0, **evidence):
    return LabelWeights.fit(
        targets, balance, weighting, label_per_distance=label_per_distance, **evidence
    )


@pytest.fixture
def rows():
    """Labels around 70, with their mated images and bounds in distance units."""
    rng = np.random.default_rng(0)
    targets = np.clip(rng.normal(70, 12, 3000), 0, 100).astype(np.float32)
    mated = rng.integers(1, 40, 3000)
    bounds = (rng.exponential(0.01, 3000)).astype(np.float32)
    return targets, {"num_mated": mated, "error_bound": bounds}


@given(TARGETS, st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(WEIGHTINGS), st.integers(0, 99))
def test_weights_are_positive_with_mean_one(targets, balance, weighting, seed):
    rng = np.random.default_rng(seed)
    mated = rng.integers(0, 9, len(targets))
    bounds = rng.choice([0, 1e-4, 0.3, 2, np.nan, np.inf], len(targets))
    evidence = {"num_mated": mated, "error_bound": bounds}
    weights = fit(targets, balance, weighting, **evidence).apply(targets, **evidence)
    assert weights.dtype == np.float32
    assert (weights > 0).all()
    assert weights.mean(dtype=np.float64) == pytest.approx(1, rel=1e-5)


def test_without_balance_and_weighting_all_labels_count_the_same(rows):
    targets, _ = rows
    np.testing.assert_array_equal(fit(targets).apply(targets), 1)


@pytest.mark.parametrize("balance", [0.3, 1.0])
def test_balance_against_the_smoothed_histogram_row_by_row(rows, balance):
    targets, _ = rows
    counts = np.histogram(targets, NUM_BINS, (0, 100))[0]
    wanted = []
    for target in targets:
        own = min(int(target // 5), 19)
        kernel = [math.exp(-((own - other) ** 2) / 2) for other in range(20)]
        wanted.append((np.dot(kernel, counts) / sum(kernel)) ** -balance)
    wanted = np.array(wanted) / np.mean(wanted)
    np.testing.assert_allclose(fit(targets, balance).apply(targets), wanted, rtol=1e-5)


def test_evenly_spread_labels_count_the_same_also_at_the_ends():
    targets = np.arange(0.5, 100, dtype=np.float32)
    np.testing.assert_allclose(fit(targets, 1.0).apply(targets), 1, rtol=1e-6)


def test_more_balance_lets_rare_labels_count_more(rows):
    targets, _ = rows
    weights = [fit(targets, b).apply(np.float32([20, 70])) for b in (0, 0.3, 0.6, 1)]
    ratios = [rare / common for rare, common in weights]
    assert ratios[0] == 1
    assert (np.diff(ratios) > 0.5).all()


def test_label_rarer_than_all_fitted_counts_as_the_rarest_of_them():
    targets = np.float32([60, 60, 60, 61, 62, 75])
    fitted = fit(targets, 1.0)
    rarest = fitted.apply(targets).max()
    assert fitted.apply(np.float32([0, 30, 100, 120, -3])).tolist() == [rarest] * 5


def test_mated_images_are_the_inverse_of_a_variance(rows):
    targets, evidence = rows
    variance = 1 + HALF_WEIGHT_MATED / evidence["num_mated"]
    wanted = (1 / variance) / (1 / variance).mean()
    found = fit(targets, 0.0, "num_mated", **evidence).apply(targets, **evidence)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_unknown_number_of_mated_images_counts_as_one():
    targets, mated = np.full(5, 50, np.float32), np.array([1, 0, np.nan, -4, 1e9])
    found = fit(targets, 0.0, "num_mated", num_mated=mated).apply(targets, mated)
    assert found[:4].tolist() == [found[0]] * 4
    assert found[4] / found[0] == pytest.approx(1 + HALF_WEIGHT_MATED)


def test_error_bounds_in_label_units(rows):
    targets, evidence = rows
    errors = evidence["error_bound"] * 200.0 / NEGLIGIBLE_ERROR
    wanted = 1 / (1 + errors**2)
    found = fit(targets, 0.0, "error_bound", **evidence).apply(targets, **evidence)
    np.testing.assert_allclose(found, wanted / wanted.mean(), rtol=1e-4)


def test_bound_of_one_label_unit_halves_and_unknown_is_exact():
    targets = np.full(4, 50, np.float32)
    bounds = np.array([0.0, 0.02, np.nan, -1.0])
    fitted = fit(targets, 0.0, "error_bound", 50.0, error_bound=bounds)
    found = fitted.apply(targets, error_bound=bounds)
    np.testing.assert_allclose(found / found[0], [1, 0.5, 1, 1], rtol=1e-6)


def test_balance_and_weighting_multiply(rows):
    targets, evidence = rows
    both = fit(targets, 0.5, "num_mated", **evidence).apply(targets, **evidence)
    apart = fit(targets, 0.5).apply(targets).astype(np.float64)
    apart *= fit(targets, 0.0, "num_mated", **evidence).apply(targets, **evidence)
    np.testing.assert_allclose(both, apart / apart.mean(), rtol=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weight_of_a_row_does_not_depend_on_the_rows_beside_it(rows, weighting):
    targets, evidence = rows
    fitted = pickle.loads(pickle.dumps(fit(targets, 0.7, weighting, **evidence)))  # noqa: S301
    whole = fitted.apply(targets, **evidence)
    part = {name: values[5:9] for name, values in evidence.items()}
    np.testing.assert_array_equal(fitted.apply(targets[5:9], **part), whole[5:9])
    assert len(fitted.apply(targets[:0], **{k: v[:0] for k, v in evidence.items()})) == 0


def test_order_of_the_fitted_rows_is_of_no_effect(rows):
    targets, _ = rows
    fitted, turned = fit(targets, 1.0), fit(targets[::-1], 1.0)
    assert fitted.density == turned.density
    assert fitted.scale == pytest.approx(turned.scale)


@pytest.mark.parametrize("weighting", ["num_mated", "error_bound"])
def test_missing_evidence_is_named(rows, weighting):
    targets, evidence = rows
    with pytest.raises(ValueError, match=f"expected {weighting}, which these weights"):
        fit(targets, 0.0, weighting)
    with pytest.raises(ValueError, match=f"expected {weighting}, which these weights"):
        fit(targets, 0.0, weighting, **evidence).apply(targets)


def test_labels_that_are_none():
    with pytest.raises(ValueError, match="at least one label"):
        fit(np.empty(0, np.float32))
    with pytest.raises(ValueError, match="finite labels, got 2 of 3"):
        fit(np.float32([np.nan, 1, np.inf]))
