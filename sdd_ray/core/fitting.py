"""Fit a quality network: optimiser steps, predictions for validation, the state between epochs.

Knows tensors alone: where batches come from, how many workers there are and where states are kept
is decided outside.

Shapes: N images of a batch, uint8 RGB (N, 112, 112, 3).
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdd_ray.core.augmentation import degrade, mirror
from sdd_ray.core.averaging import WeightAverage
from sdd_ray.core.losses import Loss
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.core.schedule import Schedule

Precision = Literal["float32", "bfloat16", "float16"]

_NAMED = 8
"""Images of a faulty batch that a message names."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Images that make one optimiser step of a worker, or a part of a validation pass.

    Attributes:
        images: (N, 112, 112, 3) uint8 RGB.
        targets: (N,) float32 labels.
        weights: (N,) float32, how much each counts; 0 for a stand-in of an image that could not be
            read.
        keys: (N,) uint64 hashes of the image_ids: what augmentation draws from.
        rows: (N,) int64 places within the part.
        image_ids: (N,) names for messages.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    keys: NDArray[np.uint64]
    rows: NDArray[np.int64]
    image_ids: NDArray[np.object_]

    def __len__(self) -> int:
        """Return N."""
        return len(self.targets)

    def parts(self, number: int) -> Iterator["Batch"]:
        """Yield the batch in `number` parts of nearly equal size, without empty ones."""
        for rows in np.array_split(np.arange(len(self)), min(number, len(self))):
            yield Batch(
                self.images[rows],
                self.targets[rows],
                self.weights[rows],
                self.keys[rows],
                self.rows[rows],
                self.image_ids[rows],
            )


@dataclass(frozen=True)
class Recipe:
    """How a network is fitted; see the options of `sdd_ray.settings.TrainConfig`."""

    schedule: Schedule
    kind: Literal["adam", "adamw"] = "adam"
    weight_decay: float = 0.0
    loss: Loss = field(default_factory=Loss)
    accumulate: int = 1
    clip_norm: float | None = None
    ema: float = 0.0
    flip: bool = True
    degrade_share: float = 0.0
    precision: Precision = "float32"
    channels_last: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """One optimiser step: images of this worker, their mean loss, where the epoch is."""

    images: int
    loss: float


