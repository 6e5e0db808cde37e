"""Train a quality model with Ray Train: data-parallel workers, checkpoints, the best epoch kept."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from sdd_ray.engine.board import Teller, board
from sdd_ray.engine.checkpoints import read_state, write_state
from sdd_ray.engine.event_files import EventFile
from sdd_ray.engine.fitting import (
    BETTER,
    EpochResult,
    Fit,
    FitPlan,
    epoch_line,
    is_finished,
    start_network,
)
from sdd_ray.engine.metrics import Advance, stage_metrics
from sdd_ray.engine.room import available, pool_size
from sdd_ray.engine.session import interruptible
from sdd_ray.engine.training_data import (
    ImageDatasets,
    Sharing,
    Unreadable,
    batches,
    image_datasets,
)
from sdd_ray.engine.training_rows import TrainingData
from sdd_ray.engine.validation_comparisons import validation_comparisons
from sdd_ray.errors import ResourceError, SddError
from sdd_ray.settings import TrainConfig
from sdd_ray.store.dataset import Dataset
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

_RUN = "fit"
_VALIDATION_BATCH = 64
_RESIZE_EVERY_S = 900.0
"""Seconds between two looks for more workers: taking one in costs the epoch that is under way."""


@dataclass(frozen=True)
class TrainedNetwork:
    """The best epoch of a training run, and how it came about.

    Attributes:
        network: With the weights of that epoch, set to evaluation.
        architecture: How it is built.
        preprocessing: What it expects of its input.
        predicted: Raw predictions for the validation images, ascending.
        best_epoch: Number of the epoch from 1.
        figures: Of that epoch.
        history: Figures of all epochs up to the last one.
        rejects: Images that could not be read.
    """

    network: QualityNetwork
    architecture: QualityArchitecture
    preprocessing: Preprocessing
    predicted: NDArray[np.float32]
    best_epoch: int
    figures: dict[str, float]
    history: list[dict[str, float]]
    rejects: list[Reject]


def plan_fit(config: TrainConfig, labels: Dataset, data: TrainingData, command: str) -> FitPlan:
    """Return what workers need to know, the comparisons between validation images included.

    Says so on standard error where these cannot be made.

    Raises:
        InputError: They cannot be made, but the configuration asks for them.
    """
    comparisons, reason = validation_comparisons(config, labels, data.validation)
    if comparisons is None:
        sys.stderr.write(f"{command}: no validation figure pauc: {reason}\n")
    return FitPlan(
        config, data.mean_target, data.train.num_rows, data.validation.num_rows, comparisons
    )


def train_network(
    plan: FitPlan, data: TrainingData, work: Location, events: Location
) -> TrainedNetwork:
    """Train on all workers and return the network of the best epoch.

    Run again with the same `work`, training goes on after its last checkpoint.

    Args:
        plan: What to fit.
        data: Images and labels.
        work: Folder for checkpoints, reached by every worker.
        events: Folder for TensorBoard's files.

    Raises:
        SddError: Training failed; the message says why.
    """
    config = plan.config
    earlier = _earlier(work)
    history = [] if earlier is None else read_state(earlier.checkpoint)["history"]
    if is_finished(config, history):  # stopped before it could publish
        return _best(plan, earlier)
    images = image_datasets(config, data)
    total = config.optimiser.epochs * plan.num_train
    advance = Advance(stage_metrics("train"), total, len(history) * plan.num_train)
    with EventFile(events) as file:

        def write(figures: dict[str, float]) -> None:
            advance.reach(int(figures["epoch"]) * plan.num_train)
            file.add(int(figures["epoch"]), figures)

        with board(write, advance.reach) as notes:
            tell = Teller(notes, "train: ")
            result = _fit(trainer(plan, images, _RUN, work, tell, [_NotAgain()]))
    advance.end()
    return _best(plan, result)


def _best(plan: FitPlan, result: Any) -> TrainedNetwork:
    best = result.get_best_checkpoint(plan.config.best, BETTER[plan.config.best])
    if best is None:
        raise SddError("training ended without a checkpoint; see the messages above")
    return trained_network(plan, read_state(best), read_state(result.checkpoint))


def _earlier(work: Location) -> Any | None:
    """Return the result of an earlier run that ended an epoch, if there is one."""
    if not (work / _RUN).exists():
        return None
    try:
        result = ray.train.Result.from_path((work / _RUN).uri)
    except RuntimeError:  # nothing was saved yet, as Ray says it
        return None
    return None if result.checkpoint is None else result


def trainer(
    plan: FitPlan,
    images: ImageDatasets,
    name: str,
    storage: Location,
    tell: Teller,
    callbacks: Sequence[UserCallback],
) -> TorchTrainer:
    """Return a run of Ray Train under a name; one that is there already goes on.

    Args:
        plan: What to fit.
        images: Decoded images.
        name: Of the run, a folder in `storage`.
        storage: Folder for checkpoints, reached by every worker.
        tell: Takes lines and figures.
        callbacks: Of the run.
    """
    config, resources = plan.config, plan.config.resources
    needs = {"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})}
    least = resources.min_workers or resources.workers
    workers: dict[str, Any] = {"num_workers": resources.workers}
    if least < resources.workers:
        workers = {
            "num_workers": (least, resources.workers),
            "elastic_resize_monitor_interval_s": _RESIZE_EVERY_S,
        }
    return TorchTrainer(
        _train_loop,
        train_loop_config={"plan": plan, "tell": tell},
        datasets={"train": images.train, "validation": images.validation},
        dataset_config=Sharing(),
        scaling_config=ScalingConfig(
            use_gpu=resources.use_gpu, resources_per_worker=needs, **workers
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage.uri,
            callbacks=list(callbacks),  # type: ignore[arg-type]  # the hint names Tune's class
            failure_config=FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=2,
                checkpoint_score_attribute=config.best,
                checkpoint_score_order=BETTER[config.best],
            ),
        ),
    )


def check_resources(config: TrainConfig) -> None:
    """Check that the cluster can hold the training workers, and a CPU that reads images for them.

    Raises:
        ResourceError: It cannot; waiting would be for ever.
    """
    resources = config.resources
    gpus = 1.0 if resources.use_gpu else 0.0
    least = resources.min_workers or resources.workers
    pool_size(least, resources.cpus_per_worker, gpus, spare_cpus=1.0)
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
            if isinstance(error, torch.OutOfMemoryError):
                raise ResourceError(
                    f"{error}; raise optimiser.accumulate, or lower optimiser.batch_size"
                ) from error
            if isinstance(error, (ValueError, SddError)):
                raise error


def _fit(run: TorchTrainer) -> Any:
    try:
        with interruptible():
            return run.fit()
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
    context = ray.train.get_context()
    plan: FitPlan = replace(loop_config["plan"], workers=context.get_world_size())
    tell: Teller = loop_config["tell"]
    rank = context.get_world_rank()
    fit = new_fit(
        plan,
        ray.train.torch.get_device(),
        rank=rank,
        wrap=ray.train.torch.prepare_model,
        say=tell.progress if rank == 0 else None,
    )
    if plan.workers > 1:
        fit.gather, fit.agree = _gather, _agree
    checkpoint = ray.train.get_checkpoint()
    state = None if checkpoint is None else read_state(checkpoint)
    first = 0 if state is None else state["epoch"] + 1
    train, validation = (ray.train.get_dataset_shard(name) for name in ("train", "validation"))
    started = time.monotonic()
    for result in fit.epochs(state, *feeds(plan, train, validation, fit.unreadable)):
        _report(fit, result)
        if rank == 0:
            tell(epoch_line(result, plan, started, first))
            tell.figures(result.figures)


def new_fit(
    plan: FitPlan,
    device: torch.device,
    rank: int = 0,
    wrap: Callable[[Any], Any] | None = None,
    say: Callable[[str, int], None] | None = None,
) -> Fit:
    """Return a fit on this worker that has not begun, and set torch up for it.

    Args:
        plan: What to fit.
        device: Where.
        rank: Number of this worker.
        wrap: Makes the network one that exchanges gradients with other workers.
        say: See `Fit`.
    """
    compute, resources = plan.config.compute, plan.config.resources
    torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
    if compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not compute.deterministic
    network, _, preprocessing = start_network(plan)
    network.to(device)
    if compute.compile:
        network.compile()
    wrapped = None if wrap is None else wrap(network)
    fitter = Fitter(network, preprocessing, plan.recipe, device, wrapped)
    fit = Fit(plan, network, fitter, rank)
    if say is not None:
        fit.say = say
    return fit


def feeds(
    plan: FitPlan, train: Any, validation: Any, unreadable: Unreadable
) -> tuple[Callable[[int], Iterator[Batch]], Callable[[], Iterator[Batch]]]:
    """Return what gives `Fit.epochs` its batches of training and of validation."""
    size = plan.batch_per_worker
    return (
        lambda epoch: batches(train, size, unreadable, plan.shuffle_seed(epoch)),
        lambda: batches(validation, max(size, _VALIDATION_BATCH), unreadable),
    )


def _gather(own: Any) -> list[Any]:
    everybody: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybody, own)
    return everybody


def _agree(tensors: list[torch.Tensor]) -> None:
    for tensor in tensors:
        torch.distributed.broadcast(tensor, 0)


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


def trained_network(plan: FitPlan, best: dict[str, Any], last: dict[str, Any]) -> TrainedNetwork:
    """Return the network of the state of the best epoch, with the history of the last one."""
    network, architecture, preprocessing = start_network(plan)
    network.load_state_dict(best["published"])
    return TrainedNetwork(
        network=network.eval(),
        architecture=architecture,
        preprocessing=preprocessing,
        predicted=best["predicted"].numpy(),
        best_epoch=int(best["epoch"]) + 1,
        figures=best["figures"],
        history=last["history"],
        rejects=[Reject(*item) for item in last["unreadable"]],
    )
