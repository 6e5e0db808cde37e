"""Fitting: resumed training equals unbroken training, and the figures of a validation pass."""

import copy
import io

import numpy as np
import pytest
import torch
from scipy import stats

from sdd_ray.core.fitting import Fitter, Recipe, predict
from sdd_ray.core.preprocess import Preprocessing

RECIPE = Recipe(
    learning_rate=0.05,
    weight_decay=1e-4,
    milestones=(1, 4),
    decay=0.1,
    huber_zeta=1.0,
    flip=True,
    seed=5,
)


class Tiny(torch.nn.Module):
    """Two numbers an image and a line through them; sees left and right apart."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(6, 1)

    def forward(self, x):
        return self.line(torch.nn.functional.adaptive_avg_pool2d(x, (1, 2)).flatten(1)).squeeze(1)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Tiny()


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 8, 8, 3)).astype(np.uint8)
    targets = (images[:, :, :4].mean((1, 2, 3)) / 2.55).astype(np.float32)
    return [(images[i : i + 8], targets[i : i + 8]) for i in (0, 8, 16)]


def fitter(network, **changes):
    recipe = Recipe(**{**RECIPE.__dict__, **changes})
    return Fitter(network, Preprocessing(height=8, width=8), recipe, torch.device("cpu"))


def test_steps_report_images_and_loss_and_the_loss_falls(network, batches):
    fit = fitter(network, milestones=(50,), flip=False)
    losses = [list(fit.train_epoch(batches, epoch)) for epoch in range(20)]
    assert [count for count, _ in losses[0]] == [8, 8, 8]
    assert losses[-1][0][1] < losses[0][0][1]


def test_first_step_against_adam_by_hand(network, batches):
    before = copy.deepcopy(network)
    fit = fitter(network, flip=False, weight_decay=0.0)
    images, targets = batches[0]
    [(_, loss)] = fit.train_epoch(batches[:1], epoch=0)
    inputs = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127.5) / 127.5
    gap = (before(inputs) - torch.from_numpy(targets)).abs()
    wanted = torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    wanted.backward()
    gradient = before.line.weight.grad
    # The first step of Adam is the sign of the gradient, all but eps.
    step = 0.05 * gradient / (gradient.abs() + 1e-6)
    torch.testing.assert_close(network.line.weight, before.line.weight - step)


def test_going_on_from_a_state_equals_unbroken_training(network, batches):
    start = copy.deepcopy(network.state_dict())
    whole = fitter(network)
    unbroken = [list(whole.train_epoch(batches, epoch)) for epoch in range(6)]
    end = copy.deepcopy(network.state_dict())

    network.load_state_dict(start)
    first = fitter(network)
    for epoch in range(2):
        assert list(first.train_epoch(batches, epoch)) == unbroken[epoch]
    saved = io.BytesIO()
    torch.save({"network": network.state_dict(), **first.state()}, saved)
    saved.seek(0)

    state = torch.load(saved, weights_only=True)
    torch.manual_seed(99)
    other = Tiny()
    other.load_state_dict(state["network"])
    second = fitter(other)
    second.load_state(state)
    for epoch in range(2, 6):
        assert list(second.train_epoch(batches, epoch)) == unbroken[epoch]
    for name, values in other.state_dict().items():
        assert torch.equal(values, end[name])


def test_learning_rate_falls_after_the_milestones(network, batches):
    fit = fitter(network)
    rates = []
    for epoch in range(5):
        rates.append(fit.state()["optimiser"]["param_groups"][0]["lr"])
        list(fit.train_epoch(batches, epoch))
    assert rates == pytest.approx([0.05, 0.005, 0.005, 0.005, 0.0005])


def test_mirroring_depends_on_seed_epoch_and_rank_alone(batches):
    def losses(epoch=0, rank=0, **changes):
        torch.manual_seed(0)
        fit = fitter(Tiny(), learning_rate=1e-12, **changes)
        return [loss for _, loss in fit.train_epoch(batches, epoch, rank)]

    assert losses() == losses()
    others = [losses(epoch=1), losses(rank=1), losses(seed=6), losses(flip=False)]
    assert all(other != losses() for other in others)
    assert losses(epoch=1, flip=False) == losses(flip=False)


def test_mirrored_images_are_whole_images_from_right_to_left(batches):
    seen = []

    class Spy(Tiny):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    images, _ = batches[0]
    list(fitter(Spy()).train_epoch(batches[:1], epoch=0))
    plain = Preprocessing(height=8, width=8).apply(images)
    mirrored = [
        not np.array_equal(got, kept) for got, kept in zip(seen[0].numpy(), plain, strict=True)
    ]
    assert 0 < sum(mirrored) < len(images)
    for got, kept, flipped in zip(seen[0].numpy(), plain, mirrored, strict=True):
        np.testing.assert_array_equal(got, kept[:, :, ::-1] if flipped else kept)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_loss_that_is_no_number(network, batches, bad):
    before = copy.deepcopy(network.state_dict())
    images, targets = batches[0]
    broken = [(images, np.full_like(targets, bad))]
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at epoch 4, step 1: lower the"):
        list(fitter(network).train_epoch(broken, epoch=3))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_validation_figures(network, batches):
    result, predicted = fitter(network).validate(batches)
    images = np.concatenate([x for x, _ in batches])
    targets = np.concatenate([y for _, y in batches]).astype(np.float64)
    inputs = torch.from_numpy(Preprocessing(height=8, width=8).apply(images))
    wanted = predict(network, inputs).astype(np.float64)
    gap = np.abs(wanted - targets)
    assert result.mae == pytest.approx(gap.mean())
    assert result.loss == pytest.approx(np.where(gap < 1, gap**2 / 2, gap - 0.5).mean())
    assert result.spearman == pytest.approx(stats.spearmanr(wanted, targets).statistic)
    assert result.figures == {
        "loss": result.loss,
        "mae": result.mae,
        "spearman": result.spearman,
    }
    np.testing.assert_allclose(predicted, np.sort(wanted), rtol=1e-6)
    assert predicted.dtype == np.float32


def test_validation_does_not_depend_on_the_order_of_batches_nor_train(network, batches):
    before = copy.deepcopy(network.state_dict())
    fit = fitter(network)
    result, predicted = fit.validate(batches)
    again, same = fit.validate(reversed(batches))
    assert again == result
    np.testing.assert_array_equal(same, predicted)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_validation_without_batches(network):
    with pytest.raises(ValueError, match="expected at least one validation batch, got none"):
        fitter(network).validate([])


def test_prediction_is_without_dropout_and_training_with_it(batches):
    seen = []

    class Dropping(Tiny):
        def forward(self, x):
            seen.append(self.training)
            return torch.nn.functional.dropout(super().forward(x), 0.5, self.training)

    torch.manual_seed(0)
    fit = fitter(Dropping())
    list(fit.train_epoch(batches[:1], 0))
    assert fit.validate(batches[:1])[0] == fit.validate(batches[:1])[0]
    list(fit.train_epoch(batches[:1], 1))
    assert seen == [True, False, False, True]
