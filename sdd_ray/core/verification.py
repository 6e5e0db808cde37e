"""Verification of a list of comparisons: accuracy over folds, equal error rate, area under the ROC.

Shapes: N comparisons, of which M are mated and K nonmated; F folds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.error_rates import Similarities, check_similarities


@dataclass(frozen=True)
class FoldAccuracy:
    """How well a threshold chosen on all other folds decides the comparisons of each fold.

    Attributes:
        accuracies: (F,) share of right decisions in each fold, in order of the folds' numbers.
        thresholds: (F,) similarity from which on two images match; infinite where on the other
            folds nothing is better than to match none.
    """

    accuracies: NDArray[np.float64]
    thresholds: NDArray[np.float64]


def fold_accuracy(
    similarities: Similarities, mated: NDArray[np.bool_], folds: NDArray[np.int64]
) -> FoldAccuracy:
    """Return the accuracy in each fold, with the threshold chosen on the others.

    Two images match where their similarity is at or above the threshold: unlike an error rate, an
    accuracy must put a similarity at the threshold on one side. Candidates are all similarities
    of the other folds, and infinity. Of several that decide equally many comparisons right the
    highest is taken.

    Args:
        similarities: (N,) of the comparisons.
        mated: (N,) whether each shows one person.
        folds: (N,) number of the fold of each; numbers without a comparison make no fold.

    Raises:
        ValueError: The shapes differ, a similarity is NaN, or there are fewer than two folds.

    Source:
        Huang et al., "Labeled Faces in the Wild", 2007, view 2: ten-fold cross-validation.

    Example:
        >>> found = fold_accuracy(
        ...     np.array([0.9, 0.2, 0.7, 0.3]),
        ...     np.array([True, False, True, False]),
        ...     np.array([0, 0, 1, 1]),
        ... )
        >>> found.accuracies.tolist(), found.thresholds.tolist()
        ([1.0, 0.5], [0.7, 0.9])
    """
    check_similarities(similarities, "compared")
    if not similarities.shape == mated.shape == folds.shape:
        raise ValueError(
            "expected three (N,) arrays, got shapes"
            f" {similarities.shape}, {mated.shape} and {folds.shape}"
        )
    numbers = np.unique(folds)
    if len(numbers) < 2:
        raise ValueError(f"expected at least two folds, got {len(numbers)}")
    order = np.argsort(-similarities.astype(np.float64), kind="stable")
    falling, is_mated, fold = similarities[order].astype(np.float64), mated[order], folds[order]
    # A threshold matches whole groups of equal similarities: the last of each ends one.
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    candidates = np.append(np.inf, falling[ends])
    accuracies, thresholds = np.empty(len(numbers)), np.empty(len(numbers))
    for place, number in enumerate(numbers):
        # Right decisions on the other folds, less those of matching none. Similarities of this
        # fold add nothing, so that the first of the best is never one that only it has.
        gain = np.where(is_mated, 1, -1) * (fold != number)
        gains = np.append(0, np.cumsum(gain)[ends])
        threshold = candidates[np.argmax(gains)]
        own = fold == number
        accuracies[place] = np.mean((falling[own] >= threshold) == is_mated[own])
        thresholds[place] = threshold
    return FoldAccuracy(accuracies, thresholds)


def consecutive_folds(total: int, num_folds: int) -> NDArray[np.int64]:
    """Return (total,) numbers of folds that follow each other, the first ones larger by one.

    Raises:
        ValueError: There are fewer comparisons than folds.

    Example:
        >>> consecutive_folds(5, 2).tolist()
        [0, 0, 0, 1, 1]
    """
    if not 1 <= num_folds <= total:
        raise ValueError(f"expected at least one comparison a fold, got {total} for {num_folds}")
    sizes = np.full(num_folds, total // num_folds) + (np.arange(num_folds) < total % num_folds)
    return np.repeat(np.arange(num_folds, dtype=np.int64), sizes)


def equal_error_rate(mated: Similarities, nonmated: Similarities) -> float:
    """Return the rate at which the ROC has as many false matches as false non-matches.

    Between two observed similarities the ROC is a straight line, as it is for `area_under_roc`: on
    which side a similarity at the threshold falls does not matter.

    Args:
        mated: (M,) similarities of comparisons of one person.
        nonmated: (K,) similarities of comparisons of two people.

    Returns:
        Fraction in [0, 1].

    Raises:
        ValueError: One of the two is empty, not one-dimensional, or holds NaN.

    Example:
        >>> equal_error_rate(np.array([0.3, 0.6, 0.7, 0.8]), np.array([0.0, 0.1, 0.2, 0.65]))
        0.25
    """
    false_match, match = _roc(mated, nonmated)
    excess = false_match + match - 1  # false match rate less false non-match rate
    after = int(np.argmax(excess >= 0))
    way = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(false_match[after - 1] + way * (false_match[after] - false_match[after - 1]))


def area_under_roc(mated: Similarities, nonmated: Similarities) -> float:
    """Return the chance that a mated similarity exceeds a nonmated one, equal ones counting half.

    Args:
        mated: (M,) similarities of comparisons of one person.
        nonmated: (K,) similarities of comparisons of two people.

    Raises:
        ValueError: One of the two is empty, not one-dimensional, or holds NaN.

    Example:
        >>> area_under_roc(np.array([0.5, 0.9]), np.array([0.1, 0.5]))
        0.875
    """
    false_match, match = _roc(mated, nonmated)
    return float(np.sum(np.diff(false_match) * (match[1:] + match[:-1]) / 2))


def _roc(
    mated: Similarities, nonmated: Similarities
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the shares of nonmated and of mated similarities that match, from none to all."""
    check_similarities(mated, "mated")
    check_similarities(nonmated, "nonmated")
    rising = np.unique(np.concatenate([mated, nonmated]).astype(np.float64))
    shares = []
    for kind in (nonmated, mated):
        below = np.searchsorted(np.sort(kind.astype(np.float64)), rising, side="left")
        shares.append(np.append(0.0, (kind.size - below[::-1]) / kind.size))
    return shares[0], shares[1]
