from functools import reduce

import numpy as np
import pytest
from embedding_sets import SETS, clean, collinear

from sdd_ray.core.moments import SUM_TILE, EmbeddingSums, partial_sums


def merged(parts) -> EmbeddingSums:
    return reduce(EmbeddingSums.merge, [partial_sums(part) for part in parts])


def test_partial_sums_match_float64():
    unit = np.random.default_rng(0).normal(size=(SUM_TILE + 37, 9)).astype(np.float32)
    sums = partial_sums(unit)
    exact = unit.astype(np.float64)
    assert sums.count == len(unit)
    np.testing.assert_allclose(sums.total, exact.sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(sums.mean, exact.mean(axis=0), rtol=1e-12)
    scale = np.diag(exact.T @ exact).max()
    np.testing.assert_allclose(sums.second_moment, exact.T @ exact, atol=2e-6 * scale)
    np.testing.assert_allclose(sums.second_moment, sums.second_moment.T, rtol=1e-12)


def test_what_is_rounded_is_the_spread_of_the_rows():
    """Rows far from the origin and near each other keep their covariance."""
    unit, _ = collinear()
    sums = partial_sums(unit)
    exact = np.cov(unit.astype(np.float64), rowvar=False, bias=True)
    found = sums.second_moment / sums.count - np.outer(sums.mean, sums.mean)
    assert np.abs(exact).max() < 1e-5 < sums.second_moment.max()
    np.testing.assert_allclose(found, exact, atol=1e-6 * np.abs(exact).max())


def test_shards_add_up_to_the_whole():
    unit, _ = clean()
    whole = partial_sums(unit)
    parts = merged(np.array_split(unit, 7))
    assert parts.count == whole.count
    np.testing.assert_allclose(parts.total, whole.total, atol=1e-12)
    np.testing.assert_allclose(parts.second_moment, whole.second_moment, atol=1e-5)


def test_equal_parts_in_equal_order_give_equal_bits():
    unit, _ = clean()
    first, second = (merged(np.array_split(unit, 5)) for _ in range(2))
    assert first.total.tobytes() == second.total.tobytes()
    assert first.second_moment.tobytes() == second.second_moment.tobytes()


def test_rows_moved_in_memory_change_no_bit():
    unit, _ = clean()
    buffer = np.empty(unit.size + 5, np.float32)
    moved = buffer[5:].reshape(unit.shape)
    moved[:] = unit
    assert partial_sums(moved).second_moment.tobytes() == partial_sums(unit).second_moment.tobytes()
    assert partial_sums(moved).variances(moved).tobytes() == (
        partial_sums(unit).variances(unit).tobytes()
    )


def test_empty_is_neutral():
    sums = partial_sums(clean()[0])
    both = EmbeddingSums.empty(64).merge(sums)
    assert both.count == sums.count
    np.testing.assert_array_equal(both.total, sums.total)
    assert EmbeddingSums.empty(64).mean.tolist() == [0.0] * 64


@pytest.mark.parametrize("name", SETS)
def test_variances_match_brute_force(name):
    unit, _ = SETS[name]()
    exact = (unit.astype(np.float64) @ unit.astype(np.float64).T).var(axis=1)
    np.testing.assert_allclose(partial_sums(unit).variances(unit), exact, rtol=2e-6, atol=1e-13)


def test_variances_of_rows_that_are_not_of_the_set():
    unit, _ = clean()
    other = unit[::-1][:50]
    exact = (other.astype(np.float64) @ unit[:200].astype(np.float64).T).var(axis=1)
    np.testing.assert_allclose(partial_sums(unit[:200]).variances(other), exact, rtol=2e-6)


@pytest.mark.parametrize(("number", "size"), [(300, 300), (5, 200), (1, 3), (2, 2)])
def test_variances_of_wide_and_of_few_embeddings(number, size):
    """More numbers than fit one block of the factor; fewer rows than numbers: singular."""
    rng = np.random.default_rng(number)
    unit = rng.standard_normal((number, size))
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    exact = (unit.astype(np.float64) @ unit.astype(np.float64).T).var(axis=1)
    np.testing.assert_allclose(partial_sums(unit).variances(unit), exact, rtol=1e-5, atol=1e-11)


def test_equal_rows_have_no_variance():
    unit = np.repeat(clean()[0][:1], 40, axis=0)
    found = partial_sums(unit).variances(unit)
    assert (found >= 0).all()
    assert found.max() < 1e-12


def test_sums_must_fit():
    with pytest.raises(ValueError, match="embeddings of one size, got 3 and 4"):
        EmbeddingSums.empty(3).merge(EmbeddingSums.empty(4))
