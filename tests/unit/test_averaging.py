"""The moving average by hand and against torch, and a resumed average equals an unbroken one."""

import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sdd_ray.core.averaging import WeightAverage


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def trained(seed=0, steps=12):
    """Yield one network again and again, each time with other weights and statistics."""
    net = network(seed)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
    inputs = torch.randn(steps, 8, 3, generator=torch.Generator().manual_seed(seed))
    for x in inputs:
        optimiser.zero_grad()
        net(x).square().mean().backward()
        optimiser.step()
        yield net


def assert_same(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], **tolerance)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_average_by_hand(decay):
    average = WeightAverage(network(), decay)
    wanted = {k: v.double().numpy() for k, v in network().state_dict().items()}
    for step, net in enumerate(trained()):
        average.update(net)
        kept = min(decay, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            is_count = name == "1.num_batches_tracked"
            new = value.double().numpy()
            wanted[name] = new if is_count else kept * wanted[name] + (1 - kept) * new
    found = average.weights()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name].double().numpy(), value, rtol=1e-5, atol=1e-6)
    assert found["1.num_batches_tracked"] == 12
    assert found["1.num_batches_tracked"].dtype == torch.int64


def test_average_of_torch_once_the_decay_is_reached():
    ours, seen = WeightAverage(network(), 0.1), network()
    # The first step of torch's average is a copy: it is made of what both start from.
    wanted = AveragedModel(seen, multi_avg_fn=get_ema_multi_avg_fn(0.1), use_buffers=True)
    wanted.update_parameters(seen)
    for net in trained():
        ours.update(net)
        wanted.update_parameters(net)
    found = {k: v for k, v in ours.weights().items() if v.is_floating_point()}
    theirs = wanted.module.state_dict()
    assert_same(found, {name: theirs[name] for name in found})


def test_weights_that_stay_are_their_average_exactly():
    net = network()
    average = WeightAverage(net, 0.9)
    for _ in range(50):
        average.update(net)
    assert_same(average.weights(), net.state_dict(), rtol=0, atol=0)


def test_average_follows_what_it_no_longer_holds():
    nets = list(trained(steps=1))
    average = WeightAverage(network(7), 0.5)
    for _ in range(60):
        average.update(nets[0])
    assert_same(average.weights(), nets[0].state_dict())


def test_network_is_neither_changed_nor_shared():
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    average = WeightAverage(network(3), 0.5)
    average.update(net)
    assert_same(net.state_dict(), before, rtol=0, atol=0)
    first = average.weights()
    kept = {k: v.clone() for k, v in first.items()}
    with torch.no_grad():
        net[0].weight.fill_(9)
    average.update(net)
    assert_same(first, kept, rtol=0, atol=0)
    assert not any(value.requires_grad for value in first.values())


def test_average_loads_into_the_network():
    *_, net = trained()
    average = WeightAverage(network(), 0.9)
    average.update(net)
    other = network(5)
    other.load_state_dict(average.weights())
    assert_same(other.state_dict(), average.weights(), rtol=0, atol=0)


def test_going_on_from_a_state_equals_one_unbroken_average():
    whole, first = WeightAverage(network(), 0.6), WeightAverage(network(), 0.6)
    saved = io.BytesIO()
    for step, net in enumerate(trained()):
        whole.update(net)
        if step < 5:
            first.update(net)
        if step == 4:
            torch.save(first.state(), saved)
    saved.seek(0)
    second = WeightAverage(network(9), 0.6)
    second.load_state(torch.load(saved, weights_only=True))
    for step, net in enumerate(trained()):
        if step >= 5:
            second.update(net)
    assert_same(second.state(), whole.state(), rtol=0, atol=0)
    assert whole.state()["steps"] == 12


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("steps"),
        lambda s: s.pop("weight.0.bias"),
        lambda s: s.update({"weight.0.bias": torch.zeros(5)}),
        lambda s: s.update({"weight.more": torch.zeros(5)}),
    ],
)
def test_state_of_another_network_is_refused_and_changes_nothing(change):
    average = WeightAverage(network(), 0.5)
    before = average.state()
    state = WeightAverage(network(4), 0.5).state()
    change(state)
    with pytest.raises(ValueError, match="expected the average of this network"):
        average.load_state(state)
    assert_same(average.state(), before, rtol=0, atol=0)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_that_is_none(decay):
    with pytest.raises(ValueError, match=r"expected a decay in \[0, 1\)"):
        WeightAverage(network(), decay)
