"""Train a quality model with Ray Train: data-parallel workers, checkpoints, the best epoch kept."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from sdd_ray.core.fitting import Batch, Fitter
from sdd_ray.core.models import QualityArchitecture, QualityNetwork
from sdd_ray.core.preprocess import Preprocessing
from sdd_ray.engine.board import board
from sdd_ray.engine.fitting import BETTER, EpochResult, Fit, FitPlan, epoch_line, start_network
from sdd_ray.engine.session import available, interruptible, pool_size
from sdd_ray.engine.training_data import TrainingData, batches, image_datasets, in_order
from sdd_ray.errors import ResourceError, SddError
from sdd_ray.settings import TrainConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

_STATE = "state.pt"


@dataclass(frozen=True)
class TrainedNetwork:
    """The best epoch of a training run, and how it came about."""

    network: QualityNetwork
    architecture: QualityArchitecture
    preprocessing: Preprocessing
    predicted: NDArray[np.float32]
    best_epoch: int
    figures: dict[str, float]
    rejects: list[Reject]


def train_network(config: TrainConfig, data: TrainingData, work: Location) -> TrainedNetwork:
    """Train on all workers and return the network of the best epoch.

    Run again with the same `work`, training goes on after its last checkpoint.

    Args:
        config: The configuration.
        data: Images and labels.
        work: Folder for checkpoints, reached by every worker.

    Raises:
        ResourceError: The cluster has no room for the workers.
        SddError: Training failed; the message says why.
    """
    check_resources(config)
    images = image_datasets(config, data)
    plan = FitPlan(config, data.mean_target, config.resources.workers)
    resources = config.resources
    needs = {"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})}
    with board() as lines:
        trainer = TorchTrainer(
            _train_loop,
            train_loop_config={"plan": plan, "board": lines},
            datasets={"train": images.train, "validation": images.validation},
            dataset_config=ray.train.DataConfig(["train"], execution_options=in_order()),
            scaling_config=ScalingConfig(
                num_workers=resources.workers, use_gpu=resources.use_gpu, resources_per_worker=needs
            ),
            run_config=RunConfig(
                name="fit",
                storage_path=work.uri,
                callbacks=[_NotAgain()],  # type: ignore[list-item]  # the hint names Tune's class
                failure_config=FailureConfig(max_failures=resources.max_failures),
                checkpoint_config=CheckpointConfig(
                    num_to_keep=2,
                    checkpoint_score_attribute=config.best,
                    checkpoint_score_order=BETTER[config.best],
                ),
            ),
        )
        result = _fit(trainer)
    best = result.get_best_checkpoint(config.best, BETTER[config.best])
    if best is None:
        raise SddError("training ended without a checkpoint; see the messages above")
    return _trained(plan, best, images.rejects)


def check_resources(config: TrainConfig) -> None:
    """Check that the cluster can hold the training workers, and a CPU that reads images for them.

    Raises:
        ResourceError: It cannot; waiting would be for ever.
    """
    resources = config.resources
    gpus = 1.0 if resources.use_gpu else 0.0
    pool_size(resources.workers, resources.cpus_per_worker, gpus, spare_cpus=1.0)
    if config.optimiser.batch_size < 2 * resources.workers:
        raise ResourceError(
            f"optimiser.batch_size={config.optimiser.batch_size} leaves fewer than 2 images to each"
            f" of resources.workers={resources.workers}; the cluster has {available('CPU'):g} CPUs"
        )


class _NotAgain(UserCallback):
    """Ends training at once where a worker met what would happen again; lost workers come back."""

    def after_exception(
        self,
        run_context: Any,  # noqa: ARG002 - Ray passes it by name
        worker_exceptions: dict[int, Exception],
    ) -> None:
        """Raise the error in the controller, which does not try again after errors of its own."""
        for error in worker_exceptions.values():
            if isinstance(error, (ValueError, SddError)):
                raise error


def _fit(trainer: TorchTrainer) -> Any:
    try:
        with interruptible():
            return trainer.fit()
    except TrainingFailedError as error:
        raise SddError(f"training failed: {_cause(error)}") from error


def _cause(error: TrainingFailedError) -> Exception:
    """Return what went wrong on a worker, without the tracebacks that Ray wraps it in."""
    if isinstance(error, ControllerError):
        return error.controller_failure
    if isinstance(error, WorkerGroupError):
        return error.worker_failures[min(error.worker_failures)]
    return error


def _train_loop(loop_config: dict[str, Any]) -> None:
    """Run on every training worker."""
    plan: FitPlan = loop_config["plan"]
    torch.set_num_threads(max(1, int(plan.config.resources.cpus_per_worker)))
    rank = ray.train.get_context().get_world_rank()
    network, _, preprocessing = start_network(plan)
    # Depthwise convolutions run faster so, on the CPU as on the GPU; the numbers stay the same.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs
    device = ray.train.torch.get_device()
    wrapped = ray.train.torch.prepare_model(network, device)
    fit = Fit(plan, network, Fitter(wrapped, preprocessing, plan.recipe, device), rank)
    state = _resume()
    first = 0 if state is None else state["epoch"] + 1
    train, validation = (ray.train.get_dataset_shard(name) for name in ("train", "validation"))

    def train_batches(epoch: int) -> Iterator[Batch]:
        return batches(train, plan.batch_per_worker, plan.shuffle_seed(epoch))

    def validation_batches() -> Iterator[Batch]:
        return batches(validation, plan.batch_per_worker)

    started = time.monotonic()
    for result in fit.epochs(state, train_batches, validation_batches):
        _report(fit, result)
        if rank == 0:
            loop_config["board"].put.remote(epoch_line(result, plan, started, first))


def _report(fit: Fit, result: EpochResult) -> None:
    """Report to Ray Train; all workers meet here, and the first one saves the checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if fit.rank == 0:
            write_state(fit, result, folder)
            checkpoint = Checkpoint.from_directory(folder)
        ray.train.report(
            result.figures, checkpoint, checkpoint_dir_name=f"epoch_{result.epoch:04d}"
        )


def _resume() -> dict[str, Any] | None:
    checkpoint = ray.train.get_checkpoint()
    return None if checkpoint is None else read_state(checkpoint)


def read_state(checkpoint: Any) -> dict[str, Any]:
    """Return the state in a checkpoint of Ray Train or Ray Tune."""
    with checkpoint.as_directory() as folder:
        state: dict[str, Any] = torch.load(
            Path(folder) / _STATE, weights_only=True, map_location="cpu"
        )
    return state


def write_state(fit: Fit, result: EpochResult, folder: str) -> None:
    """Write the state that `read_state` reads."""
    torch.save(fit.state(result), Path(folder) / _STATE)


def _trained(plan: FitPlan, checkpoint: Any, rejects: list[Reject]) -> TrainedNetwork:
    state = read_state(checkpoint)
    network, architecture, preprocessing = start_network(plan)
    network.load_state_dict(state["network"])
    return TrainedNetwork(
        network=network.eval(),
        architecture=architecture,
        preprocessing=preprocessing,
        predicted=state["predicted"].numpy(),
        best_epoch=int(state["epoch"]) + 1,
        figures=state["figures"],
        rejects=rejects,
    )
