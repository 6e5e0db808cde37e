"""The search space of tune: checked against the training configuration, and applied to it."""

from collections.abc import Iterator, Mapping
from graphlib import CycleError
from importlib.util import find_spec
from itertools import islice
from typing import Any

from sdd_ray.config import describe_fields, known_keys, load_tree, set_key, to_dict
from sdd_ray.errors import ConfigError, ResourceError
from sdd_ray.search_draws import Values, combinations, draw, grid, in_order, takes_part, value_at
from sdd_ray.settings import SearchDimension, TrainConfig, TuneConfig

_SHARED = (
    "labels",
    "output",
    "source",
    "split",
    "validation",
    "best",
    "calibration",
    "max_reject_share",
    "join_in_memory",
    "resources",
    "ray",
)
"""Top-level keys of training that all trials share: varied, they would have no effect."""
_CHANGED_ON_THE_WAY = ("optimiser.learning_rate", "optimiser.weight_decay", "network.dropout")
"""Keys that leave weights and optimiser state as they are, and so does loss.*: for pbt."""
_MEASURES = ("loss.kind", "loss.huber_zeta", "loss.ranking_weight")
"""Keys that change what the figure loss measures."""
OF_ROWS = ("loss.balance", "loss.weighting")
"""Keys whose effect is in the weights of the rows, which trials then work out for themselves."""
_MOST_COUNTED = 10_000
"""Configurations of a grid that are counted; of more it is only said that they are more."""


def check_space(config: TuneConfig) -> None:
    """Check that every value of the space gives a training configuration.

    Raises:
        ConfigError: A key is not one of training's, takes values that it does not allow, or is
            never varied; or scheduler, searcher and space do not go together.
        ResourceError: The searcher is not installed.
    """
    known = known_keys(TrainConfig)
    mistakes: list[str] = []
    for key, dimension in config.space.items():
        mistakes += _key_mistakes(config, key, dimension, known)
    if not mistakes:
        mistakes += _condition_mistakes(config)
    if config.searcher == "grid" and not mistakes:
        mistakes += _grid_mistakes(config)
    mistakes += [*_key_option_mistakes(config), *_scheduler_mistakes(config)]
    if mistakes:
        raise ConfigError("\n".join(["wrong search space", *("  " + m for m in mistakes)]))
    if config.searcher == "optuna" and find_spec("optuna") is None:
        raise ResourceError("searcher=optuna needs optuna: pip install 'sdd-ray[optuna]'")


def proposals(config: TuneConfig) -> list[Values]:
    """Return the configurations of all trials, as far as they do not depend on results."""
    if config.searcher == "grid":
        return list(grid(config))
    return [draw(config, number) for number in range(config.trials)]


