"""Search training configurations with Ray Tune, and publish what was found."""

import logging
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray.train
import ray.util.state

from sdd_ray.config import to_dict, write_yaml
from sdd_ray.engine.board import board
from sdd_ray.engine.checkpoints import read_state
from sdd_ray.engine.fitting import BETTER, FitPlan
from sdd_ray.engine.metrics import stage_metrics
from sdd_ray.engine.room import pool_size
from sdd_ray.engine.search import tuner
from sdd_ray.engine.session import interruptible
from sdd_ray.engine.training import TrainedNetwork, trained_network
from sdd_ray.engine.training_data import image_datasets
from sdd_ray.engine.training_output import publish as publish_model
from sdd_ray.engine.training_rows import TrainingData
from sdd_ray.engine.trial_folder import TrialFolder
from sdd_ray.engine.trial_results import TrialResult, best_of, results_of, table_of
from sdd_ray.engine.trials import TrialTask, run_of, trainable
from sdd_ray.engine.tune_report import report_html
from sdd_ray.errors import ResourceError, SddError
from sdd_ray.search_space import with_values
from sdd_ray.settings import TrainConfig, TuneConfig
from sdd_ray.store.dataset import Dataset
from sdd_ray.store.location import Location
from sdd_ray.store.recogniser import recogniser_spec, weights_digest
from sdd_ray.store.run import OutputRun, versions, write_part

BEST, MODEL, REPORT = "best.yaml", "model", "search.html"
TRIALS = "trials"


@dataclass(frozen=True)
class Material:
    """What all trials are fitted to.

    Attributes:
        plan: What to fit, before any key is set.
        data: Images and labels.
        labels: What the images were labelled with.
    """

    plan: FitPlan
    data: TrainingData
    labels: Dataset


def check_room(config: TuneConfig) -> None:
    """Check that the cluster can hold the trials, and a CPU that reads images for them.

    Raises:
        ResourceError: It cannot, or could not stop trials of several workers.
    """
    asked = config.resources
    workers = asked.workers_per_trial
    cpus, gpus = asked.cpus_per_trial / workers, asked.gpus_per_trial / workers
    pool_size(asked.concurrent_trials * workers, cpus, gpus, spare_cpus=1.0)
    if workers > 1 and (config.scheduler != "none" or config.budget_s is not None):
        _check_stops()


def search(config: TuneConfig, material: Material, work: Location) -> list[TrialResult]:
    """Run all trials, or those that an interrupted search has left; return what they reached.

    Args:
        config: The search.
        material: What all trials are fitted to.
        work: Folder that trials are kept in, reached by every worker.

    Raises:
        SddError: No trial has a figure.
        KeyboardInterrupt: The search was interrupted; run again, it goes on.
    """
    images = image_datasets(config.train, material.data)
    metrics, begun = stage_metrics("tune"), TrialFolder.begun(work)

    def count(figures: dict[str, float]) -> None:
        begun.add(int(figures["trial"]))
        if metrics is not None:
            metrics.done(material.plan.num_train, None)
            metrics.trials(len(begun))

    with board(count) as notes:
        task = TrialTask(config, material.plan, material.labels, work, notes)
        # Ray Tune tells of its own ways to go on, and prints the traceback of every failure.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        with interruptible(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consider boosting PBT")
            handler = signal.getsignal(signal.SIGINT)
            grid = tuner(config, trainable(task, images), work).fit()
            interrupted = _took_interrupt(handler)
    results = results_of(config, grid, work)
    if interrupted or any(result.status == "unfinished" for result in results):
        raise KeyboardInterrupt
    for result in results:
        if result.status == "failed":
            sys.stderr.write(f"tune: trial {result.number} failed: {result.error}\n")
    if best_of(results, config.train.best) is None:
        raise SddError(_nothing(config, results))
    return results


def _took_interrupt(handler: Any) -> bool:
    """Return whether Ray Tune took a Ctrl-C: it returns as if all were well, some trials stopped.

    Only then has it put back the handler that was there before.
    """
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and signal.getsignal(signal.SIGINT) is handler


