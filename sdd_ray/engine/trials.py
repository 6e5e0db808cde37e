"""One trial of a search: the same fit as training's, with some keys of the configuration set.

A trial of one worker is a plain function: a run of Ray Train inside every trial takes many seconds
more, which only several workers are worth.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from sdd_ray.core.fitting import Batch
from sdd_ray.engine.fitting import FitPlan
from sdd_ray.engine.progress import clock
from sdd_ray.engine.search import GIVEN, NUMBER, number_of
from sdd_ray.engine.training import feeds, new_fit, read_state, trainer, write_state
from sdd_ray.engine.training_data import ImageDatasets
from sdd_ray.engine.training_labels import in_order, read_labels
from sdd_ray.search_space import OF_ROWS, with_values
from sdd_ray.settings import TrainConfig, TuneConfig
from sdd_ray.store.dataset import Dataset
from sdd_ray.store.location import Location

Feed = Callable[[int], Iterator[Batch]]

_RUNS = "runs"
"""Folder of the runs of Ray Train of trials with several workers."""


@dataclass(frozen=True)
class TrialTask:
    """What all trials have in common.

    Attributes:
        search: The configuration of the search.
        plan: What to fit, before any key is set.
        labels: What the images were labelled with.
        work: Folder of the search.
        lines: Board for lines.
    """

    search: TuneConfig
    plan: FitPlan
    labels: Dataset
    work: Location
    lines: Any


def trial_config(search: TuneConfig, values: dict[str, Any]) -> TrainConfig:
    """Return the configuration that a trial trains with, on the workers of the search."""
    asked = search.resources
    return replace(
        with_values(search.train, values),
        resources=replace(
            search.train.resources,
            workers=asked.workers_per_trial,
            min_workers=None,
            cpus_per_worker=asked.cpus_per_trial / asked.workers_per_trial,
            use_gpu=asked.gpus_per_trial > 0,
            max_failures=asked.max_failures,
        ),
    )


def trainable(task: TrialTask, images: ImageDatasets) -> Any:
    """Return what Ray Tune runs for each trial, with what it needs of the cluster."""
    asked = task.search.resources
    needs = {"CPU": asked.cpus_per_trial, "GPU": asked.gpus_per_trial}
    run = _one_worker
    if asked.workers_per_trial > 1:
        # The workers ask for theirs; Ray refuses a trial that asks for nothing.
        run, needs = _several_workers, {"CPU": 0.01}
    given = tune.with_parameters(run, task=task, train=images.train, validation=images.validation)
    return tune.with_resources(given, needs)


def run_of(work: Location, number: int) -> tuple[Location, str]:
    """Return the storage of the runs of trials with several workers, and the name of one."""
    return work / _RUNS, f"{number:04d}"


def _one_worker(given: dict[str, Any], task: TrialTask, train: Any, validation: Any) -> None:
    """Fit one configuration, reporting every epoch."""
    plan = _plan(given, task)
    say = _Voice(task)
    device = torch.device("cuda" if plan.config.resources.use_gpu else "cpu")
    fit = new_fit(plan, device, say=say)
    started = time.monotonic()
    to_train, to_validate = feeds(plan, train, validation, fit.unreadable)
    if any(key in task.search.space for key in OF_ROWS):
        to_train = _weighted(to_train, _weights(plan.config, task))
    for result in fit.epochs(_resume(say), to_train, to_validate):
        metric, epochs = plan.config.best, plan.config.optimiser.epochs
        say(
            f"epoch {result.epoch + 1} of {epochs}, {metric} {result.figures[metric]:.3f},"
            f" {clock(time.monotonic() - started)}"
        )
        with tempfile.TemporaryDirectory() as folder:
            write_state(fit, result, folder)
            tune.report(result.figures, checkpoint=tune.Checkpoint.from_directory(folder))


def _several_workers(given: dict[str, Any], task: TrialTask, train: Any, validation: Any) -> None:
    """Fit one configuration by a run of Ray Train, which is named after the trial and goes on."""
    storage, name = run_of(task.work, number_of(tune.get_context().get_trial_dir()))
    images = ImageDatasets(train, validation)
    run = trainer(_plan(given, task), images, name, storage, _Voice(task), [TuneReportCallback()])
    run.fit()


def _plan(given: dict[str, Any], task: TrialTask) -> FitPlan:
    values = {key: value for key, value in given[GIVEN].items() if key != NUMBER}
    return replace(task.plan, config=trial_config(task.search, values))


def _weights(config: TrainConfig, task: TrialTask) -> NDArray[np.float32]:
    """Return the weight of each training row, where trials differ in it; reads the labels."""
    # The rows of all trials are in the order that the seed of the search's own training gives.
    known = read_labels(replace(config, seed=task.search.train.seed), task.labels)
    table = in_order(pa.concat_tables(known.rows(file) for file in task.labels.files))
    train = table.filter(pc.equal(table["part"], "train"))
    return np.asarray(train["weight"], np.float32)


def _weighted(feed: Feed, weights: NDArray[np.float32]) -> Feed:
    """Return what gives the same batches with these weights; images without any keep none."""

    def batches(epoch: int) -> Iterator[Batch]:
        for batch in feed(epoch):
            own = np.where(batch.weights > 0, weights[batch.rows], 0)
            yield replace(batch, weights=own.astype(np.float32))

    return batches


def _resume(say: "_Voice") -> dict[str, Any] | None:
    """Return the state that this trial goes on from, its own or another's; None: it begins."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    try:
        return read_state(checkpoint)
    except FileNotFoundError:
        # The search was killed between the removal of an old checkpoint and the note of the new.
        say("its last checkpoint is gone, so it begins anew")
        return None


class _Voice:
    """Says lines for a trial, under its number; also stands in for the board of training."""

    def __init__(self, task: TrialTask) -> None:
        self._lines = task.lines
        self._name = f"trial {number_of(tune.get_context().get_trial_dir())}"

    def __call__(self, line: str) -> None:
        self._lines.put.remote(f"tune: {self._name}, {line}")

    @property
    def put(self) -> "_Voice":
        """This; training calls `put.remote`."""
        return self

    def remote(self, note: str | dict[str, float]) -> None:
        """Say a line; figures are Tune's business."""
        if isinstance(note, str):
            self(note.removeprefix("train: "))
