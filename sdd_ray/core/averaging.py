"""Moving average of a network's weights, which is often the better network."""

from torch import Tensor, nn, tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

_STEPS = "steps"
_WEIGHT = "weight."


class WeightAverage:
    """Exponential moving average of the parameters and floating buffers of a network.

    Whole-number buffers (batch normalisation counts its batches) are copied. The decay starts
    low, min(decay, (1 + steps) / (10 + steps)), so that the first weights are soon forgotten.

    Args:
        network: Its weights are the first average; not wrapped, so that the names are its own.
        decay: Of each step, in [0, 1).

    Raises:
        ValueError: The decay is not allowed.

    Source:
        Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control
        Optim. 30, 1992. The growing decay: `num_updates` of
        tf.train.ExponentialMovingAverage.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"expected a decay in [0, 1), got {decay}")
        self._decay, self._steps = decay, 0
        self._average = _copy(network.state_dict())

    def update(self, network: nn.Module) -> None:
        """Take in the weights of the network after an optimiser step."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        current = network.state_dict()
        averaged = [name for name, value in self._average.items() if value.is_floating_point()]
        # One launch for all tensors: one each takes longer than the optimiser's step on a GPU.
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average([self._average[k] for k in averaged], [current[k] for k in averaged], None)
        for name in self._average.keys() - averaged:
            self._average[name].copy_(current[name])
        self._steps += 1

    def tensors(self) -> list[Tensor]:
        """Return the average itself, to be changed in place."""
        return list(self._average.values())

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the average, for the network's `load_state_dict`."""
        return _copy(self._average)

    def state(self) -> dict[str, Tensor]:
        """Return a copy of all that a resumed run needs."""
        kept = {_WEIGHT + name: value for name, value in _copy(self._average).items()}
        return {_STEPS: tensor(self._steps), **kept}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned, on the device of this average.

        Raises:
            ValueError: It belongs to another network.
        """
        wanted = {_STEPS: (), **{_WEIGHT + k: tuple(v.shape) for k, v in self._average.items()}}
        found = {name: tuple(value.shape) for name, value in state.items()}
        if found != wanted:
            other = sorted(name for name, _ in found.items() ^ wanted.items())
            raise ValueError(f"expected the average of this network, got other {other[:3]}")
        self._steps = int(state[_STEPS])
        for name, value in self._average.items():
            value.copy_(state[_WEIGHT + name])


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}
