"""Levels of similarity of a set that holds errors itself: what matches, and what is at chance.

Images under a wrong name make comparisons of one person look like comparisons of two. With G
identities and a share w of wrong images, some 2 w / G of the "nonmated" comparisons are of one
person: for 30 identities and 4 % more than the 1 in 1,000 that a threshold at FMR 1e-3 rests on. So
a first level is extrapolated from the bulk, which few errors do not move, and what it shows to be
wrong is left out of the comparisons of the second.

Shapes: N images of d numbers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from sdd_ray.core.error_rates import threshold_at_fmr
from sdd_ray.core.similarity import products

_TILE_ROWS = 1024


@dataclass(frozen=True)
class Levels:
    """Two similarities of a set.

    Attributes:
        match: Above it two images match.
        chance: Below it they agree no more than images of two people may.
    """

    match: float
    chance: float


def provisional_levels(nonmated: NDArray[np.float32], fmr: float, chance_fmr: float) -> Levels:
    """Return levels from the bulk of the nonmated similarities, as if they were normal.

    Args:
        nonmated: Similarities between different identities, some of which may be of one person.
        fmr: Share of them above `match`, by the normal law with their median and upper sigma.
        chance_fmr: Share of them above `chance`, by count.

    Returns:
        The levels; NaN where there is no similarity.
    """
    if len(nonmated) == 0:
        return Levels(np.nan, np.nan)
    median, sigma_above = np.quantile(nonmated, [0.5, ndtr(1.0)])
    match = float(median - ndtri(fmr) * (sigma_above - median))
    chance = threshold_at_fmr(nonmated, chance_fmr).threshold
    return Levels(max(match, chance), chance)


def trusted_levels(nonmated: NDArray[np.float32], provisional: Levels, fmr: float) -> Levels:
    """Return levels of which `match` is the threshold at a false match rate, by count.

    Args:
        nonmated: Similarities between images that agree with their identities, of people that are
            not one.
        provisional: Of all comparisons; `chance` is kept.
        fmr: Share of `nonmated` above `match`.

    Returns:
        The levels; `match` is NaN where there are too few similarities for the rate.
    """
    if len(nonmated) == 0:
        return Levels(np.nan, provisional.chance)
    return Levels(threshold_at_fmr(nonmated, fmr).threshold, provisional.chance)


def nonmated_similarities(
    unit: NDArray[np.float32], person: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the similarities of all pairs of different people.

    Args:
        unit: (N, d) unit length.
        person: (N,) number of the person of each row.

    Example:
        >>> unit = np.float32([[1, 0], [1, 0], [0, 1]])
        >>> nonmated_similarities(unit, np.array([0, 0, 1])).tolist()
        [0.0, 0.0]
    """
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(unit), _TILE_ROWS):
        stop = min(start + _TILE_ROWS, len(unit))
        similarities = products(unit[start:stop], unit)
        later = np.arange(start, stop)[:, None] < np.arange(len(unit))[None, :]
        parts.append(similarities[later & (person[start:stop, None] != person[None, :])])
    return np.concatenate(parts)
