"""One fit of a quality network, epoch by epoch: shared by Ray Train's workers and Tune's trials."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdd_ray.core.fitting import Batch, Fitter, Recipe, Step
from sdd_ray.core.losses import Loss
from sdd_ray.core.models import QualityArchitecture, QualityNetwork, build_quality
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.core.schedule import Schedule
from sdd_ray.core.validation import ValidationResult, validation_result
from sdd_ray.engine.progress import clock
from sdd_ray.engine.training_data import Unreadable
from sdd_ray.engine.validation_comparisons import ValidationComparisons
from sdd_ray.settings import TrainConfig
from sdd_ray.store.recogniser import load_backbone, recogniser_spec

BETTER = {"loss": "min", "mae": "min", "spearman": "max", "kendall": "max", "pauc": "min"}
"""Direction of each validation figure."""

_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class FitPlan:
    """What a worker needs to fit.

    Attributes:
        config: The configuration.
        initial_quality: Where the prediction starts: the mean label.
        num_train: Training images.
        num_validation: Validation images.
        comparisons: Between the validation images, if they can be made.
        workers: Workers that share each batch.
    """

    config: TrainConfig
    initial_quality: float
    num_train: int
    num_validation: int
    comparisons: ValidationComparisons | None = None
    workers: int = 1

    @property
    def batch_per_worker(self) -> int:
        """Images of one optimiser step on each worker."""
        return self.config.optimiser.batch_size // self.workers

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return max(1, self.num_train // self.workers // self.batch_per_worker)

    def shuffle_seed(self, epoch: int) -> int:
        """Return what decides the order of the images in an epoch, below 2**32."""
        return _derived_seed(self.config.seed, epoch)

    def unreadable(self) -> Unreadable:
        """Return where the images that cannot be read are counted."""
        return Unreadable(self.config.max_reject_share, self.num_train + self.num_validation)

    @property
    def recipe(self) -> Recipe:
        """The options of the fit."""
        config, optimiser, loss = self.config, self.config.optimiser, self.config.loss
        return Recipe(
            schedule=Schedule(
                optimiser.learning_rate,
                optimiser.epochs,
                optimiser.schedule,
                optimiser.milestones,
                optimiser.decay,
                optimiser.warm_up_epochs,
            ),
            kind=optimiser.kind,
            weight_decay=optimiser.weight_decay,
            loss=Loss(loss.kind, loss.huber_zeta, loss.ranking_weight),
            accumulate=optimiser.accumulate,
            clip_norm=optimiser.clip_norm,
            ema=optimiser.ema,
            flip=config.augment.flip,
            degrade_share=config.augment.degrade_share,
            precision=config.compute.precision,
            channels_last=config.compute.channels_last,
            seed=config.seed,
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
        """What is reported to Ray; epochs count from 1.

        Predictions all equal have a rank correlation of 0: they rank nothing, and Ray cannot choose
        among NaN.
        """
        figures = {
            "epoch": self.epoch + 1,
            "train_loss": self.train_loss,
            "images_per_s": self.images_per_s,
            **self.validation.figures,
        }
        for name in ("spearman", "kendall"):
            figures[name] = 0.0 if math.isnan(figures[name]) else figures[name]
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
    network.freeze(config.network.frozen_share, config.network.freeze_batch_norm)
    if config.compute.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs
    return network, quality, backbone.preprocessing


def is_finished(config: TrainConfig, history: Sequence[dict[str, float]]) -> bool:
    """Return whether a fit has come to its end, or its best epoch is too long ago."""
    if len(history) >= config.optimiser.epochs:
        return True
    if config.patience is None or not history:
        return False
    values = np.array([figures[config.best] for figures in history])
    best = int(np.argmin(values if BETTER[config.best] == "min" else -values))
    return len(values) - 1 - best >= config.patience


def _alone(own: Any) -> list[Any]:
    return [own]


def _agreed(_: list[Tensor]) -> None:
    pass


def _unheard(_line: str, _images: int) -> None:
    pass


@dataclass
class Fit:
    """A fit under way on one worker.

    Attributes:
        plan: What is fitted.
        network: The bare network.
        fitter: Trains it, perhaps wrapped for several workers.
        rank: Number of this worker.
        gather: From what this worker has to the list of what all have, in order of rank.
        agree: Gives tensors of all workers the values of the first one.
        say: Takes a line about the progress within an epoch, and the images of all epochs so far.
        unreadable: Images that could not be read so far.
        history: Figures of all epochs so far.
    """

    plan: FitPlan
    network: QualityNetwork
    fitter: Fitter
    rank: int = 0
    gather: Callable[[Any], list[Any]] = _alone
    agree: Callable[[list[Tensor]], None] = _agreed
    say: Callable[[str, int], None] = _unheard
    unreadable: Unreadable = field(init=False)
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.unreadable = self.plan.unreadable()

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
            validation: Returns the validation batches of this worker.

        Raises:
            ValueError: There is no whole batch to train on, or a loss is no longer a finite number.
            TooManyRejectsError: Too many images cannot be read.
        """
        config = self.plan.config
        if state is not None:
            self.network.load_state_dict(state["network"])
            self.fitter.load_state(state["fitter"])
            self.history = list(state["history"])
            known = {name: (reason, text) for name, reason, text in state["unreadable"]}
            self.unreadable.add(known, is_new=False)
        while not is_finished(config, self.history):
            epoch = len(self.history)
            # Dropout draws from torch's generator: seeded for each epoch, a resumed run repeats it.
            torch.manual_seed(_derived_seed(config.seed, epoch, self.rank))
            loss, rate = self._trained(train(epoch), epoch)
            self.agree(self.fitter.buffers())  # all validate, and publish, the same network
            result, predicted = self._validated(validation(), epoch)
            finished = EpochResult(epoch, loss, rate, result, predicted)
            self.history.append(finished.figures)
            yield finished

    def state(self, result: EpochResult) -> dict[str, Any]:
        """Return all that going on after an epoch needs, as tensors and plain values."""
        return {
            "epoch": result.epoch,
            "network": self.network.state_dict(),
            "published": self.fitter.published(),
            "fitter": self.fitter.state(),
            "figures": result.figures,
            "history": self.history,
            "predicted": torch.from_numpy(result.predicted),
            "unreadable": [(k, *why) for k, why in sorted(self.unreadable.found.items())],
        }

    def _trained(self, batches: Iterator[Batch], epoch: int) -> tuple[float, float]:
        """Train an epoch; return the mean loss and the images a second of all workers."""
        started = time.monotonic()
        watch = _Watch(self.plan, epoch, self.say)
        images, total = 0, 0.0
        for step in self.fitter.train_epoch(batches, epoch, self.plan.steps_per_epoch):
            images += step.images
            total += step.images * step.loss
            watch.see(step, images)
        seconds = time.monotonic() - started
        of_all = self.gather((images, total))
        images, total = sum(n for n, _ in of_all), sum(t for _, t in of_all)
        if not images:
            raise ValueError("expected at least one whole batch of images to train on, got none")
        return total / images, images / seconds

    def _validated(
        self, batches: Iterator[Batch], epoch: int
    ) -> tuple[ValidationResult, NDArray[np.float32]]:
        """Return the figures of all validation images, and their predictions in ascending order."""
        own = [
            (batch.rows, predicted, batch.targets, batch.weights)
            for batch, predicted in self.fitter.predictions(batches)
        ]
        predicted, targets = (
            np.full(self.plan.num_validation, np.nan, np.float32) for _ in range(2)
        )
        for parts, found in self.gather((own, self.unreadable.take_new())):
            self.unreadable.add(found, is_new=False)
            for rows, values, labels, weights in parts:
                predicted[rows] = np.where(weights > 0, values, np.nan)
                targets[rows] = labels
        comparisons = self.plan.comparisons
        pauc = None if comparisons is None else comparisons.normalised_pauc
        result = validation_result(predicted, targets, self.fitter.recipe.loss, pauc)
        if not np.isfinite(result.loss):
            raise ValueError(
                f"the validation loss is {result.loss} after epoch {epoch + 1}:"
                " lower the learning rate"
            )
        if self.plan.config.best == "pauc" and math.isnan(result.pauc):
            raise ValueError(
                f"no pauc after epoch {epoch + 1}: the validation images that can be read have no"
                " false non-match; choose the epoch by another figure (best)"
            )
        return result, np.sort(predicted[~np.isnan(predicted)])


