"""Losses against torch, the ranking term against pairs counted one by one, and laws of weights."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from sdd_ray.core.losses import RANKING_SCALE, Loss, ranking_loss

TORCH = {
    "huber": lambda p, t: functional.huber_loss(p, t, delta=2.5),
    "l1": functional.l1_loss,
    "l2": lambda p, t: functional.mse_loss(p, t) / 2,
}
LOSSES = [
    Loss("huber", 2.5),
    Loss("l1"),
    Loss("l2"),
    Loss("huber", 2.5, ranking_weight=3.0),
]


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 12, 40) * 8.0  # some labels are equal
    predicted = targets + rng.normal(0, 6, 40)
    weights = rng.uniform(0.1, 3, 40)
    predicted, targets, weights = (torch.tensor(v).float() for v in (predicted, targets, weights))
    return predicted.requires_grad_(), targets, weights


def ranked(predicted, targets, weights):
    """The ranking term by its definition: a logistic regression on the order of each pair."""
    total = share = 0.0
    for (p, t, w), (q, u, v) in itertools.combinations(
        zip(predicted.tolist(), targets.tolist(), weights.tolist(), strict=True), 2
    ):
        if t != u:
            gap = (p - q) if t > u else (q - p)
            total += w * v * math.log1p(math.exp(-gap / RANKING_SCALE))
            share += w * v
    return total / share


@pytest.mark.parametrize("kind", TORCH)
def test_equal_weights_are_the_mean_of_torch(batch, kind):
    predicted, targets, weights = batch
    found = Loss(kind, 2.5)(predicted, targets, torch.full_like(weights, 0.3))
    wanted = TORCH[kind](predicted, targets)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, predicted)[0] for loss in (found, wanted))
    )


def test_huber_is_squared_before_its_bend_and_linear_after():
    targets, one = torch.zeros(1), torch.ones(1)
    for gap, wanted in [(0.0, 0.0), (1.0, 0.5), (2.0, 2.0), (-5.0, 2 * 5 - 2), (50.0, 98.0)]:
        assert Loss("huber", 2.0)(torch.tensor([gap]), targets, one) == wanted


@pytest.mark.parametrize("kind", TORCH)
def test_whole_number_weights_are_images_given_more_than_once(batch, kind):
    predicted, targets, _ = batch
    times = torch.arange(40) % 4
    again = [v.repeat_interleave(times) for v in (predicted, targets)]
    torch.testing.assert_close(
        Loss(kind, 2.5)(predicted, targets, times.float()),
        Loss(kind, 2.5)(*again, torch.ones(int(times.sum()))),
    )


def test_ranking_against_all_pairs_one_by_one(batch):
    assert ranking_loss(*batch).item() == pytest.approx(ranked(*batch), rel=1e-5)
    found = Loss("l1", ranking_weight=0.7)(*batch)
    wanted = Loss("l1")(*batch).item() + 0.7 * ranked(*batch)
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_ranking_of_two_is_the_cross_entropy_of_their_order():
    predicted = torch.tensor([12.0, 5.0])
    for targets, order in [([3.0, 1.0], 1.0), ([1.0, 3.0], 0.0)]:
        wanted = functional.binary_cross_entropy_with_logits(
            (predicted[0] - predicted[1]) / RANKING_SCALE, torch.tensor(order)
        )
        torch.testing.assert_close(
            ranking_loss(predicted, torch.tensor(targets), torch.ones(2)), wanted
        )


def test_ranking_knows_differences_alone_and_wants_the_better_image_higher(batch):
    predicted, targets, weights = batch
    torch.testing.assert_close(
        ranking_loss(predicted + 25, targets, weights), ranking_loss(predicted, targets, weights)
    )
    pair = torch.tensor([50.0, 50.0], requires_grad=True)
    ranking_loss(pair, torch.tensor([80.0, 20.0]), torch.ones(2)).backward()
    assert pair.grad[0] < 0 < pair.grad[1]


@pytest.mark.parametrize("loss", LOSSES)
def test_scale_of_the_weights_and_order_of_the_images_are_of_no_effect(batch, loss):
    predicted, targets, weights = batch
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    wanted = loss(predicted, targets, weights)
    torch.testing.assert_close(loss(predicted, targets, weights * 64), wanted)
    torch.testing.assert_close(loss(predicted[order], targets[order], weights[order]), wanted)


@pytest.mark.parametrize("loss", LOSSES)
def test_images_without_weight_are_as_if_they_were_not_there(batch, loss):
    predicted, targets, weights = batch
    weights[10:20] = 0
    kept = torch.cat([torch.arange(10), torch.arange(20, 40)])
    found = loss(predicted, targets, weights)
    torch.testing.assert_close(found, loss(predicted[kept], targets[kept], weights[kept]))
    [gradient] = torch.autograd.grad(found, predicted)
    assert (gradient[10:20] == 0).all()
    assert (gradient[kept] != 0).any()


@pytest.mark.parametrize("loss", LOSSES)
def test_batch_without_any_weight_is_zero_with_a_gradient(batch, loss):
    predicted, targets, weights = batch
    found = loss(predicted, targets, torch.zeros_like(weights))
    found.backward()
    assert found == 0
    assert (predicted.grad == 0).all()


@pytest.mark.parametrize(("targets", "number"), [([7.0, 7.0, 7.0], 3), ([7.0], 1)])
def test_ranking_without_pairs_is_zero_with_a_gradient(targets, number):
    predicted = torch.arange(float(number), requires_grad=True)
    found = ranking_loss(predicted, torch.tensor(targets), torch.ones(number))
    found.backward()
    assert found == 0
    assert (predicted.grad == 0).all()


def test_ranking_stays_finite_for_predictions_far_off():
    predicted = torch.tensor([-1e6, 1e6], requires_grad=True)
    found = ranking_loss(predicted, torch.tensor([100.0, 0.0]), torch.ones(2))
    found.backward()
    assert found.item() == pytest.approx(2e6 / RANKING_SCALE)
    assert predicted.grad.tolist() == pytest.approx([-1 / RANKING_SCALE, 1 / RANKING_SCALE])


@pytest.mark.parametrize("loss", LOSSES)
def test_prediction_that_is_no_number_is_seen(batch, loss):
    predicted, targets, weights = batch
    broken = predicted.detach().clone()
    broken[3] = torch.nan
    assert loss(broken, targets, weights).isnan()
