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

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.error_rates import Similarities, check_similarities, counts_within

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


def rank_qualities(qualities: NDArray[np.float32] | NDArray[np.float64]) -> Ranks:
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
    total: NDArray[np.int64] | NDArray[np.float64],
    wrong: NDArray[np.int64] | NDArray[np.float64],
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


def points_kept(
    rank_counts: NDArray[np.int64] | NDArray[np.float64], discard_fractions: NDArray[np.float64]
) -> NDArray[np.int16]:
    """Return at how many of the points each rank is still there.

    At a point as many of the lowest ranks leave as their counts allow without exceeding the
    fraction; equal ranks leave together.

    Args:
        rank_counts: (U,) how many of what is discarded, images or comparisons, have each rank, or
            sums of their whole-numbered weights.
        discard_fractions: (P,) increasing, from 0, below 1; P < 2^15.

    Returns:
        (U,) a rank is there at points below this number.
    """
    up_to = rank_counts.cumsum()
    allowed = counts_within(discard_fractions, int(up_to[-1]))
    lowest = np.searchsorted(up_to, allowed, "right")
    return np.searchsorted(lowest, np.arange(len(rank_counts)), "right").astype(np.int16)


def remaining_at(kept: NDArray[np.int16], points: int) -> NDArray[np.int64]:
    """Return (P,) how many comparisons are there at each point.

    Args:
        kept: (N,) number of points at which each comparison is there.
        points: P.

    Example:
        >>> remaining_at(np.array([1, 3, 2], np.int16), 3).tolist()
        [3, 2, 1]
    """
    return np.bincount(kept, minlength=points + 1)[::-1].cumsum()[::-1][1:]


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Thresholds at false match rates after discarding.

    Attributes:
        thresholds: (F, P) similarities; NaN where unattainable.
        achieved: (F, P) false match rates there, at most those asked for; NaN where unattainable.
    """

    thresholds: NDArray[np.float64]
    achieved: NDArray[np.float64]


class TopNonmated:
    """The largest nonmated similarities in order, in which thresholds are found.

    Args:
        similarities: (K,) of all nonmated comparisons; not copied.
        largest_fmr: Largest false match rate that will be asked for, in (0, 1).

    Attributes:
        similarities: The given ones.
        order: (T,) which comparisons are the largest, largest first, T <= K.
        sorted: (T,) their similarities.

    Raises:
        ValueError: There is no comparison, or a similarity is NaN.
    """

    def __init__(self, similarities: Similarities, largest_fmr: float) -> None:
        check_similarities(similarities, "nonmated")
        size = similarities.size
        wanted = min(size, max(_LEAST_KEPT, math.ceil(_SPARE * largest_fmr * size)))
        top = np.arange(size)
        if wanted < size:
            top = np.argpartition(similarities, size - wanted)[size - wanted :]
        self.similarities = similarities
        self.order = top[np.argsort(-similarities[top], kind="stable")]
        self.sorted = similarities[self.order]

    def solve(self, kept: NDArray[np.int16], points: int, rates: Sequence[float]) -> Thresholds:
        """Return the lowest observed similarities that hold the rates at each point.

        Args:
            kept: (K,) number of points at which each nonmated comparison is there.
            points: P.
            rates: F false match rates, in (0, 1), at most `largest_fmr` for speed.

        Raises:
            ValueError: A rate is outside (0, 1).

        Source:
            The rule of `sdd_ray.core.error_rates.threshold_at_fmr`.
        """
        if not all(0 < rate < 1 for rate in rates):
            raise ValueError(f"expected false match rates in (0, 1), got {list(rates)}")
        found = np.full((2, len(rates), points), np.nan)
        remaining = remaining_at(kept, points)
        top = kept[self.order]
        for point in np.flatnonzero(remaining):
            there = self.sorted[top > point]
            allowed = counts_within(np.asarray(rates, np.float64), int(remaining[point]))
            for place in np.flatnonzero(allowed > 0):
                found[:, place, point] = self._one(
                    there, kept, int(point), int(allowed[place]), int(remaining[point])
                )
        return Thresholds(*found)

    def _one(
        self, there: Similarities, kept: NDArray[np.int16], point: int, allowed: int, remaining: int
    ) -> tuple[float, float]:
        """Return threshold and achieved rate, from the sorted ones if they reach deep enough."""
        if allowed < len(there):
            threshold = there[allowed]
            above = int(np.searchsorted(-there, -threshold, "left"))
        else:
            rest = self.similarities[kept > point]
            threshold = np.partition(rest, remaining - 1 - allowed)[remaining - 1 - allowed]
            above = int(np.count_nonzero(rest > threshold))
        return float(threshold), above / remaining


def false_non_matches(
    mated: Similarities, kept: NDArray[np.int16], thresholds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (F, P) false non-match rates of the mated comparisons that are there.

    Args:
        mated: (M,) similarities.
        kept: (M,) number of points at which each comparison is there.
        thresholds: (F, P); NaN gives NaN, and so does a point without a comparison.
    """
    points = thresholds.shape[1]
    remaining = remaining_at(kept, points)
    rates = np.full(thresholds.shape, np.nan)
    exact = mated.astype(np.float64)
    for point in np.flatnonzero(remaining):
        there = exact[kept > point]
        for place in np.flatnonzero(~np.isnan(thresholds[:, point])):
            wrong = np.count_nonzero(there < thresholds[place, point])
            rates[place, point] = wrong / remaining[point]
    return rates
