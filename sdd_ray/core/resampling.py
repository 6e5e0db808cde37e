"""How sure the figures of an evaluation are: the bootstrap over subjects.

Comparisons of one person are not independent, so people are drawn, with replacement and as many as
there are: a person drawn w times counts w times. A mated comparison then counts w times, a nonmated
one as often as the product of both people's w. Thresholds are solved again in every draw, and all
methods are assessed on the same draws, so that their differences are paired.

Shapes: S subjects, N images, M mated and K nonmated comparisons, R false match rates, P discard
fractions, L discard limits, B draws.

Source:
    Bolle, Ratha and Pankanti, "Error analysis of pattern recognition systems: the subsets
    bootstrap", CVIU 2004 (people are the units). Products of weights: Poh and Bengio, "Performance
    generalization in biometric authentication using joint user-specific and sample bootstraps",
    IEEE TPAMI 2007 (both sides are drawn).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sdd_ray.core.advice import RankCounts
from sdd_ray.core.assessment import ComparedSides, Protocol, RankedSides, advise, rank_counts
from sdd_ray.core.comparisons import ComparedPairs
from sdd_ray.core.discarding import ErrorDiscardCurve, points_kept, step_curve
from sdd_ray.core.edc import errors_at
from sdd_ray.core.edc_areas import aoc, normalised_pauc
from sdd_ray.core.error_rates import Similarities, counts_within, is_false_non_match

CONFIDENCE = 0.95
_ENDS = (0.025, 0.975)
_LEAST_DEFINED = 0.95
"""Share of draws in which a figure must be defined for its interval to be."""


@dataclass(frozen=True)
class Interval:
    """Where the draws of a figure lie, both ends NaN where it is undefined in too many of them."""

    low: float
    high: float


def interval(values: NDArray[np.float64]) -> Interval:
    """Return the central 95 % of the draws of a figure (percentile bootstrap).

    Args:
        values: (B,) one of each draw, NaN where undefined.

    Example:
        >>> interval(np.arange(1001.0))
        Interval(low=25.0, high=975.0)
    """
    known = values[~np.isnan(values)]
    if len(values) == 0 or len(known) < _LEAST_DEFINED * len(values):
        return Interval(math.nan, math.nan)
    low, high = np.quantile(known, _ENDS)
    return Interval(float(low), float(high))


def subject_draw(subjects: int, seed: int, draw: int) -> NDArray[np.int64]:
    """Return (S,) how often each subject is drawn; depends on seed and number of the draw alone."""
    generator = np.random.default_rng([seed, draw])
    return generator.multinomial(subjects, np.full(subjects, 1 / subjects))


@dataclass(frozen=True, eq=False)
class Drawn:
    """The weights of one draw.

    Attributes:
        images: (N,) of the images.
        mated, nonmated: (M,) and (K,) of the comparisons.
        top: (T,) of the nonmated comparisons of `TopNonmated.order`.
    """

    images: NDArray[np.float64]
    mated: NDArray[np.float64]
    nonmated: NDArray[np.float64]
    top: NDArray[np.float64]

    @classmethod
    def of(
        cls, sides: ComparedSides, subjects: NDArray[np.int64], draw: NDArray[np.int64]
    ) -> "Drawn":
        """Weigh images and comparisons by a draw of subjects.

        Args:
            sides: The comparisons.
            subjects: (N,) number of the subject of each image.
            draw: (S,) how often each was drawn.
        """
        images = draw[subjects].astype(np.float64)
        mated = images[sides.mated.first]
        nonmated = images[sides.nonmated.first] * images[sides.nonmated.second]
        return cls(images, mated, nonmated, nonmated[sides.top.order])


@dataclass(frozen=True, eq=False)
class DrawnFigures:
    """The figures of one method in one draw, at each false match rate.

    Attributes:
        edc, evrc: (R, P) at the discard fractions of the protocol's grid.
        paucs: (R, L) normalised partial areas at the discard limits.
        aocs: (R,) the paper's areas.
        advice: (R, A) the quality thresholds of `Assessment.advice`.
    """

    edc: NDArray[np.float64]
    evrc: NDArray[np.float64]
    paucs: NDArray[np.float64]
    aocs: NDArray[np.float64]
    advice: NDArray[np.float64]


def drawn_figures(
    sides: ComparedSides, ranked: RankedSides, drawn: Drawn, protocol: Protocol
) -> DrawnFigures:
    """Return the figures of a method in one draw.

    Args:
        sides: The comparisons.
        ranked: Their ranks under the method's quality.
        drawn: The weights.
        protocol: As the figures without a draw had it.
    """
    grid = protocol.grid
    thresholds = [_all_threshold(sides, drawn, fmr) for fmr in protocol.fmrs]
    counts = [
        rank_counts(sides, ranked, threshold, (drawn.images, drawn.mated))
        if protocol.pair_quality == "minimum"
        else None
        for threshold in thresholds
    ]
    fixed = [_edc(sides, ranked, drawn, threshold) for threshold in thresholds]
    moving = _evrc(sides, ranked, drawn, protocol)
    return DrawnFigures(
        edc=np.stack([_at(curve, grid) for curve in fixed]),
        evrc=np.stack([curve.errors for curve in moving]),
        paucs=np.array([[_area(c, limit) for limit in protocol.discard_limits] for c in fixed]),
        aocs=np.array([aoc(curve).value for curve in moving]),
        advice=np.array([_advice(c, protocol) for c in counts]),
    )


def _at(curve: ErrorDiscardCurve, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    return errors_at(curve, grid) if len(curve.errors) else np.full(len(grid), np.nan)


def _area(curve: ErrorDiscardCurve, limit: float) -> float:
    return normalised_pauc(curve, limit).value if len(curve.errors) else math.nan


def _advice(counts: RankCounts | None, protocol: Protocol) -> list[float]:
    return [] if counts is None else [advice.threshold for advice in advise(counts, protocol)]


def _all_threshold(sides: ComparedSides, drawn: Drawn, fmr: float) -> float:
    total = float(drawn.nonmated.sum())
    return _threshold(sides.top.sorted, np.cumsum(drawn.top), total, fmr)


def _edc(
    sides: ComparedSides, ranked: RankedSides, drawn: Drawn, threshold: float
) -> ErrorDiscardCurve:
    wrong = is_false_non_match(sides.mated.similarities, threshold)
    total = np.bincount(ranked.mated, drawn.mated, ranked.number)
    missed = np.bincount(ranked.mated[wrong], drawn.mated[wrong], ranked.number)
    return step_curve(total, missed, threshold)


def _evrc(
    sides: ComparedSides, ranked: RankedSides, drawn: Drawn, protocol: Protocol
) -> list[ErrorDiscardCurve]:
    grid = protocol.grid
    points = len(grid)
    by_rank = points_kept(_leaving(ranked, drawn, protocol), grid)
    mated, nonmated = by_rank[ranked.mated], by_rank[ranked.nonmated]
    remaining, remaining_nonmated = (
        np.bincount(kept, weights, points + 1)[::-1].cumsum()[::-1][1:]
        for kept, weights in ((mated, drawn.mated), (nonmated, drawn.nonmated))
    )
    top = nonmated[sides.top.order]
    errors, thresholds = np.full((2, len(protocol.fmrs), points), np.nan)
    for point in np.flatnonzero((remaining > 0) & (remaining_nonmated > 0)):
        there, there_top = mated > point, top > point
        weights, similarities = drawn.mated[there], sides.mated.similarities[there]
        largest, up_to = sides.top.sorted[there_top], np.cumsum(drawn.top[there_top])
        for place, fmr in enumerate(protocol.fmrs):
            threshold = _threshold(largest, up_to, float(remaining_nonmated[point]), fmr)
            if not math.isnan(threshold):
                missed = weights[is_false_non_match(similarities, threshold)].sum()
                thresholds[place, point] = threshold
                errors[place, point] = missed / remaining[point]
    left = remaining.astype(np.int64)
    return [ErrorDiscardCurve(grid, *both, left) for both in zip(errors, thresholds, strict=True)]


def _leaving(ranked: RankedSides, drawn: Drawn, protocol: Protocol) -> NDArray[np.float64]:
    if protocol.discarded == "images":
        return np.asarray(np.bincount(ranked.images.of, drawn.images, ranked.number))
    both = ((ranked.mated, drawn.mated), (ranked.nonmated, drawn.nonmated))
    mated, nonmated = (np.bincount(of, weights, ranked.number) for of, weights in both)
    return np.asarray(mated + nonmated)


def _threshold(
    largest: Similarities, up_to: NDArray[np.float64], total: float, fmr: float
) -> float:
    """Return the lowest similarity above which comparisons weigh at most `fmr` of the total.

    Args:
        largest: (L,) similarities of nonmated comparisons that are there, largest first.
        up_to: (L,) what they weigh up to each, whole numbers.
        total: What all nonmated comparisons weigh that are there.
        fmr: False match rate.

    Returns:
        NaN where less than one comparison may be above it, or where the given similarities do not
        reach deep enough, which happens in a draw in which almost none of them remains.
    """
    allowed = int(counts_within(np.array([fmr]), int(total))[0]) if total else 0
    if allowed < 1 or not len(up_to) or up_to[-1] <= allowed:
        return math.nan
    return float(largest[np.searchsorted(up_to, allowed, "right")])


def subjects_of(mated: ComparedPairs, images: int) -> NDArray[np.int64]:
    """Return (N,) numbers of subjects where only mated comparisons say who is who.

    Images that are mated, directly or through others, are of one subject; an image without a
    mated comparison is a subject of its own.

    Args:
        mated: The mated comparisons.
        images: N.

    Example:
        >>> ends = (np.array([0, 2], np.int32), np.array([2, 3], np.int32))
        >>> subjects_of(ComparedPairs(*ends, np.ones(2, np.float32)), 5).tolist()
        [0, 1, 0, 0, 2]
    """
    ones = np.ones(len(mated.first), np.int8)
    graph = coo_array((ones, (mated.first, mated.second)), shape=(images, images))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def stacked(parts: Sequence[DrawnFigures]) -> DrawnFigures:
    """Return the figures of all draws, each with one more axis in front: (B, ...)."""
    return DrawnFigures(
        *(
            np.stack([getattr(part, name) for part in parts])
            for name in ("edc", "evrc", "paucs", "aocs", "advice")
        )
    )
