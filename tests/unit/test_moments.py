from itertools import pairwise

import numpy as np
import pytest
from embedding_sets import clean

from sdd_ray.core.moments import (
    SUM_TILE,
    EmbeddingSums,
    identity_totals,
    partial_sums,
    sum_of,
)


def test_partial_sums_match_float64():
    unit = np.random.default_rng(0).normal(size=(SUM_TILE + 37, 9)).astype(np.float32)
    sums = partial_sums(unit)
    exact = unit.astype(np.float64)
    assert sums.count == len(unit)
    np.testing.assert_allclose(sums.total, exact.sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(sums.second_moment, exact.T @ exact, rtol=1e-12)


def test_shards_add_up_to_the_whole():
    unit, _ = clean()
    whole = partial_sums(unit)
    parts = sum_of(partial_sums(part) for part in np.array_split(unit, 7))
    assert parts.count == whole.count
    np.testing.assert_allclose(parts.total, whole.total, atol=1e-12)
    np.testing.assert_allclose(parts.second_moment, whole.second_moment, atol=1e-12)


def test_equal_parts_in_equal_order_give_equal_bits():
    unit, _ = clean()
    first, second = (
        sum_of([partial_sums(part) for part in np.array_split(unit, 5)]) for _ in range(2)
    )
    assert first.total.tobytes() == second.total.tobytes()
    assert first.second_moment.tobytes() == second.second_moment.tobytes()


def test_empty_is_neutral():
    sums = partial_sums(clean()[0])
    merged = EmbeddingSums.empty(64).merge(sums)
    assert merged.count == sums.count
    np.testing.assert_array_equal(merged.total, sums.total)


def test_identity_totals_match_a_loop():
    unit, _ = clean()
    starts = np.array([0, 1, 40, 41, len(unit)])
    totals = identity_totals(unit, starts)
    exact = [unit[a:b].astype(np.float64).sum(axis=0) for a, b in pairwise(starts)]
    np.testing.assert_allclose(totals, exact, atol=1e-13)
    assert totals.dtype == np.float64


def test_sums_must_fit():
    with pytest.raises(ValueError, match="embeddings of one size, got 3 and 4"):
        EmbeddingSums.empty(3).merge(EmbeddingSums.empty(4))
    with pytest.raises(ValueError, match="at least one shard, got none"):
        sum_of([])
