import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from sdd_ray.core import wasserstein as module
from sdd_ray.core.wasserstein import (
    Comparisons,
    distribution_distances,
    merged_steps,
    wasserstein,
)


def ragged(num_rows: int, largest: int, seed: int) -> Comparisons:
    """Return 1 to `largest` similarities a row, in random order, some of them equal."""
    rng = np.random.default_rng(seed)
    row = np.repeat(np.arange(num_rows), rng.integers(1, largest + 1, num_rows))
    rng.shuffle(row)
    similarity = rng.uniform(-1, 1, len(row)).round(rng.integers(1, 4)).astype(np.float32)
    return Comparisons(row, similarity)


def test_equal_sizes_match_scipy():
    rng = np.random.default_rng(0)
    mated, nonmated = rng.uniform(-1, 1, (2, 40, 24)).astype(np.float32)
    expected = [wasserstein_distance(p, n) for p, n in zip(mated, nonmated, strict=True)]
    np.testing.assert_allclose(distribution_distances(mated, nonmated), expected, atol=1e-12)


def test_any_sizes_match_scipy():
    mated, nonmated = ragged(60, 9, 1), ragged(60, 50, 2)
    expected = [
        wasserstein_distance(
            mated.similarity[mated.row == row], nonmated.similarity[nonmated.row == row]
        )
        for row in range(60)
    ]
    np.testing.assert_allclose(wasserstein(mated, nonmated, 60), expected, atol=1e-12)


def test_both_ways_agree():
    rng = np.random.default_rng(3)
    mated, nonmated = rng.uniform(-1, 1, (2, 30, 12)).astype(np.float32)
    row = np.repeat(np.arange(30), 12)
    general = wasserstein(Comparisons(row, mated.ravel()), Comparisons(row, nonmated.ravel()), 30)
    np.testing.assert_allclose(general, distribution_distances(mated, nonmated), atol=1e-12)


def test_a_shift_costs_its_length():
    mated = ragged(20, 30, 4)
    shifted = Comparisons(mated.row, mated.similarity * np.float32(0.5) - np.float32(0.25))
    halved = Comparisons(mated.row, mated.similarity * np.float32(0.5))
    np.testing.assert_allclose(wasserstein(halved, shifted, 20), 0.25, atol=1e-6)


def test_order_of_comparisons_changes_no_bit():
    mated, nonmated = ragged(20, 30, 5), ragged(20, 30, 6)
    order = np.random.default_rng(7).permutation(len(nonmated.row))
    shuffled = Comparisons(nonmated.row[order], nonmated.similarity[order])
    np.testing.assert_array_equal(
        wasserstein(mated, shuffled, 20), wasserstein(mated, nonmated, 20)
    )


def test_chunks_change_no_bit(monkeypatch):
    mated, nonmated = ragged(20, 30, 8), ragged(20, 30, 9)
    whole = wasserstein(mated, nonmated, 20)
    monkeypatch.setattr(module, "MAX_STEPS", 7)
    np.testing.assert_array_equal(wasserstein(mated, nonmated, 20), whole)


def test_sorted_orders_signs_zeros_and_rows():
    similarity = np.float32([0.5, -0.5, 0.0, 1.0000001, -1, -1e-38, 0.25])
    row = np.array([1, 1, 1, 1, 1, 1, 0])
    ordered = Comparisons(row, similarity).sorted()
    assert ordered.row.tolist() == [0, 1, 1, 1, 1, 1, 1]
    expected = np.concatenate([similarity[6:], np.sort(similarity[:6])])
    np.testing.assert_array_equal(ordered.similarity, expected)


def test_steps_by_hand():
    zero, mated = np.zeros(2, np.int64), np.float32([0.0, 0.5])
    listed = Comparisons(np.zeros(1, np.int64), np.float32([0.25]))
    (steps,) = merged_steps(Comparisons(zero, mated), listed, np.array([4]))
    assert steps.width.tolist() == [0.25, 0.25, 0.5]
    assert steps.mated_cdf.tolist() == [0.5, 0.5, 1.0]
    assert steps.nonmated_cdf.tolist() == [0.75, 1.0, 1.0]


def test_equal_sizes_are_checked():
    with pytest.raises(ValueError, match=r"two \(R, M\) arrays with M >= 1, got \(2, 3\)"):
        distribution_distances(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="M >= 1"):
        distribution_distances(np.ones((2, 0), np.float32), np.ones((2, 0), np.float32))