def with_values(train: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """Return the training configuration with some dotted keys set.

    Raises:
        ConfigError: A key or value is not allowed.

    Example:
        >>> train = TrainConfig(labels="labels", output="model")
        >>> with_values(train, {"optimiser.learning_rate": 0.5}).optimiser.learning_rate
        0.5
    """
    tree = to_dict(train)
    for key, value in values.items():
        set_key(tree, key, value)
    return load_tree(TrainConfig, tree)


def most_epochs(config: TuneConfig) -> int:
    """Return the epochs of the longest trial that the space allows."""
    varied = config.space.get("optimiser.epochs")
    fixed = config.train.optimiser.epochs
    return fixed if varied is None else max(fixed, *(int(v) for v in _extremes(varied)))


def _key_mistakes(
    config: TuneConfig, key: str, dimension: SearchDimension, known: list[str]
) -> Iterator[str]:
    if key not in known:
        yield f"space.{key}: train has no such key"
        return
    if key.partition(".")[0] in _SHARED:
        yield f"space.{key}: is the same in all trials and cannot be varied"
        return
    for value in _extremes(dimension):
        try:
            with_values(config.train, {key: value})
        except ConfigError as error:
            yield f"space.{key}: {value}: {str(error).splitlines()[-1].strip()}"
    leaves = {leaf for leaf, *_ in describe_fields(TrainConfig)}
    for other in dimension.when or {}:
        if other not in leaves:
            yield f"space.{key}.when: train has no key {other}"


def _condition_mistakes(config: TuneConfig) -> Iterator[str]:
    try:
        in_order(config.space)
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        yield f"space: when goes in a circle: {circle}"
        return
    for key, dimension in config.space.items():
        if dimension.when and not _can_take_part(config, key):
            conditions = ", ".join(f"{k} = {_text(v)}" for k, v in dimension.when.items())
            fixed = to_dict(config.train)
            others = [k for k in dimension.when if k not in config.space]
            has = "".join(f"; train has {k} = {_text(value_at(fixed, k))}" for k in others)
            yield f"space.{key}.when: {conditions} is never the case{has}"


def _can_take_part(config: TuneConfig, key: str) -> bool:
    """Return whether some values of the keys that it depends on let a key take part."""
    wanted: dict[str, list[Any]] = {}
    for dimension in config.space.values():
        for other, values in (dimension.when or {}).items():
            wanted.setdefault(other, []).extend(values if isinstance(values, tuple) else [values])
    offered: dict[str, list[Any]] = {}
    waiting = [key]
    while waiting:
        for other in config.space[waiting.pop()].when or {}:
            if other in config.space and other not in offered:
                offered[other] = _conceivable(config.space[other], wanted[other])
                waiting.append(other)
    return any(takes_part(config, key, values) for values in combinations(config, offered))


def _conceivable(dimension: SearchDimension, wanted: list[Any]) -> list[Any]:
    """Return values of a dimension that stand for all where only those wanted are told apart."""
    if dimension.kind == "choice" or dimension.low is None or dimension.high is None:
        return list(dimension.values or ())
    low, high = dimension.low, dimension.high
    numbers = [v for v in wanted if isinstance(v, (int, float)) and low <= v <= high]
    return [*numbers, low, high]


def _grid_mistakes(config: TuneConfig) -> Iterator[str]:
    without = [k for k, d in config.space.items() if d.kind != "choice" and d.points is None]
    if without:
        yield from (f"space.{key}: searcher=grid needs points for a range" for key in without)
        return
    most = max(config.trials, _MOST_COUNTED)
    count = sum(1 for _ in islice(grid(config), most + 1))
    if count > config.trials:
        found = f"more than {most:,}" if count > most else f"{count:,}"
        yield f"trials: the grid has {found} configurations, trials={config.trials} allows fewer"


def _key_option_mistakes(config: TuneConfig) -> Iterator[str]:
    """Yield which keys do not go with other options of the search."""
    for key in config.space:
        if key in _MEASURES and config.train.best == "loss":
            yield (
                f"space.{key}: changes what train.best=loss measures, so that trials could not be"
                " compared; choose another figure for train.best"
            )
        if key in OF_ROWS and config.resources.workers_per_trial > 1:
            yield f"space.{key}: can be varied in trials of one worker alone"


def _scheduler_mistakes(config: TuneConfig) -> Iterator[str]:
    epochs = config.train.optimiser.epochs
    options = {
        "asha": ("grace_epochs", config.grace_epochs, epochs),
        "median": ("grace_epochs", config.grace_epochs, epochs),
        "pbt": ("perturbation_epochs", config.perturbation_epochs, epochs - 1),
    }
    if config.scheduler in options:
        name, value, most = options[config.scheduler]
        if value > most:
            what = "is more than" if most == epochs else "leaves nothing to exchange within"
            yield f"{name}: {value} {what} train.optimiser.epochs={epochs}"
    if config.scheduler == "pbt":
        yield from _pbt_mistakes(config)


def _pbt_mistakes(config: TuneConfig) -> Iterator[str]:
    for key in config.space:
        if key not in _CHANGED_ON_THE_WAY and not key.startswith("loss."):
            yield (
                f"space.{key}: scheduler=pbt changes values on the way, which is possible for"
                f" {', '.join(_CHANGED_ON_THE_WAY)} and loss.* alone"
            )
    if config.searcher == "optuna":
        yield "searcher: scheduler=pbt changes the values itself; use random or grid"
    if config.resources.workers_per_trial > 1:
        yield "resources.workers_per_trial: scheduler=pbt needs trials of one worker"
    if config.resources.concurrent_trials < config.trials or config.trials < 2:
        yield (
            "resources.concurrent_trials: scheduler=pbt compares trials of the same age, so that"
            f" all of them, 2 at least, must run at the same time; got {config.trials} trials,"
            f" {config.resources.concurrent_trials} at a time"
        )


def _extremes(dimension: SearchDimension) -> list[Any]:
    if dimension.kind == "choice":
        return list(dimension.values or ())
    low, high = dimension.low, dimension.high
    if low is None or high is None:
        return []
    return [int(low), int(high)] if dimension.kind == "integer" else [low, high]


def _text(value: Any) -> str:
    return " or ".join(str(v) for v in value) if isinstance(value, tuple) else str(value)
