"""States of a fit on a disk: what is read is what was written, or an error says what is wrong."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from ray.train import Checkpoint

from sdd_ray.engine.checkpoints import read_state, write_state
from sdd_ray.errors import WeightsError


@dataclass
class Still:
    """Stands in for a fit: it has a state."""

    value: float

    def state(self, result):
        return {"epoch": result.epoch, "network": {"weight": torch.full((3,), self.value)}}


@pytest.fixture
def folder(tmp_path):
    write_state(Still(7.0), SimpleNamespace(epoch=4), str(tmp_path))
    return tmp_path


def test_state_is_the_one_that_was_written(folder):
    state = read_state(Checkpoint(folder))
    assert state["epoch"] == 4
    assert torch.equal(state["network"]["weight"], torch.full((3,), 7.0))


@pytest.mark.parametrize("name", ["state.pt", "state.sha256"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damage_is_told(folder, name, damage):
    file = folder / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] + (b"" if damage == "cut" else b"~"))
    with pytest.raises(WeightsError, match=r"the checkpoint .* is damaged: expected .*begins anew"):
        read_state(Checkpoint(folder))
