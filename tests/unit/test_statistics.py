"""Rank correlation against scipy, and where there is none."""

import numpy as np
import pytest
from scipy import stats

from sdd_ray.core.statistics import rank_correlation


def test_rank_correlation_against_scipy_and_its_edges():
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 9, (2, 50)).astype(np.float64)
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert rank_correlation(a, np.exp(a)) == pytest.approx(1.0)
    assert rank_correlation(a.astype(np.float32), -a) == pytest.approx(-1.0)
    for x, y in ((a, np.full(50, 3.0)), (np.zeros(50), b), (a[:1], b[:1])):
        assert np.isnan(rank_correlation(x, y))
