"""Search training configurations with Ray Tune.

A trial is the same fit as training's (`fitting`), on one worker, as a plain function: a Ray Train
run inside every trial took 64 s where this took 14 s (docs/architecture.md).
"""

import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from sdd_ray.config import to_dict, write_yaml
from sdd_ray.core.fitting import Fitter
from sdd_ray.engine.board import board
from sdd_ray.engine.fitting import BETTER, Fit, FitPlan, start_network
from sdd_ray.engine.session import interruptible, pool_size
from sdd_ray.engine.training import read_state, write_state
from sdd_ray.engine.training_data import TrainingData, batches, image_datasets
from sdd_ray.errors import ResourceError, SddError
from sdd_ray.search_space import with_values
from sdd_ray.settings import SearchDimension, TuneConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import OutputRun, write_part

BEST = "best.yaml"
TRIALS = "trials"


def search(config: TuneConfig, data: TrainingData, work: Location) -> list[dict[str, Any]]:
    """Run all trials, or those that an interrupted search has left; return one row for each.

    Args:
        config: The search.
        data: Images and labels of all trials.
        work: Folder that trials are kept in.

    Raises:
        ResourceError: The cluster has no room for the trials.
        SddError: No trial succeeded.
        KeyboardInterrupt: The search was interrupted; run again, it goes on.
    """
    resources = config.resources
    pool_size(
        resources.concurrent_trials,
        resources.cpus_per_trial,
        resources.gpus_per_trial,
        spare_cpus=1.0,
    )
    images = image_datasets(config.train, data)
    needs = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    with board() as lines:
        trainable = tune.with_resources(
            tune.with_parameters(
                _trial,
                search=config,
                mean_target=data.mean_target,
                train=images.train,
                validation=images.validation,
                lines=lines,
            ),
            needs,
        )
        # Ray Tune tells of its own ways to go on, and prints the traceback of every failure.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        with interruptible():
            grid = _tuner(config, trainable, work).fit()
    rows = sorted((_row(config, grid[n]) for n in range(len(grid))), key=lambda row: row["trial"])
    if len(rows) < config.trials or any(row["status"] == "unfinished" for row in rows):
        raise KeyboardInterrupt  # Ray Tune returns what it has
    failed = [row for row in rows if row["status"] == "failed"]
    if len(failed) == len(rows):
        raise SddError(f"all {len(rows)} trials failed; the first: {rows[0]['error']}")
    for row in failed:
        sys.stderr.write(f"tune: trial {row['trial']} failed: {row['error']}\n")
    return rows


def publish(config: TuneConfig, rows: list[dict[str, Any]], run: OutputRun) -> None:
    """Write the trials and the best configuration, and complete the output.

    Raises:
        OutputError: The folder cannot be written.
    """
    metric = config.train.best
    done = [row for row in rows if row[metric] is not None]
    best = (min if BETTER[metric] == "min" else max)(done, key=lambda row: row[metric])
    values = {key: best[key] for key in config.space}
    tree = to_dict(with_values(config.train, values))
    head = (
        f"# Best of {len(rows)} trials by validation {metric}: {best[metric]:.4f} at epoch"
        f" {best['epoch']}.\n# python -m sdd_ray.train --config {BEST}\n\n"
    )
    (run.output / BEST).write_bytes((head + write_yaml(tree)).encode())
    record = write_part(run.output, TRIALS, pa.Table.from_pylist(rows))
    failed = sum(row["status"] == "failed" for row in rows)
    run.complete([record], {"best": {**values, metric: best[metric]}, "failed_trials": failed})


def _tuner(config: TuneConfig, trainable: Any, work: Location) -> tune.Tuner:
    """Return a new search, or one that goes on: with its trials, but asha starts without a past."""
    path = (work / "search").uri
    if tune.Tuner.can_restore(path):
        return tune.Tuner.restore(path, trainable=trainable, resume_errored=True)
    metric, concurrent = config.train.best, config.resources.concurrent_trials
    epochs = config.train.optimiser.epochs
    scheduler = (
        ASHAScheduler(
            time_attr="epoch",
            max_t=epochs,
            grace_period=min(config.grace_epochs, epochs),
            reduction_factor=config.reduction_factor,
        )
        if config.scheduler == "asha"
        else FIFOScheduler()
    )
    return tune.Tuner(
        trainable,
        param_space={key: _domain(dimension) for key, dimension in config.space.items()},
        tune_config=tune.TuneConfig(
            metric=metric,
            mode=BETTER[metric],
            num_samples=config.trials,
            # The random searcher counts for itself, and Ray warns of two limits.
            max_concurrent_trials=None if config.searcher == "random" else concurrent,
            scheduler=scheduler,
            search_alg=_searcher(config),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=work.uri,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.resources.max_failures),
        ),
    )


