"""How much one option of a search has to do with its outcome, from the trials alone.

Both measures are the share of the variance of the outcome's ranks that the option explains by
itself, less what chance explains with so few trials (the adjusted R squared): 1 is all of it, 0 is
no more than chance. They do not see what only a combination of options does.

Shapes: N trials.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.floating[Any]]


def of_numbers(values: Floats, outcome: Floats) -> float:
    """Return the importance of an option whose values have an order, by Spearman's correlation.

    Args:
        values: (N,) values of the option.
        outcome: (N,) such as a validation figure.

    Returns:
        A number in [0, 1]; NaN for fewer than 4 trials or values or outcomes that are all equal.
    """
    if len(values) < 4 or np.ptp(values) == 0 or np.ptp(outcome) == 0:
        return float("nan")
    correlation = np.corrcoef(rankdata(values), rankdata(outcome))[0, 1]
    return _adjusted(float(correlation) ** 2, len(values), parameters=2)


def of_groups(groups: NDArray[np.integer[Any]], outcome: Floats) -> float:
    """Return the importance of an option whose values have no order: eta squared of the ranks.

    Args:
        groups: (N,) number of each trial's value.
        outcome: (N,) such as a validation figure.

    Returns:
        A number in [0, 1]; NaN for fewer than 4 trials, outcomes that are all equal, or values that
        are all equal or all different.
    """
    _, places, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if len(groups) < 4 or not 1 < len(counts) < len(groups) or np.ptp(outcome) == 0:
        return float("nan")
    ranks = rankdata(outcome)
    means = np.bincount(places, weights=ranks) / counts
    between = float((counts * (means - ranks.mean()) ** 2).sum())
    total = float(((ranks - ranks.mean()) ** 2).sum())
    return _adjusted(between / total, len(groups), parameters=len(counts))


def _adjusted(share: float, trials: int, parameters: int) -> float:
    return max(0.0, 1 - (1 - share) * (trials - 1) / (trials - parameters))