class Fitter:
    """A network while it is fitted.

    Args:
        network: Maps (N, 3, h, w) float32 to (N,) qualities.
        preprocessing: From images to the network's input.
        recipe: How to fit.
        device: Where the network lies.
        wrapped: The network as it is called in training, wrapped for many workers; None for itself.

    Source:
        Betas and eps: TFace quality/ train_config.py. Huber loss: Ou et al., "SDD-FIQA", CVPR 2021,
        eq. 12.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        recipe: Recipe,
        device: torch.device,
        wrapped: nn.Module | None = None,
    ) -> None:
        self.network, self.device, self.recipe = network, device, recipe
        self._called = network if wrapped is None else wrapped
        self._preprocessing = preprocessing
        kind = torch.optim.Adam if recipe.kind == "adam" else torch.optim.AdamW
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._optimiser = kind(
            self._parameters,
            lr=recipe.schedule.learning_rate,
            betas=(0.9, 0.99),
            eps=1e-6,
            weight_decay=recipe.weight_decay,
            fused=device.type == "cuda",  # or float16 waits for the device in every step
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self._average = WeightAverage(network, recipe.ema) if recipe.ema else None

    def train_epoch(self, batches: Iterable[Batch], epoch: int, steps: int) -> Iterator[Step]:
        """Make one optimiser step for each batch; yield after each what came of the one before.

        The loss of a step is looked at only after the next one was begun, so that a GPU never
        waits for it; the last one follows at the end.

        Args:
            batches: Of this worker.
            epoch: Number of the epoch from 0; in messages from 1. Augmentation depends on (seed,
                epoch, image) alone.
            steps: Steps of an epoch, for the learning rate.

        Raises:
            ValueError: A loss is not a finite number; the message names the batch.
        """
        self.network.train()
        before: tuple[Batch, Tensor] | None = None
        number = 0
        for number, batch in enumerate(batches, 1):
            loss = self._step(batch, epoch, epoch + min(number / steps, 1.0))
            if before is not None:
                yield _looked_at(*before, epoch, number - 1)
            before = batch, loss
        if before is not None:
            yield _looked_at(*before, epoch, number)

    def predictions(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
        """Yield each batch with its raw predictions, of the averaged weights where there are some.

        They are computed in float32, as score does.
        """
        trained = None
        if self._average is not None:
            trained = {name: value.clone() for name, value in self.network.state_dict().items()}
            self.network.load_state_dict(self._average.weights())
        try:
            for batch in batches:
                yield batch, predict(self.network, self._input(self._moved(batch.images)))
        finally:
            if trained is not None:
                self.network.load_state_dict(trained)

    def buffers(self) -> list[Tensor]:
        """Return what no gradient moves, and workers must agree on: batch statistics, the average.

        Each worker has seen the batches of its own.
        """
        average = [] if self._average is None else self._average.tensors()
        return [*self.network.buffers(), *average]

    def published(self) -> dict[str, Tensor]:
        """Return the weights that validation judged."""
        return self.network.state_dict() if self._average is None else self._average.weights()

    def state(self) -> dict[str, Any]:
        """Return everything that going on needs, the network aside."""
        return {
            "optimiser": self._optimiser.state_dict()["state"],
            "scaler": self._scaler.state_dict(),
            "average": {} if self._average is None else self._average.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up the state that `state` returned; rates and penalties stay the recipe's.

        A search may so go on from the state of a fit with another recipe.
        """
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": state["optimiser"], "param_groups": groups})
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None and state["average"]:
            self._average.load_state(state["average"])

    def _step(self, batch: Batch, epoch: int, done: float) -> Tensor:
        """Make one optimiser step; return the mean loss, still on the device."""
        for group in self._optimiser.param_groups:
            group["lr"] = self.recipe.schedule.rate(done)
        self._optimiser.zero_grad(set_to_none=True)
        parts = list(batch.parts(self.recipe.accumulate))
        total = torch.zeros((), device=self.device)
        for place, part in enumerate(parts):
            with self._gathering(is_last=place == len(parts) - 1):
                # Over the images, not over the weights, so that a worker or a part with images of
                # little weight does not count as much as the others.
                share = float(part.weights.sum()) / len(batch)
                loss = self._loss(part, epoch) * share
                torch.autograd.backward(self._scaler.scale(loss))
            total += loss.detach()
        if self.recipe.clip_norm is not None:
            self._scaler.unscale_(self._optimiser)
            nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip_norm)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        if self._average is not None:
            self._average.update(self.network)
        return total

    def _gathering(self, is_last: bool) -> AbstractContextManager[Any]:
        """Workers exchange gradients with the last part of a batch only."""
        if is_last or not isinstance(self._called, nn.parallel.DistributedDataParallel):
            return nullcontext()
        context: AbstractContextManager[Any] = self._called.no_sync()
        return context

    def _loss(self, batch: Batch, epoch: int) -> Tensor:
        recipe = self.recipe
        images = batch.images
        if recipe.flip:
            images = mirror(images, batch.keys, recipe.seed, epoch)
        pixels = self._moved(images)
        targets, weights = self._moved(batch.targets), self._moved(batch.weights)
        if recipe.degrade_share:
            pixels = degrade(pixels, batch.keys, recipe.degrade_share, recipe.seed, epoch)
        inputs = self._input(pixels)
        if recipe.precision == "float32":
            predicted = self._called(inputs)
        else:
            kind = torch.bfloat16 if recipe.precision == "bfloat16" else torch.float16
            with torch.autocast(self.device.type, kind):
                predicted = self._called(inputs)
        return recipe.loss(predicted.float(), targets, weights)

    def _moved(self, values: NDArray[Any]) -> Tensor:
        """Return an array on the device; a GPU takes it from pinned memory while it works."""
        copied = torch.tensor(values)
        if self.device.type != "cuda":
            return copied
        return copied.pin_memory().to(self.device, non_blocking=True)

    def _input(self, pixels: Tensor) -> Tensor:
        inputs = self._preprocessing.apply_tensor(pixels)
        return inputs if self.recipe.channels_last else inputs.contiguous()


def predict(network: nn.Module, inputs: Tensor) -> NDArray[np.float32]:
    """Return the network's output for preprocessed inputs, without training it, as float32."""
    network.eval()
    with torch.inference_mode():
        output: NDArray[np.float32] = network(inputs).float().cpu().numpy()
    return output


def _looked_at(batch: Batch, loss: Tensor, epoch: int, step: int) -> Step:
    value = float(loss)
    if not np.isfinite(value):
        named = ", ".join(str(name) for name in batch.image_ids[:_NAMED])
        more = f" and {len(batch) - _NAMED:,} more" if len(batch) > _NAMED else ""
        raise ValueError(
            f"the loss is {value} at epoch {epoch + 1}, step {step}, images {named}{more}: lower"
            " the learning rate, or set optimiser.clip_norm"
        )
    return Step(len(batch), value)
