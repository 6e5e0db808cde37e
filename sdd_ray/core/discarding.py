"""Discard comparisons by quality and count the errors that remain, without sorting comparisons.

A quality counts by its rank alone. Images are few and comparisons many, so images are ranked once,
a comparison takes the lower rank of its two images, and everything else is counting by rank. A
threshold at a false match rate lies among the largest nonmated similarities, which are sorted once
for all methods, rates and discard fractions.

Shapes: N images or comparisons of any kind, M mated comparisons, K nonmated comparisons, U ranks, P
points (discard fractions), F false match rates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.error_rates import Similarities, check_similarities, counts_within

Sums = NDArray[Any]
"""Counts (int64), or sums of whole-numbered weights (float64)."""

_LEAST_KEPT = 4096
_SPARE = 4
"""The sorted similarities are this many times as many as the largest rate lets through: after a
discard that spares false matches, the threshold lies deeper than before."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """Qualities as ranks: equal qualities share one, a failure to assess has the lowest.

    Attributes:
        of: (N,) int32, from 0.
        number: U, how many there are.
        qualities: (U,) the quality of each rank, increasing; minus infinity for a failure.
    """

    of: NDArray[np.int32]
    number: int
    qualities: NDArray[np.float64]


def rank_qualities(qualities: NDArray[np.floating[Any]]) -> Ranks:
    """Return the ranks of N qualities, larger is better, NaN and minus infinity for failures.

    Example:
        >>> rank_qualities(np.array([7.0, np.nan, 3.0, 7.0])).of.tolist()
        [2, 0, 1, 2]
    """
    known = np.where(np.isnan(qualities), -np.inf, qualities).astype(np.float64)
    values, of = np.unique(known, return_inverse=True)
    return Ranks(of.astype(np.int32), len(values), values)


@dataclass(frozen=True, eq=False)
class ErrorDiscardCurve:
    """An error rate over the share of comparisons or images discarded: a step function.

    Each value holds from its discard fraction up to the next one. There is no point at 1, where
    nothing remains.

    Attributes:
        discard_fractions: (P,) increasing, from 0, below 1.
        errors: (P,) error rates of the comparisons that remain; NaN where undefined.
        thresholds: (P,) similarity that decided; NaN where the operating point is unattainable.
        num_remaining: (P,) comparisons that remain, the denominators of `errors`.
    """

    discard_fractions: NDArray[np.float64]
    errors: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    num_remaining: NDArray[np.int64]


def step_curve(
    total: Sums,
    wrong: Sums,
    threshold: float,
) -> ErrorDiscardCurve:
    """Return the exact curve at a threshold that stays: one point for each rank that occurs.

    Args:
        total: (U,) comparisons of each rank, or sums of their whole-numbered weights.
        wrong: (U,) those of them that are errors.
        threshold: What decided; NaN makes every error NaN.
    """
    present = np.flatnonzero(total)
    remaining = total[present][::-1].cumsum()[::-1]
    errors = wrong[present][::-1].cumsum()[::-1] / remaining
    everything = remaining[0] if len(remaining) else 0
    return ErrorDiscardCurve(
        discard_fractions=(everything - remaining) / everything,
        errors=np.full_like(errors, np.nan) if math.isnan(threshold) else errors,
        thresholds=np.full_like(errors, threshold),
        num_remaining=remaining.astype(np.int64),
    )


def lowest_ranks(rank_counts: Sums, discard_fractions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the lowest rank that is still there at each point.

    At a point as many of the lowest ranks leave as their counts allow without exceeding the
    fraction; equal ranks leave together.

    Args:
        rank_counts: (U,) how many of what is discarded, images or comparisons, have each rank, or
            sums of their whole-numbered weights.
        discard_fractions: (P,) increasing, from 0, below 1.

    Example:
        >>> lowest_ranks(np.array([1, 2, 1]), np.array([0, 0.25, 0.5, 0.75])).tolist()
        [0, 1, 1, 2]
    """
    up_to = rank_counts.cumsum()
    allowed = counts_within(discard_fractions, int(up_to[-1]))
    return np.searchsorted(up_to, allowed, "right")


def at_least(by_rank: Sums) -> Sums:
    """Return (U,) sums over each rank and all higher ones.

    Example:
        >>> at_least(np.array([1, 2, 4])).tolist()
        [7, 6, 4]
    """
    return by_rank[::-1].cumsum()[::-1]


