"""Ray Tune's parts for a search: who proposes configurations, who stops or changes trials, storage.

A trial's configuration travels as `{GIVEN: {dotted key: value}}`, with the trial's number beside
the values, and with what it goes on from where pbt gave it the weights of another.
"""

import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search.basic_variant import BasicVariantGenerator

from sdd_ray.engine.fitting import BETTER
from sdd_ray.search_draws import Values, mutate, resolve
from sdd_ray.search_space import most_epochs, proposals
from sdd_ray.settings import SearchDimension, TuneConfig
from sdd_ray.store.location import Location

GIVEN = "given"
NUMBER, ORIGIN = "trial", "origin"
_NAME = "search"


def tuner(config: TuneConfig, trainable: Any, work: Location) -> tune.Tuner:
    """Return a new search, or the one that was begun in `work`.

    A search that goes on has its trials, the state of its searcher and what is left of its budget;
    schedulers begin without a past.

    Args:
        config: The search.
        trainable: What a trial does.
        work: Folder that trials are kept in.
    """
    path = (work / _NAME).uri
    random.seed(config.seed)  # pbt chooses by it which good trial a poor one copies
    if tune.Tuner.can_restore(path):
        return tune.Tuner.restore(path, trainable=trainable, resume_errored=True)
    space, search, samples = _searcher(config)
    metric = config.train.best
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=metric,
            mode=BETTER[metric],
            num_samples=samples,
            # The list counts for itself, and Ray warns of two limits.
            max_concurrent_trials=config.resources.concurrent_trials if samples > 1 else None,
            scheduler=_scheduler(config),
            search_alg=search,
            time_budget_s=config.budget_s,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name=_NAME,
            storage_path=work.uri,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.resources.max_failures),
        ),
    )


def values_of(given: dict[str, Any]) -> Values:
    """Return the values of a trial without what else travels with them."""
    return {key: value for key, value in given[GIVEN].items() if key not in (NUMBER, ORIGIN)}


def _folder_name(trial: Any) -> str:
    return f"{trial.config[GIVEN][NUMBER]:04d}"


def _scheduler(config: TuneConfig) -> TrialScheduler:
    schedulers: dict[str, Callable[[], TrialScheduler]] = {
        "asha": lambda: ASHAScheduler(
            time_attr="epoch",
            max_t=most_epochs(config),
            grace_period=config.grace_epochs,
            reduction_factor=config.reduction_factor,
        ),
        "median": lambda: MedianStoppingRule(time_attr="epoch", grace_period=config.grace_epochs),
        "pbt": lambda: Exchange(config),
        "none": FIFOScheduler,
    }
    return schedulers[config.scheduler]()


class Exchange(PopulationBasedTraining):
    """Population based training in step: a trial is compared with others of its age.

    A trial finds by its configuration whose state it goes on from; Ray's own way, by checkpoints,
    is kept busy with empty ones. After the last epoch nothing is exchanged: it would change values
    that no weight has seen.

    Args:
        config: The search.
    """

    def __init__(self, config: TuneConfig) -> None:
        super().__init__(
            time_attr="epoch",
            perturbation_interval=config.perturbation_epochs,
            custom_explore_fn=dict,  # one must be given; see _get_new_config
            synch=True,
            log_config=False,
        )
        self._config = config

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return what becomes of a trial that has ended an epoch."""
        if result["epoch"] >= self._config.train.optimiser.epochs:
            return str(TrialScheduler.CONTINUE)
        # Where a search goes on, trials are beyond the first exchange; Ray would wait for ever.
        self._next_perturbation_sync = max(self._next_perturbation_sync, result["epoch"])
        return str(super().on_trial_result(tune_controller, trial, result))

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return a trial that may go on; none is left to wait for one that has ended or failed."""
        chosen = super().choose_trial_to_run(tune_controller)
        live = [trial for trial in tune_controller.get_trials() if not trial.is_finished()]
        if chosen is None and live and all(trial.status == "PAUSED" for trial in live):
            ages = [self._trial_state[trial].last_train_time for trial in live]
            self._next_perturbation_sync = max(ages) + self._perturbation_interval
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen

    def _get_new_config(
        self, trial: Any, trial_to_clone: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the configuration of a poor trial that goes on from a good one."""
        number, other = (t.config[GIVEN][NUMBER] for t in (trial, trial_to_clone))
        epoch = int(self._trial_state[trial_to_clone].last_train_time)
        rng = np.random.default_rng([self._config.seed, number, epoch, 1])
        values = mutate(self._config, values_of(trial_to_clone.config), rng)
        return {GIVEN: {**values, NUMBER: number, ORIGIN: [other, epoch]}}, {}


def _searcher(config: TuneConfig) -> tuple[dict[str, Any], Any, int]:
    """Return the parameter space, the search algorithm, and how often to sample the space."""
    if config.searcher != "optuna":
        given = [{NUMBER: n, **values} for n, values in enumerate(proposals(config))]
        concurrent = config.resources.concurrent_trials
        return {GIVEN: tune.grid_search(given)}, BasicVariantGenerator(max_concurrent=concurrent), 1
    from ray.tune.search.optuna import OptunaSearch

    logging.getLogger("optuna").setLevel(logging.WARNING)
    metric = config.train.best
    search = OptunaSearch(
        partial(_suggested, config), metric=metric, mode=BETTER[metric], seed=config.seed
    )
    return {}, search, config.trials


def _suggested(config: TuneConfig, trial: Any) -> Values:
    """Ask Optuna for the value of each key that takes part; Ray notes what is asked."""

    def pick(key: str, dimension: SearchDimension) -> Any:
        name = f"{GIVEN}/{key}"
        if dimension.kind == "choice":
            return trial.suggest_categorical(name, list(dimension.values or ()))
        low, high = dimension.low, dimension.high
        if dimension.kind == "integer":
            return trial.suggest_int(name, int(low or 0), int(high or 0))
        return trial.suggest_float(name, low, high, log=dimension.kind == "log_uniform")

    resolve(config, pick)
    return {f"{GIVEN}/{NUMBER}": trial.number}
