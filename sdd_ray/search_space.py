"""The search space of tune: checked against the training configuration, and applied to it."""

from collections.abc import Mapping
from typing import Any

from sdd_ray.config import known_keys, load_tree, set_key, to_dict
from sdd_ray.errors import ConfigError
from sdd_ray.settings import SearchDimension, TrainConfig, TuneConfig

_SHARED = ("labels", "output", "source", "split", "best", "resources", "ray")
"""Top-level keys of training that all trials share: varied, they would have no effect."""


def check_space(config: TuneConfig) -> None:
    """Check that every value of the space gives a training configuration.

    Raises:
        ConfigError: A key is not one of training's, or takes values that it does not allow.
    """
    mistakes = []
    known = known_keys(TrainConfig)
    for key, dimension in config.space.items():
        if key not in known:
            mistakes.append(f"space.{key}: train has no such key")
            continue
        if key.split(".")[0] in _SHARED:
            mistakes.append(f"space.{key}: is the same in all trials and cannot be varied")
            continue
        for value in _extremes(dimension):
            try:
                with_values(config.train, {key: value})
            except ConfigError as error:
                mistakes.append(f"space.{key}: {value}: {str(error).splitlines()[-1].strip()}")
    if config.scheduler == "asha" and config.grace_epochs > config.train.optimiser.epochs:
        mistakes.append(
            f"grace_epochs: {config.grace_epochs} is more than train.optimiser.epochs="
            f"{config.train.optimiser.epochs}"
        )
    if mistakes:
        raise ConfigError("\n".join(["wrong search space", *("  " + m for m in mistakes)]))


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


def _extremes(dimension: SearchDimension) -> list[Any]:
    if dimension.kind == "choice":
        return list(dimension.values or ())
    low, high = dimension.low, dimension.high
    if low is None or high is None:
        return []
    return [int(low), int(high)] if dimension.kind == "integer" else [low, high]