class _Watch:
    """Says now and then how an epoch is going."""

    def __init__(self, plan: FitPlan, epoch: int, say: Callable[[str, int], None]) -> None:
        self._plan, self._epoch, self._say = plan, epoch, say
        self._started = self._said = time.monotonic()

    def see(self, step: Step, images: int) -> None:
        now = time.monotonic()
        if now - self._said < _SECONDS_BETWEEN_LINES:
            return
        self._said = now
        plan, epochs = self._plan, self._plan.config.optimiser.epochs
        done, total = images * plan.workers, plan.num_train
        rate = done / (now - self._started)
        left = (total - done + (epochs - self._epoch - 1) * total) / rate
        self._say(
            f"epoch {self._epoch + 1} of {epochs}, {done:,} of {total:,} images"
            f" ({100 * done / total:.0f} %), loss {step.loss:.2f}, {rate:,.0f} images/s,"
            f" {clock(left)} left",
            self._epoch * total + done,
        )


def epoch_line(result: EpochResult, plan: FitPlan, started: float, first: int) -> str:
    """Return one line about an epoch for people, with the time left."""
    epochs = plan.config.optimiser.epochs
    done = result.epoch + 1
    left = (time.monotonic() - started) / (done - first) * (epochs - done)
    validation = result.validation
    pauc = "" if math.isnan(validation.pauc) else f", pAUC {validation.pauc:.3f}"
    return (
        f"epoch {done} of {epochs}, loss {result.train_loss:.2f}, validation loss"
        f" {validation.loss:.2f}, MAE {validation.mae:.2f}, Spearman {validation.spearman:.3f}"
        f"{pauc}, {result.images_per_s:,.0f} images/s, {clock(left)} left"
    )
