"""False match and false non-match rates, and the threshold at a given false match rate.

This is the one place that decides what happens to a similarity that equals the threshold: nothing
does. Following the paper, only a nonmated similarity strictly above the threshold is a false match,
and only a mated similarity strictly below it is a false non-match.

Shapes: N nonmated comparisons (of two people), M mated comparisons (of one person).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Similarities = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold together with the false match rate that it was chosen for.

    Attributes:
        threshold: Similarity; NaN where the point is unattainable.
        asked_fmr: The false match rate that was asked for, in (0, 1).
        achieved_fmr: The rate at `threshold`: at most `asked_fmr`, and less where N comparisons
            have no such step or where similarities are equal; NaN where unattainable.
        num_nonmated: N, the number of nonmated comparisons that the threshold rests on.
    """

    threshold: float
    asked_fmr: float
    achieved_fmr: float
    num_nonmated: int

    @property
    def attainable(self) -> bool:
        """True if the comparisons suffice, i.e. one false match among N stays within the rate."""
        return not math.isnan(self.threshold)


def is_false_match(nonmated: Similarities, threshold: float) -> NDArray[np.bool_]:
    """Return (N,) which nonmated similarities are strictly above the threshold.

    The comparison is made in float64, so that a float32 similarity is not rounded onto a threshold
    that it does not equal.
    """
    return np.greater(nonmated, np.float64(threshold))


def is_false_non_match(mated: Similarities, threshold: float) -> NDArray[np.bool_]:
    """Return (M,) which mated similarities are strictly below the threshold, in float64."""
    return np.less(mated, np.float64(threshold))


def fmr(nonmated: Similarities, threshold: float) -> float:
    """Return the false match rate: the share of nonmated similarities above the threshold.

    Args:
        nonmated: (N,) similarities of comparisons of two people.
        threshold: Similarity; NaN (an unattainable operating point) gives NaN.

    Returns:
        Fraction in [0, 1], or NaN.

    Raises:
        ValueError: There is no comparison, the array is not one-dimensional, or one is NaN.

    Source:
        Ou et al., "SDD-FIQA", CVPR 2021, equation (1).

    Example:
        >>> fmr(np.array([0.1, 0.2, 0.3, 0.4]), 0.3)
        0.25
    """
    check_similarities(nonmated, "nonmated")
    return _rate(is_false_match(nonmated, threshold), threshold)


def fnmr(mated: Similarities, threshold: float) -> float:
    """Return the false non-match rate: the share of mated similarities below the threshold.

    Args:
        mated: (M,) similarities of comparisons of one person.
        threshold: Similarity; NaN (an unattainable operating point) gives NaN.

    Returns:
        Fraction in [0, 1], or NaN.

    Raises:
        ValueError: There is no comparison, the array is not one-dimensional, or one is NaN.

    Source:
        Ou et al., "SDD-FIQA", CVPR 2021, equation (2).

    Example:
        >>> fnmr(np.array([0.2, 0.3, 0.4, 0.5]), 0.3)
        0.25
    """
    check_similarities(mated, "mated")
    return _rate(is_false_non_match(mated, threshold), threshold)


def threshold_at_fmr(nonmated: Similarities, asked_fmr: float) -> OperatingPoint:
    """Return the lowest observed similarity at which the false match rate is at most the asked one.

    With k = floor(asked_fmr * N) + 1 the threshold is the k-th largest nonmated similarity: at most
    k - 1 are strictly above it. Where asked_fmr * N < 1, no false match could be counted at all:
    the point is unattainable, and its threshold is NaN, instead of a rate of 0 without meaning.

    Args:
        nonmated: (N,) similarities of comparisons of two people.
        asked_fmr: The false match rate to stay within, in (0, 1).

    Returns:
        The operating point; look at `attainable` before using its threshold.

    Raises:
        ValueError: `asked_fmr` is outside (0, 1), or `nonmated` is unfit for `fmr`.

    Example:
        >>> point = threshold_at_fmr(np.array([0.1, 0.2, 0.3, 0.4, 0.5]), 0.2)
        >>> point.threshold, point.achieved_fmr
        (0.4, 0.2)
        >>> threshold_at_fmr(np.array([0.1, 0.2, 0.3]), 0.01).attainable
        False
    """
    check_similarities(nonmated, "nonmated")
    if not 0 < asked_fmr < 1:
        raise ValueError(f"expected a false match rate in (0, 1), got {asked_fmr}")
    num_allowed = int(counts_within(np.array([asked_fmr]), nonmated.size)[0])
    if num_allowed < 1:
        return OperatingPoint(math.nan, asked_fmr, math.nan, nonmated.size)
    rank = nonmated.size - 1 - num_allowed
    threshold = float(np.partition(nonmated, rank)[rank])
    return OperatingPoint(threshold, asked_fmr, fmr(nonmated, threshold), nonmated.size)


def counts_within(fractions: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Return the largest counts that are at most the given fractions of a total.

    Plain floor(fraction * total) is wrong where the product is rounded: 0.29 * 100 is
    28.999999999999996 in binary. Here count / total, rounded as usual, decides: 29 / 100 <= 0.29.

    Args:
        fractions: (K,) values in [0, 1].
        total: Positive count.

    Returns:
        (K,) counts in [0, total].

    Example:
        >>> counts_within(np.array([0.29, 0.1, 0.005]), 100).tolist()
        [29, 10, 0]
    """
    counts = np.floor(fractions * total).astype(np.int64)
    counts += (counts + 1) / total <= fractions
    counts -= counts / total > fractions
    return counts


def check_similarities(similarities: Similarities, kind: str) -> None:
    """Raise ValueError unless this is a non-empty one-dimensional array without NaN."""
    if similarities.ndim != 1 or similarities.size == 0:
        raise ValueError(
            f"expected at least one {kind} similarity in a one-dimensional array, "
            f"got shape {similarities.shape}"
        )
    num_nan = int(np.count_nonzero(np.isnan(similarities)))
    if num_nan:
        raise ValueError(
            f"expected {kind} similarities without NaN, got {num_nan} of {similarities.size}"
        )


def _rate(is_error: NDArray[np.bool_], threshold: float) -> float:
    return math.nan if math.isnan(threshold) else int(np.count_nonzero(is_error)) / is_error.size
