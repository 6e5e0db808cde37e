"""One fit of a quality network, epoch by epoch: shared by Ray Train's workers and Tune's trials."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sdd_ray.core.fitting import Batch, Fitter, Recipe, ValidationResult
from sdd_ray.core.models import QualityArchitecture, QualityNetwork, build_quality
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.settings import TrainConfig
from sdd_ray.store.recogniser import load_backbone, recogniser_spec

BETTER = {"loss": "min", "mae": "min", "spearman": "max"}
"""Direction of each validation figure."""


@dataclass(frozen=True)
class FitPlan:
    """What a worker needs to fit: the configuration, where the head starts, how many workers."""

    config: TrainConfig
    initial_quality: float
    workers: int

    @property
    def batch_per_worker(self) -> int:
        """Images of one optimiser step on each worker."""
        return self.config.optimiser.batch_size // self.workers

    def shuffle_seed(self, epoch: int) -> int:
        """Return what decides the order of the images in an epoch, below 2**32."""
        return _derived_seed(self.config.seed, epoch)

    @property
    def recipe(self) -> Recipe:
        """The options of the optimiser."""
        optimiser = self.config.optimiser
        return Recipe(
            learning_rate=optimiser.learning_rate,
            weight_decay=optimiser.weight_decay,
            milestones=optimiser.milestones,
            decay=optimiser.decay,
            huber_zeta=optimiser.huber_zeta,
            flip=optimiser.flip,
            seed=self.config.seed,
        )


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch; `predicted` are the raw validation predictions in ascending order."""

    epoch: int
    train_loss: float
    images_per_s: float
    validation: ValidationResult
    predicted: NDArray[np.float32]

    @property
    def figures(self) -> dict[str, float]:
        """What is reported to Ray; epochs count from 1. Predictions all equal have Spearman 0."""
        figures = {
            "epoch": self.epoch + 1,
            "train_loss": self.train_loss,
            "images_per_s": self.images_per_s,
            **self.validation.figures,
        }
        if np.isnan(figures["spearman"]):
            figures["spearman"] = 0.0  # they rank nothing, and Ray cannot choose among NaN
        return figures


def _derived_seed(*key: int) -> int:
    """Return a seed below 2**32 for a key of numbers; other keys give unrelated seeds."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def start_network(plan: FitPlan) -> tuple[QualityNetwork, QualityArchitecture, Preprocessing]:
    """Return a quality network that starts from the recogniser's weights.

    Raises:
        WeightsError: The recogniser's weights do not fit its architecture.
    """
    config = plan.config
    backbone = load_backbone(recogniser_spec(config.recogniser))
    quality = QualityArchitecture(
        backbone=backbone.architecture,
        head=config.network.head,
        dropout=config.network.dropout,
        initial_quality=plan.initial_quality,
    )
    torch.manual_seed(config.seed)
    network = build_quality(quality)
    network.start_from(backbone.network)
    return network, quality, backbone.preprocessing


@dataclass
class Fit:
    """A fit under way on one worker.

    `network` is the bare network; `fitter` trains it, perhaps wrapped for several workers.
    """

    plan: FitPlan
    network: QualityNetwork
    fitter: Fitter
    rank: int = 0

    def epochs(
        self,
        state: dict[str, Any] | None,
        train: Callable[[int], Iterator[Batch]],
        validation: Callable[[], Iterator[Batch]],
    ) -> Iterator[EpochResult]:
        """Yield the result of each epoch after the one that `state` was taken at.

        Args:
            state: What `state` returned after an earlier epoch, or None to begin.
            train: From an epoch to its batches.
            validation: Returns the validation batches.

        Raises:
            ValueError: There is no whole batch to train on, or a loss is no longer a finite number.
        """
        first = 0
        if state is not None:
            self.network.load_state_dict(state["network"])
            self.fitter.load_state(state["fitter"])
            first = state["epoch"] + 1
        for epoch in range(first, self.plan.config.optimiser.epochs):
            # Dropout draws from torch's generator: seeded for each epoch, a resumed run repeats it.
            torch.manual_seed(_derived_seed(self.plan.config.seed, epoch, self.rank))
            started = time.monotonic()
            steps = list(self.fitter.train_epoch(train(epoch), epoch, self.rank))
            if not steps:
                raise ValueError("expected at least one whole batch of images that can be read")
            images = sum(count for count, _ in steps)
            seconds = time.monotonic() - started
            loss = sum(count * value for count, value in steps) / images
            result, predicted = self.fitter.validate(validation())
            if not np.isfinite(result.loss):
                raise ValueError(
                    f"the validation loss is {result.loss} after epoch {epoch + 1}:"
                    " lower the learning rate"
                )
            rate = self.plan.workers * images / seconds  # all workers have as many
            yield EpochResult(epoch, loss, rate, result, predicted)

    def state(self, result: EpochResult) -> dict[str, Any]:
        """Return all that going on after an epoch needs, as tensors and plain values."""
        return {
            "epoch": result.epoch,
            "network": self.network.state_dict(),
            "fitter": self.fitter.state(),
            "figures": result.figures,
            "predicted": torch.from_numpy(result.predicted),
        }


def epoch_line(result: EpochResult, plan: FitPlan, started: float, first: int) -> str:
    """Return one line about an epoch for people, with the time left."""
    epochs = plan.config.optimiser.epochs
    done = result.epoch + 1
    left = (time.monotonic() - started) / (done - first) * (epochs - done)
    validation = result.validation
    return (
        f"train: epoch {done} of {epochs}, loss {result.train_loss:.2f}, validation loss"
        f" {validation.loss:.2f}, MAE {validation.mae:.2f}, Spearman {validation.spearman:.3f},"
        f" {result.images_per_s:,.0f} images/s, {left:,.0f} s left"
    )
