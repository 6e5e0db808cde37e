"""Statistics of two columns of numbers.

Shapes: N rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def rank_correlation(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Return Spearman's rank correlation of two (N,) arrays; NaN where one of them is constant.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([9.0, 5.0, 4.0]))
        -1.0
    """
    from scipy import stats  # half a second, which those who only score an image need not wait

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)
