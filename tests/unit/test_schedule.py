"""The learning rate: against torch's schedulers, and by its laws."""

import math

import pytest
import torch

from sdd_ray.core.schedule import Schedule


def of_torch(make, epochs):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler = make(optimiser)
    rates = []
    for _ in range(epochs):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


def test_steps_are_those_of_torch():
    schedule = Schedule(0.2, 8, "step", (2, 5), 0.3)
    wanted = of_torch(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5], 0.3), 8)
    for epoch in range(8):
        for step in (0.01, 0.5, 1.0):
            assert schedule.rate(epoch + step) == pytest.approx(wanted[epoch])


def test_cosine_is_torchs():
    schedule = Schedule(0.2, 8, "cosine")
    wanted = of_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 8), 8)
    assert [schedule.rate(epoch) for epoch in range(8)] == pytest.approx(wanted)
    assert schedule.rate(8) == pytest.approx(0)


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_warm_up_grows_from_nothing_to_the_schedule(kind):
    schedule = Schedule(0.2, 8, kind, (4,), 0.1, warm_up_epochs=2)
    assert [schedule.rate(done) for done in (0.5, 1.0, 2.0)] == pytest.approx([0.05, 0.1, 0.2])
    later = [schedule.rate(done) for done in (2.5, 4.0, 4.5, 6.0, 8.0)]
    assert later == sorted(later, reverse=True)
    if kind == "cosine":
        assert schedule.rate(5) == pytest.approx(0.2 * (1 + math.cos(math.pi / 2)) / 2)


def test_warm_up_must_end_before_training():
    with pytest.raises(ValueError, match="shorter than the 2 epochs of training, got 2"):
        Schedule(0.1, 2, warm_up_epochs=2)
