"""Values for the keys of a search space: drawn, listed as a grid, or changed on the way.

What is drawn for a key depends on the seed, the number of the trial and the key alone, so that a
search that goes on later tries the same configurations, and another key in the space changes none.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from graphlib import TopologicalSorter
from typing import Any

import numpy as np

from sdd_ray.config import to_dict
from sdd_ray.settings import SearchDimension, TuneConfig

Values = dict[str, Any]

_REDRAWN = 0.25
"""Chance that a changed value is drawn anew. Source: Jaderberg et al. 2017, section 4."""
_FACTORS = (0.8, 1.2)
"""Otherwise it is multiplied by one of these. Source: as above."""


def in_order(space: Mapping[str, SearchDimension]) -> list[str]:
    """Return the keys such that each comes after those that its `when` names.

    Raises:
        graphlib.CycleError: Keys wait for each other.
    """
    waits = {key: [k for k in (d.when or {}) if k in space] for key, d in space.items()}
    return list(TopologicalSorter(waits).static_order())


def resolve(config: TuneConfig, pick: Callable[[str, SearchDimension], Any]) -> Values:
    """Return a value for each key that takes part, conditions before what they decide.

    Args:
        config: The search.
        pick: From a key and its dimension to a value.
    """
    fixed, values = to_dict(config.train), Values()
    for key in in_order(config.space):
        dimension = config.space[key]
        if _takes_part(dimension, values, fixed):
            values[key] = pick(key, dimension)
    return values


def draw(config: TuneConfig, number: int) -> Values:
    """Return the configuration of a trial as drawn from the seed and its number."""

    def pick(key: str, dimension: SearchDimension) -> Any:
        key_number = zlib.crc32(key.encode())
        return _drawn(dimension, np.random.default_rng([config.seed, number, key_number]))

    return resolve(config, pick)


def grid(config: TuneConfig) -> Iterator[Values]:
    """Yield all combinations of choices and of the points of ranges; the last key varies fastest.

    Raises:
        ValueError: A range has no points.
    """
    return combinations(config, {key: listed(d) for key, d in config.space.items()})


def combinations(config: TuneConfig, offered: Mapping[str, list[Any]]) -> Iterator[Values]:
    """Yield all combinations of the offered values; conditional keys only where they take part."""
    fixed, order = to_dict(config.train), in_order(config.space)

    def rest(place: int, values: Values) -> Iterator[Values]:
        if place == len(order):
            yield values
            return
        key = order[place]
        if key not in offered or not _takes_part(config.space[key], values, fixed):
            yield from rest(place + 1, values)
            return
        for value in offered[key]:
            yield from rest(place + 1, {**values, key: value})

    return rest(0, {})


def takes_part(config: TuneConfig, key: str, values: Mapping[str, Any]) -> bool:
    """Return whether a key is varied where those that it depends on have these values."""
    return _takes_part(config.space[key], values, to_dict(config.train))


def listed(dimension: SearchDimension) -> list[Any]:
    """Return the values of a dimension in a grid, without repetitions.

    Raises:
        ValueError: A range has no points.
    """
    if dimension.kind == "choice":
        return list(dimension.values or ())
    if dimension.points is None:
        raise ValueError(f"a grid needs points for {dimension.kind}")
    shares = np.linspace(0, 1, dimension.points)
    return list(dict.fromkeys(_at_share(dimension, share) for share in shares))


def mutate(config: TuneConfig, values: Mapping[str, Any], rng: np.random.Generator) -> Values:
    """Return changed values for population based training, within the space.

    A number is multiplied by 0.8 or 1.2 and kept within its range, a choice moves to its neighbour,
    and one value in four is drawn anew.

    Source:
        Jaderberg et al., "Population Based Training of Neural Networks", 2017.
    """

    def pick(key: str, dimension: SearchDimension) -> Any:
        if key not in values or rng.random() < _REDRAWN:
            return _drawn(dimension, rng)
        if dimension.kind == "choice":
            choices = list(dimension.values or ())
            place = choices.index(values[key]) + rng.choice([-1, 1])
            return choices[int(np.clip(place, 0, len(choices) - 1))]
        changed = float(np.clip(values[key] * rng.choice(_FACTORS), *_range(dimension)))
        return round(changed) if dimension.kind == "integer" else changed

    return resolve(config, pick)


def _takes_part(
    dimension: SearchDimension, values: Mapping[str, Any], fixed: Mapping[str, Any]
) -> bool:
    """Return whether each key of `when`, as chosen or else as fixed, has a wanted value."""
    for key, wanted in (dimension.when or {}).items():
        found = values[key] if key in values else value_at(fixed, key)
        if found not in (wanted if isinstance(wanted, tuple) else (wanted,)):
            return False
    return True


def value_at(tree: Mapping[str, Any], key: str) -> Any:
    """Return what a tree of plain data holds at a dotted key; None for what it does not hold."""
    found: Any = tree
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _drawn(dimension: SearchDimension, rng: np.random.Generator) -> Any:
    if dimension.kind == "choice":
        values = dimension.values or ()
        return values[int(rng.integers(len(values)))]
    if dimension.kind == "integer":
        low, high = _range(dimension)
        return int(rng.integers(int(low), int(high), endpoint=True))
    return _at_share(dimension, rng.random())


def _at_share(dimension: SearchDimension, share: float) -> float | int:
    """Return the value at a share in [0, 1] of the way from low to high."""
    low, high = _range(dimension)
    if dimension.kind == "log_uniform":
        return float(np.clip(low * (high / low) ** share, low, high))
    value = float(np.clip(low + (high - low) * share, low, high))
    return round(value) if dimension.kind == "integer" else value


def _range(dimension: SearchDimension) -> tuple[float, float]:
    if dimension.low is None or dimension.high is None:
        raise ValueError(f"expected a range, got {dimension.kind}")
    return dimension.low, dimension.high
