"""Fitting: a resumed fit equals the unbroken one, every option does what it says."""

import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import batch_of

from sdd_ray.core.augmentation import mirror
from sdd_ray.core.fitting import Fitter, Recipe, predict
from sdd_ray.core.losses import Loss
from sdd_ray.core.models import QualityArchitecture, build_quality
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.core.schedule import Schedule

RECIPE = Recipe(Schedule(0.05, 6, "step", (1, 4), 0.1), weight_decay=1e-4, seed=5)
FLAT = Schedule(0.05, 100)
STEPS = 3


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
    return [batch_of(images[i : i + 8], targets[i : i + 8], first=i) for i in (0, 8, 16)]


def fitter(network, **changes):
    recipe = replace(RECIPE, **changes)
    return Fitter(network, Preprocessing(height=8, width=8), recipe, torch.device("cpu"))


def epoch_of(fit, batches, epoch=0):
    return [(step.images, step.loss) for step in fit.train_epoch(batches, epoch, STEPS)]


def weights_after(batches, **changes):
    torch.manual_seed(0)
    network = Tiny()
    epoch_of(fitter(network, schedule=FLAT, **changes), batches)
    return network.line.weight.detach()


def inputs_of(batch):
    return torch.from_numpy(Preprocessing(height=8, width=8).apply(batch.images))


def test_steps_report_images_and_loss_and_the_loss_falls(network, batches):
    fit = fitter(network, schedule=FLAT, flip=False)
    losses = [epoch_of(fit, batches, epoch) for epoch in range(20)]
    assert [count for count, _ in losses[0]] == [8, 8, 8]
    assert losses[-1][0][1] < losses[0][0][1]


def test_first_step_against_adam_by_hand(network, batches):
    before = copy.deepcopy(network)
    fit = fitter(network, schedule=FLAT, flip=False, weight_decay=0.0)
    [(_, loss)] = epoch_of(fit, batches[:1])
    gap = (before(inputs_of(batches[0])) - torch.from_numpy(batches[0].targets)).abs()
    wanted = torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    wanted.backward()
    gradient = before.line.weight.grad
    # The first step of Adam is the sign of the gradient, all but eps.
    step = 0.05 * gradient / (gradient.abs() + 1e-6)
    torch.testing.assert_close(network.line.weight, before.line.weight - step)


def test_adamw_decays_apart_from_the_gradient(network, batches):
    before = network.line.weight.detach().clone()
    plain = weights_after(batches[:1], kind="adamw", weight_decay=0.0)
    decayed = weights_after(batches[:1], kind="adamw", weight_decay=0.5)
    torch.testing.assert_close(decayed, plain - 0.05 * 0.5 * before)


@pytest.mark.parametrize("changes", [{}, {"ema": 0.5}, {"kind": "adamw", "clip_norm": 0.1}])
def test_going_on_from_a_state_equals_unbroken_training(network, batches, changes):
    start = copy.deepcopy(network.state_dict())
    whole = fitter(network, **changes)
    unbroken = [epoch_of(whole, batches, epoch) for epoch in range(6)]
    end, published = copy.deepcopy((network.state_dict(), whole.published()))

    network.load_state_dict(start)
    first = fitter(network, **changes)
    for epoch in range(2):
        assert epoch_of(first, batches, epoch) == unbroken[epoch]
    saved = io.BytesIO()
    torch.save({"network": network.state_dict(), **first.state()}, saved)
    saved.seek(0)

    state = torch.load(saved, weights_only=True)
    torch.manual_seed(99)
    other = Tiny()
    other.load_state_dict(state["network"])
    second = fitter(other, **changes)
    second.load_state(state)
    for epoch in range(2, 6):
        assert epoch_of(second, batches, epoch) == unbroken[epoch]
    for found, wanted in ((other.state_dict(), end), (second.published(), published)):
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_rates_and_penalties_are_the_recipes_and_not_the_states(network, batches):
    first = fitter(network, schedule=FLAT, weight_decay=0.1)
    epoch_of(first, batches)
    other = copy.deepcopy(network)
    second = fitter(other, schedule=Schedule(1e-30, 100), weight_decay=0.0)
    second.load_state(first.state())
    before = other.line.weight.detach().clone()
    epoch_of(second, batches)
    assert torch.equal(other.line.weight, before)


def test_learning_rate_follows_the_schedule_step_by_step(network, batches):
    schedule = Schedule(0.05, 2, "cosine", warm_up_epochs=1)
    fit = fitter(network, schedule=schedule)
    rates = []
    for epoch in range(2):
        steps = fit.train_epoch(batches, epoch, STEPS)
        rates += [fit._optimiser.param_groups[0]["lr"] for _ in steps]
    # Seen one step late, since a step's loss is looked at after the next was begun.
    wanted = [schedule.rate(done / 3) for done in (2, 3, 3, 5, 6, 6)]
    assert rates == pytest.approx(wanted)


@pytest.mark.parametrize("number", [2, 3, 8, 50])
def test_accumulated_parts_are_one_batch(batches, number):
    whole, parts = (weights_after(batches, accumulate=n) for n in (1, number))
    torch.testing.assert_close(whole, parts)


def test_clipped_gradients_have_the_asked_norm(network, batches):
    fit = fitter(network, schedule=FLAT, clip_norm=1e-3)
    epoch_of(fit, batches[:1])
    norm = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-4)