def of_each(up_from: Sums) -> Sums:
    """Return (U,) what each rank has alone, from sums over it and all higher ones.

    Example:
        >>> of_each(np.array([7, 6, 4])).tolist()
        [1, 2, 4]
    """
    return np.asarray(up_from - np.append(up_from[1:], 0))


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Thresholds at false match rates after discarding.

    Attributes:
        thresholds: (F, P) similarities; NaN where unattainable.
        achieved: (F, P) false match rates there, at most those asked for; NaN where unattainable.
    """

    thresholds: NDArray[np.float64]
    achieved: NDArray[np.float64]


class NotDeepEnoughError(Exception):
    """The largest similarities do not reach down to a threshold; more of them are needed."""


@dataclass(frozen=True, eq=False)
class TopNonmated:
    """The largest nonmated similarities in order, in which thresholds are found.

    Attributes:
        size: K, nonmated comparisons there are.
        first, second: (T,) the images of the largest, largest first; T <= K.
        sorted: (T,) their similarities.
        all: (K,) similarities of all of them, where these are at hand.
    """

    size: int
    first: NDArray[np.int32]
    second: NDArray[np.int32]
    sorted: Similarities
    all: Similarities | None = None

    def solve(
        self,
        ranks: NDArray[np.int32],
        lowest: NDArray[np.int64],
        remaining: NDArray[np.int64],
        rates: Sequence[float],
        all_ranks: NDArray[np.int32] | None = None,
    ) -> Thresholds:
        """Return the lowest observed similarities that hold the rates at each point.

        Args:
            ranks: (T,) of the largest comparisons.
            lowest: (P,) lowest rank that is there at each point.
            remaining: (P,) nonmated comparisons that are there.
            rates: F false match rates, in (0, 1).
            all_ranks: (K,) of all comparisons, for thresholds below the sorted similarities.

        Raises:
            ValueError: A rate is outside (0, 1).
            NotDeepEnoughError: A threshold lies below the sorted similarities, and there are no
                others at hand.

        Source:
            The rule of `sdd_ray.core.error_rates.threshold_at_fmr`.
        """
        if not all(0 < rate < 1 for rate in rates):
            raise ValueError(f"expected false match rates in (0, 1), got {list(rates)}")
        found = np.full((2, len(rates), len(lowest)), np.nan)
        for point in np.flatnonzero(remaining):
            there = self.sorted[ranks >= lowest[point]]
            allowed = counts_within(np.asarray(rates, np.float64), int(remaining[point]))
            for place in np.flatnonzero(allowed > 0):
                if allowed[place] < len(there):
                    threshold = float(there[allowed[place]])
                    above = int(np.searchsorted(-there, -threshold, "left"))
                elif self.all is not None and all_ranks is not None:
                    rest = self.all[all_ranks >= lowest[point]]
                    threshold, above = _nth_largest(rest, int(allowed[place]))
                else:
                    raise NotDeepEnoughError
                found[:, place, point] = threshold, above / remaining[point]
        return Thresholds(*found)


def top_nonmated(
    first: NDArray[np.int32],
    second: NDArray[np.int32],
    similarities: Similarities,
    largest_fmr: float,
    least: int = 0,
) -> TopNonmated:
    """Return the largest similarities of comparisons that are all at hand.

    Args:
        first: (K,) one image of each nonmated comparison.
        second: (K,) the other one.
        similarities: (K,) of the comparisons.
        largest_fmr: Largest false match rate that will be asked for, in (0, 1): for speed.
        least: How many are wanted at least, if there are.

    Raises:
        ValueError: There is no comparison, or a similarity is NaN.
    """
    check_similarities(similarities, "nonmated")
    size = similarities.size
    wanted = min(size, max(_LEAST_KEPT, least, math.ceil(_SPARE * largest_fmr * size)))
    top = np.arange(size)
    if wanted < size:
        top = np.argpartition(similarities, size - wanted)[size - wanted :]
    order = top[np.argsort(-similarities[top], kind="stable")]
    return TopNonmated(size, first[order], second[order], similarities[order], similarities)


def _nth_largest(similarities: Similarities, above: int) -> tuple[float, int]:
    """Return the similarity with `above` larger or equal ones before it, and the truly larger."""
    rank = similarities.size - 1 - above
    threshold = np.partition(similarities, rank)[rank]
    return float(threshold), int(np.count_nonzero(similarities > threshold))


def false_non_matches(
    mated: Similarities,
    ranks: NDArray[np.int32],
    lowest: NDArray[np.int64],
    thresholds: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return (F, P) false non-match rates of the mated comparisons that are there.

    Args:
        mated: (M,) similarities.
        ranks: (M,) of the comparisons.
        lowest: (P,) lowest rank that is there at each point.
        thresholds: (F, P); NaN gives NaN, and so does a point without a comparison.
    """
    rates = np.full(thresholds.shape, np.nan)
    exact = mated.astype(np.float64)
    for point, rank in enumerate(lowest):
        there = exact[ranks >= rank]
        for place in np.flatnonzero(~np.isnan(thresholds[:, point])):
            if len(there):
                wrong = np.count_nonzero(there < thresholds[place, point])
                rates[place, point] = wrong / len(there)
    return rates
