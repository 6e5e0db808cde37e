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
from sdd_ray.engine.board import Teller
from sdd_ray.engine.fitting import BETTER, Fit, FitPlan
from sdd_ray.engine.progress import clock
from sdd_ray.engine.search import GIVEN, NUMBER, ORIGIN, values_of
from sdd_ray.engine.training import feeds, new_fit, trainer
from sdd_ray.engine.training_data import ImageDatasets
from sdd_ray.engine.training_labels import in_order, read_labels
from sdd_ray.engine.trial_folder import TrialFolder
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
        board: Takes lines.
    """

    search: TuneConfig
    plan: FitPlan
    labels: Dataset
    work: Location
    board: Any


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
    plan, folder = _plan(given, task), TrialFolder.of(task.work, given[GIVEN][NUMBER])
    say = _teller(task, given)
    device = torch.device("cuda" if plan.config.resources.use_gpu else "cpu")
    watch = _Watch(folder, values_of(given))
    fit = new_fit(plan, device, say=say.progress)
    to_train, to_validate = feeds(plan, train, validation, fit.unreadable)
    if any(key in task.search.space for key in OF_ROWS):
        to_train = _weighted(to_train, _weights(plan.config, task))
    state, is_pbt = _state(given, task), task.search.scheduler == "pbt"
    result = None
    for result in fit.epochs(state, to_train, to_validate):
        watch.note(result.figures)
        folder.write(fit, result)
        if not is_pbt:  # there, others may go on from any
            folder.keep({_best_epoch(fit), result.epoch + 1})
        metric, epochs = plan.config.best, plan.config.optimiser.epochs
        say(
            f"epoch {result.epoch + 1} of {epochs}, {metric} {result.figures[metric]:.3f},"
            f" {clock(watch.seconds())}"
        )
        say.figures(result.figures)
        _report(result.figures, is_pbt)
    if result is None and state is not None:
        _report(state["figures"], is_pbt)  # killed at its very end: Ray Tune wants to hear of it


def _teller(task: TrialTask, given: dict[str, Any]) -> Teller:
    number = given[GIVEN][NUMBER]
    return Teller(task.board, f"tune: trial {number}, ", number)


def _report(figures: dict[str, float], with_checkpoint: bool) -> None:
    """Tell Ray Tune of an epoch; the checkpoint, which pbt insists on, is empty."""
    if not with_checkpoint:
        tune.report(figures)
        return
    with tempfile.TemporaryDirectory() as folder:
        tune.report(figures, checkpoint=tune.Checkpoint.from_directory(folder))


def _state(given: dict[str, Any], task: TrialTask) -> dict[str, Any] | None:
    """Return the state that a trial goes on from, its own or, after an exchange, another's."""
    own = TrialFolder.of(task.work, given[GIVEN][NUMBER])
    newest = own.newest()
    origin = given[GIVEN].get(ORIGIN)
    if origin is not None and (newest is None or newest <= origin[1]):
        return TrialFolder.of(task.work, origin[0]).read(origin[1])
    return None if newest is None else own.read(newest)


def _best_epoch(fit: Fit) -> int:
    values = np.array([figures[fit.plan.config.best] for figures in fit.history])
    is_min = BETTER[fit.plan.config.best] == "min"
    if np.isnan(values).all():
        return len(values)
    return 1 + int(np.nanargmin(values) if is_min else np.nanargmax(values))


class _Watch:
    """Notes epochs in the journal of a trial, with the values and the time that they took."""

    def __init__(self, folder: TrialFolder, values: dict[str, Any]) -> None:
        self._folder, self._values = folder, values
        self._started = self._noted = time.time()

    def note(self, figures: dict[str, float]) -> None:
        now = time.time()
        seconds, self._noted = now - self._noted, now
        self._folder.note({**figures, "ended": now, "seconds": seconds, "values": self._values})

    def journal(self) -> list[dict[str, Any]]:
        return self._folder.journal()

    def seconds(self) -> float:
        return time.time() - self._started


class _NotingCallback(TuneReportCallback):
    """Notes the epochs of a run of Ray Train, and tells Ray Tune of them; in its controller."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        self._watch.note(metrics[0])
        super().after_report(run_context, metrics, checkpoint)


def _several_workers(given: dict[str, Any], task: TrialTask, train: Any, validation: Any) -> None:
    """Fit one configuration by a run of Ray Train, which is named after the trial and goes on."""
    number = given[GIVEN][NUMBER]
    storage, name = run_of(task.work, number)
    watch = _Watch(TrialFolder.of(task.work, number), values_of(given))
    tell, images = _teller(task, given), ImageDatasets(train, validation)
    before = len(watch.journal())
    trainer(_plan(given, task), images, name, storage, tell, [_NotingCallback(watch)]).fit()
    noted = watch.journal()
    if noted and len(noted) == before:
        noted[-1].pop("values")
        _report(noted[-1], with_checkpoint=False)  # was complete, as above


def _plan(given: dict[str, Any], task: TrialTask) -> FitPlan:
    return replace(task.plan, config=trial_config(task.search, values_of(given)))


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
