"""Fit a quality network: one epoch of optimiser steps, one validation pass, the state between them.

Knows tensors alone: where batches come from, how many workers there are and where states are kept
is decided outside.

Shapes: N images of a batch, uint8 RGB (N, 112, 112, 3); one target an image, in [0, 100].
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.core.statistics import rank_correlation

Batch = tuple[NDArray[np.uint8], NDArray[np.float32]]


@dataclass(frozen=True)
class Recipe:
    """How a network is fitted; the options of `sdd_ray.settings.OptimiserConfig`."""

    learning_rate: float
    weight_decay: float
    milestones: tuple[int, ...]
    decay: float
    huber_zeta: float
    flip: bool
    seed: int


@dataclass(frozen=True)
class ValidationResult:
    """Figures of one validation pass; spearman is NaN where a side is constant."""

    loss: float
    mae: float
    spearman: float

    @property
    def figures(self) -> dict[str, float]:
        """The figures by name."""
        return {"loss": self.loss, "mae": self.mae, "spearman": self.spearman}


class Fitter:
    """A network while it is fitted.

    Args:
        network: Maps (N, 3, h, w) float32 to (N,) qualities; it may be wrapped for many workers.
        preprocessing: From images to the network's input.
        recipe: How to fit.
        device: Where the network lies.

    Source:
        Adam, its betas and eps, and the milestones: TFace quality/ train_config.py. Huber loss:
        Ou et al., "SDD-FIQA", CVPR 2021, eq. 12.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        preprocessing: Preprocessing,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        self.network, self.device = network, device
        self._preprocessing, self._recipe = preprocessing, recipe
        self._optimiser = torch.optim.Adam(
            network.parameters(),
            lr=recipe.learning_rate,
            betas=(0.9, 0.99),
            eps=1e-6,
            weight_decay=recipe.weight_decay,
        )
        self._schedule = torch.optim.lr_scheduler.MultiStepLR(
            self._optimiser, list(recipe.milestones), recipe.decay
        )

    def train_epoch(
        self, batches: Iterable[Batch], epoch: int, rank: int = 0
    ) -> Iterator[tuple[int, float]]:
        """Make one optimiser step for each batch; yield (images, mean loss) after each.

        Epochs count from 0, in messages from 1. Mirroring depends on (seed, epoch, rank) alone, so
        a resumed run goes on as it would have.

        Raises:
            ValueError: The loss is no longer a finite number.
        """
        self.network.train()
        generator = np.random.default_rng([self._recipe.seed, epoch, rank])
        for step, (originals, targets) in enumerate(batches):
            images = _mirror_some(originals, generator) if self._recipe.flip else originals
            predicted = self.network(self._input(images))
            loss = self._loss(predicted, torch.as_tensor(targets, device=self.device))
            value = float(loss.detach())
            if not np.isfinite(value):
                raise ValueError(
                    f"the loss is {value} at epoch {epoch + 1}, step {step + 1}:"
                    " lower the learning rate"
                )
            self._optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self._optimiser.step()
            yield len(images), value
        self._schedule.step()

    def validate(self, batches: Iterable[Batch]) -> tuple[ValidationResult, NDArray[np.float32]]:
        """Return the figures over all batches, and the raw predictions in ascending order."""
        pairs = [(predict(self.network, self._input(x)), y) for x, y in batches]
        if not pairs:
            raise ValueError("expected at least one validation batch, got none")
        predicted = np.concatenate([p for p, _ in pairs]).astype(np.float64)
        targets = np.concatenate([t for _, t in pairs]).astype(np.float64)
        # Sums in an order of their own, so that the order of the batches changes no digit.
        order = np.lexsort((targets, predicted))
        predicted, targets = predicted[order], targets[order]
        loss = self._loss(torch.from_numpy(predicted), torch.from_numpy(targets))
        result = ValidationResult(
            loss=float(loss),
            mae=float(np.abs(predicted - targets).mean()),
            spearman=rank_correlation(predicted, targets),
        )
        return result, predicted.astype(np.float32)

    def state(self) -> dict[str, Any]:
        """Return everything that going on needs, the network aside."""
        return {"optimiser": self._optimiser.state_dict(), "schedule": self._schedule.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up the state that `state` returned."""
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])

    def _input(self, images: NDArray[np.uint8]) -> torch.Tensor:
        return self._preprocessing.apply_tensor(torch.tensor(images).to(self.device))

    def _loss(self, predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.huber_loss(predicted, targets, delta=self._recipe.huber_zeta)


def _mirror_some(images: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    mirrored = generator.random(len(images)) < 0.5
    return np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def predict(network: torch.nn.Module, inputs: torch.Tensor) -> NDArray[np.float32]:
    """Return the network's output for preprocessed inputs, without training it, as float32."""
    network.eval()
    with torch.inference_mode():
        output: NDArray[np.float32] = network(inputs).float().cpu().numpy()
    return output
