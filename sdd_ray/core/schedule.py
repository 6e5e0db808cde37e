"""The learning rate over training: a function of the epochs done, so nothing has to be saved."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Step or cosine decay after a linear warm-up.

    Attributes:
        learning_rate: Largest rate, > 0.
        epochs: Length of training, >= 1.
        kind: `step`: times `decay` at each milestone. `cosine`: half a cosine from the end of the
            warm-up to 0 at the end of training.
        milestones: Epochs after which `step` decays.
        decay: Factor of `step`.
        warm_up_epochs: Length of the linear growth from 0, >= 0.

    Raises:
        ValueError: The warm-up is not shorter than training.

    Source:
        Cosine: Loshchilov and Hutter, "SGDR", ICLR 2017. Warm-up: Goyal et al., arXiv:1706.02677.
    """

    learning_rate: float
    epochs: int
    kind: Literal["step", "cosine"] = "step"
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    warm_up_epochs: float = 0.0

    def __post_init__(self) -> None:
        if self.warm_up_epochs >= self.epochs:
            raise ValueError(
                f"expected a warm-up shorter than the {self.epochs} epochs of training, got"
                f" {self.warm_up_epochs}"
            )

    def rate(self, done: float) -> float:
        """Return the learning rate of a step.

        Args:
            done: Epochs that will be done after the step, in (0, epochs].

        Example:
            >>> schedule = Schedule(0.1, epochs=4, milestones=(2,), warm_up_epochs=1)
            >>> [round(schedule.rate(done), 3) for done in (0.5, 1.0, 2.0, 2.5)]
            [0.05, 0.1, 0.1, 0.01]
        """
        warm_up = self.warm_up_epochs
        grown = min(1.0, done / warm_up) if warm_up else 1.0
        if self.kind == "step":
            return (
                self.learning_rate * grown * self.decay ** sum(done > at for at in self.milestones)
            )
        share = min(max((done - warm_up) / (self.epochs - warm_up), 0.0), 1.0)
        return self.learning_rate * grown * (1 + math.cos(math.pi * share)) / 2