def publish(
    config: TuneConfig, results: Sequence[TrialResult], material: Material, run: OutputRun
) -> None:
    """Write trials, report, the best configuration and its model, and complete the output.

    Raises:
        OutputError: The folder cannot be written.
        SddError: No trial has a figure.
    """
    metric = config.train.best
    best = best_of(results, metric)
    if best is None:
        raise SddError(_nothing(config, results))
    chosen = with_values(config.train, best.values)
    text = _head(config, results, best) + write_yaml(to_dict(chosen))
    (run.output / BEST).write_bytes(text.encode())
    if config.publish:
        _publish_model(config, chosen, best, material, run)
    counts = Counter(result.status for result in results)
    (run.output / REPORT).write_bytes(report_html(config, results, versions()).encode())
    record = write_part(run.output, TRIALS, table_of(config, results))
    found = {
        "best": {"trial": best.number, **best.values, metric: best.reached(metric)},
        "trials": dict(sorted(counts.items())),
        "failures": sum(result.failures for result in results),
    }
    run.complete([record], found)


def _publish_model(
    config: TuneConfig, chosen: TrainConfig, best: TrialResult, material: Material, run: OutputRun
) -> None:
    """Write the model folder as train would, from the checkpoint of the best epoch."""
    folder = run.output / MODEL
    if folder.exists():
        folder.remove_tree()  # of this search, interrupted right here
    chosen = replace(chosen, output=folder.uri)
    inputs = {
        "labels": material.labels.digest,
        "recogniser_weights": weights_digest(recogniser_spec(chosen.recogniser)),
    }
    trained = _trained(config, chosen, best, material, run.work)
    publish_model(chosen, material.data, trained, OutputRun(folder, "train", chosen, inputs))


def _trained(
    config: TuneConfig, chosen: TrainConfig, best: TrialResult, material: Material, work: Location
) -> TrainedNetwork:
    if config.resources.workers_per_trial > 1:
        storage, name = run_of(work, best.number)
        fit = ray.train.Result.from_path((storage / name).uri)
        at_best = read_state(fit.get_best_checkpoint(chosen.best, BETTER[chosen.best]))
        at_end = read_state(fit.checkpoint)
    else:
        folder = TrialFolder.of(work, best.number)
        at_best = folder.read(int(best.epochs[best.best(chosen.best) or 0]))
        at_end = folder.read(int(best.epochs.max()))
    return trained_network(replace(material.plan, config=chosen), at_best, at_end)


def _check_stops() -> None:
    """Check that Ray's dashboard answers: without it, stopped runs of Ray Train keep their room.

    Raises:
        ResourceError: It does not.
    """
    try:
        ray.util.state.list_nodes(limit=1, timeout=10)
    except Exception as error:
        raise ResourceError(
            "trials of several workers can only be stopped, by a scheduler or a budget, where Ray's"
            f" dashboard runs ({_first_line(error)}); set ray.dashboard=true, start the cluster"
            " with it, or set scheduler=none and no budget_s"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _nothing(config: TuneConfig, results: Sequence[TrialResult]) -> str:
    failed = [result for result in results if result.status == "failed"]
    if failed and len(failed) == len(results):
        return f"all {len(results)} trials failed; the first: {failed[0].error}"
    return (
        f"no trial finished an epoch with a figure {config.train.best} within"
        f" budget_s={config.budget_s}"
        + (f"; {len(failed)} failed, the first: {failed[0].error}" if failed else "")
    )


def _head(config: TuneConfig, results: Sequence[TrialResult], best: TrialResult) -> str:
    """Return the comment above the best configuration."""
    metric = config.train.best
    place = best.best(metric) or 0
    lines = [
        f"Best of {len(results)} trials by validation {metric}: {best.reached(metric):.4f} at epoch"
        f" {best.epochs[place]} of trial {best.number}.",
        f"python -m sdd_ray.train --config {BEST}",
    ]
    if config.scheduler == "pbt":
        lines.insert(
            1,
            "The trial came by a schedule of values that pbt changed on the way; these are the last"
            " of them,\n# and training with them throughout is not the same.",
        )
    return "".join(f"# {line}\n" for line in lines) + "\n"