def _searcher(config: TuneConfig) -> Any:
    if config.searcher == "random":
        concurrent = config.resources.concurrent_trials
        return BasicVariantGenerator(max_concurrent=concurrent, random_state=config.seed)
    try:
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("optuna").setLevel(logging.WARNING)
        return OptunaSearch(
            metric=config.train.best, mode=BETTER[config.train.best], seed=config.seed
        )
    except (ImportError, AssertionError) as error:
        raise ResourceError(
            "searcher=optuna needs optuna: pip install 'sdd-ray[optuna]'"
        ) from error


def _domain(dimension: SearchDimension) -> Any:
    if dimension.kind == "choice":
        return tune.choice(list(dimension.values or ()))
    low, high = dimension.low or 0.0, dimension.high or 0.0
    if dimension.kind == "integer":
        return tune.randint(int(low), int(high) + 1)
    return (
        tune.loguniform(low, high) if dimension.kind == "log_uniform" else tune.uniform(low, high)
    )


def _trial(
    values: dict[str, Any],
    search: TuneConfig,
    mean_target: float,
    train: Any,
    validation: Any,
    lines: Any,
) -> None:
    """Fit one configuration, reporting every epoch; runs on a worker."""
    torch.set_num_threads(max(1, int(search.resources.cpus_per_trial)))
    config = with_values(search.train, _plain(values))
    plan = FitPlan(config, mean_target, workers=1)
    network, _, preprocessing = start_network(plan)
    device = torch.device("cuda" if search.resources.gpus_per_trial else "cpu")
    network.to(device)
    fit = Fit(plan, network, Fitter(network, preprocessing, plan.recipe, device))
    checkpoint = tune.get_checkpoint()
    state = None if checkpoint is None else read_state(checkpoint)
    name = tune.get_context().get_trial_id()
    started = time.monotonic()
    for result in fit.epochs(
        state,
        lambda epoch: batches(train, plan.batch_per_worker, plan.shuffle_seed(epoch)),
        lambda: batches(validation, plan.batch_per_worker),
    ):
        metric = config.best
        value = result.figures[metric]
        lines.put.remote(
            f"tune: trial {name}, epoch {result.epoch + 1} of {config.optimiser.epochs},"
            f" {metric} {value:.3f}, {time.monotonic() - started:,.0f} s"
        )
        with tempfile.TemporaryDirectory() as folder:
            write_state(fit, result, folder)
            tune.report(result.figures, checkpoint=tune.Checkpoint.from_directory(folder))


def _row(config: TuneConfig, result: Any) -> dict[str, Any]:
    """Return what one trial tried and reached; its figures are of its best epoch."""
    metric = config.train.best
    frame = result.metrics_dataframe
    row: dict[str, Any] = {"trial": Path(result.path).name, "error": ""}
    chosen = _plain(result.config or {})
    row |= {key: chosen.get(key) for key in config.space}
    if frame is None or metric not in frame or frame[metric].isna().all():
        row |= dict.fromkeys(("epoch", "epochs_run", "seconds", "loss", "mae", "spearman"))
    else:
        place = frame[metric].idxmin() if BETTER[metric] == "min" else frame[metric].idxmax()
        row |= {key: float(frame[key][place]) for key in ("loss", "mae", "spearman")}
        row |= {"epoch": int(frame["epoch"][place]), "epochs_run": int(frame["epoch"].max())}
        row["seconds"] = float(frame["time_total_s"].max())
    if result.error is not None:
        return {**row, "status": "failed", "error": str(result.error).strip().splitlines()[-1]}
    return {**row, "status": "unfinished" if row["epoch"] is None else "finished"}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values without numpy's number types, which a configuration does not take."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