def test_images_without_weight_count_nothing(batches):
    images, targets = batches[0].images.copy(), batches[0].targets.copy()
    images[3:], targets[3:] = 7, 1e6
    weights = np.where(np.arange(8) < 3, 1, 0)
    found = weights_after([batch_of(images, targets, weights)], flip=False)
    wanted = weights_after([batch_of(images[:3], targets[:3])], flip=False)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_light_images_count_little_in_whatever_batch_they_are(batches):
    """A gradient is a mean over images, so that batches of light images do not catch up."""
    heavy, light = (
        fitter_gradient(batch_of(batches[0].images, batches[0].targets, np.full(8, weight)))
        for weight in (1.0, 0.25)
    )
    torch.testing.assert_close(light, 0.25 * heavy)


def fitter_gradient(batch):
    torch.manual_seed(0)
    network = Tiny()
    epoch_of(fitter(network, schedule=FLAT, flip=False), [batch])
    return network.line.weight.grad


def test_published_weights_are_the_average_and_training_goes_on_from_its_own(network, batches):
    plain = weights_after(batches)
    fit = fitter(network, schedule=FLAT, ema=0.9)
    start = network.line.weight.detach().clone()
    epoch_of(fit, batches)
    averaged = fit.published()["line.weight"]
    assert torch.equal(network.line.weight, plain)
    assert not torch.equal(averaged, plain)
    assert not torch.equal(averaged, start)
    [(_, predicted)] = fit.predictions(batches[:1])
    assert torch.equal(network.line.weight, plain)
    network.load_state_dict(fit.published())
    np.testing.assert_array_equal(predicted, predict(network, inputs_of(batches[0])))


def test_half_precision_stops_before_the_head():
    torch.manual_seed(0)
    network = build_quality(QualityArchitecture(dropout=0.0, initial_quality=70.0))
    inputs = torch.randn(8, 3, 112, 112)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert network.backbone.feature_map(inputs).dtype == torch.bfloat16
        found = network(inputs)
    assert found.dtype == torch.float32
    assert len(found.unique()) == 8


def test_workers_agree_on_batch_statistics_and_the_average():
    network = build_quality(QualityArchitecture())
    fit = Fitter(network, Preprocessing(), replace(RECIPE, ema=0.5), torch.device("cpu"))
    for tensor in fit.buffers():
        tensor.fill_(1)
    assert all((value == 1).all() for _, value in network.named_buffers())
    assert all((value == 1).all() for value in fit.published().values())


def test_bfloat16_is_near_and_not_the_same(batches):
    exact, rough = (weights_after(batches, precision=name) for name in ("float32", "bfloat16"))
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, rtol=0.05, atol=0.05)


def test_loss_and_its_options_are_used(batches):
    found = {
        kind: weights_after(batches, loss=loss)
        for kind, loss in {"huber": Loss(), "l2": Loss("l2"), "rank": Loss("huber", 1, 50)}.items()
    }
    assert not torch.equal(found["huber"], found["l2"])
    assert not torch.equal(found["huber"], found["rank"])


def test_augmentation_depends_on_seed_epoch_and_image_alone(batches):
    seen = []

    class Spy(Tiny):
        def forward(self, x):
            seen.append(x.detach().numpy().copy())
            return super().forward(x)

    fit = fitter(Spy(), schedule=FLAT)
    epoch_of(fit, batches[:1], epoch=3)
    wanted = mirror(batches[0].images, batches[0].keys, RECIPE.seed, 3)
    assert not np.array_equal(wanted, batches[0].images)
    np.testing.assert_array_equal(seen[0], inputs_of(batch_of(wanted, batches[0].targets)))
    # The same images in other company.
    epoch_of(fit, [next(iter(batches[0].parts(2)))], epoch=3)
    np.testing.assert_array_equal(seen[1], seen[0][:4])
    epoch_of(fitter(Spy(), degrade_share=1.0, flip=False), batches[:1])
    assert not np.array_equal(seen[2], inputs_of(batches[0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_loss_that_is_no_number_names_the_batch(network, batches, bad):
    broken = batch_of(batches[1].images, np.full(8, bad), first=40)
    nine = batch_of(np.zeros((9, 8, 8, 3), np.uint8), np.full(9, bad), first=1)
    named = r"the loss is (nan|inf) at epoch 4, step 2, images image 40, .*, image 47: lower the"
    with pytest.raises(ValueError, match=named):
        epoch_of(fitter(network), [batches[0], broken], epoch=3)
    with pytest.raises(ValueError, match="image 8 and 1 more: lower the"):
        epoch_of(fitter(network), [nine])


def test_predictions_are_of_all_batches_and_do_not_train(network, batches):
    before = copy.deepcopy(network.state_dict())
    found = list(fitter(network).predictions(batches))
    assert [batch.rows[0] for batch, _ in found] == [0, 8, 16]
    for batch, predicted in found:
        np.testing.assert_array_equal(predicted, predict(network, inputs_of(batch)))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_prediction_is_without_dropout_and_training_with_it(batches):
    seen = []

    class Dropping(Tiny):
        def forward(self, x):
            seen.append(self.training)
            return torch.nn.functional.dropout(super().forward(x), 0.5, self.training)

    torch.manual_seed(0)
    fit = fitter(Dropping())
    epoch_of(fit, batches[:1])
    once, again = (next(fit.predictions(batches[:1]))[1] for _ in range(2))
    np.testing.assert_array_equal(once, again)
    epoch_of(fit, batches[:1], epoch=1)
    assert seen == [True, False, False, True]


def test_a_batch_in_parts_is_whole():
    batch = batch_of(np.zeros((7, 8, 8, 3), np.uint8), np.arange(7))
    parts = list(batch.parts(3))
    assert [len(part) for part in parts] == [3, 2, 2]
    np.testing.assert_array_equal(np.concatenate([part.targets for part in parts]), batch.targets)
    assert len(list(batch.parts(100))) == 7
