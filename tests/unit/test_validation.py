"""Validation figures: against scipy, in any order, with images that could not be read."""

import numpy as np
import pytest
import torch
from scipy import stats

from sdd_ray.core.losses import Loss
from sdd_ray.core.validation import validation_result


@pytest.fixture
def sides():
    rng = np.random.default_rng(3)
    targets = rng.uniform(0, 100, 60).astype(np.float32)
    return (targets + rng.normal(0, 12, 60)).astype(np.float32), targets


def test_figures_against_scipy_and_torch(sides):
    predicted, targets = sides
    found = validation_result(predicted, targets, Loss("huber", 2.0, ranking_weight=9.0))
    wanted = torch.nn.functional.huber_loss(
        torch.tensor(predicted), torch.tensor(targets), delta=2.0
    )
    assert found.loss == pytest.approx(wanted.item(), rel=1e-5)
    assert found.mae == pytest.approx(np.abs(predicted - targets).mean(), rel=1e-5)
    assert found.spearman == pytest.approx(stats.spearmanr(predicted, targets).statistic)
    assert found.kendall == pytest.approx(stats.kendalltau(predicted, targets).statistic)
    assert np.isnan(found.pauc)
    assert set(found.figures) == {"loss", "mae", "spearman", "kendall", "pauc"}


def test_images_that_could_not_be_read_are_left_out(sides):
    predicted, targets = sides
    gaps = predicted.copy()
    gaps[::4] = np.nan
    seen = []
    found = validation_result(gaps, targets, Loss(), lambda q: seen.append(q) or 0.5)
    kept = ~np.isnan(gaps)
    assert found.mae == validation_result(predicted[kept], targets[kept], Loss()).mae
    assert found.pauc == 0.5
    np.testing.assert_array_equal(seen[0], gaps)


def test_constant_predictions_rank_nothing(sides):
    found = validation_result(np.full(60, 5, np.float32), sides[1], Loss())
    assert np.isnan(found.spearman)
    assert np.isnan(found.kendall)


def test_without_any_image(sides):
    with pytest.raises(ValueError, match="at least one validation image that can be read"):
        validation_result(np.full(60, np.nan, np.float32), sides[1], Loss())
