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
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sdd_ray.core.assessment import advise, rank_counts
from sdd_ray.core.comparisons import ComparedPairs
from sdd_ray.core.discarding import ErrorDiscardCurve, Sums, at_least, lowest_ranks, step_curve
from sdd_ray.core.edc import errors_at
from sdd_ray.core.edc_areas import aoc, normalised_pauc
from sdd_ray.core.error_rates import Similarities, counts_within, is_false_non_match
from sdd_ray.core.ranked_sides import (
    ComparedSides,
    Protocol,
    RankedSides,
    Weights,
    leaving,
    nonmated_at_least,
)

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


def weigh(sides: ComparedSides, subjects: NDArray[np.int64], draw: NDArray[np.int64]) -> Weights:
    """Return how often images and comparisons count in a draw of subjects.

    Args:
        sides: The comparisons.
        subjects: (N,) number of the subject of each image.
        draw: (S,) how often each was drawn.
    """
    images = draw[subjects].astype(np.float64)
    nonmated, top = (
        None if pairs is None else images[pairs.first] * images[pairs.second]
        for pairs in (sides.nonmated, sides.top)
    )
    return Weights(images, images[sides.mated.first], nonmated, np.asarray(top))


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
    sides: ComparedSides, ranked: RankedSides, weights: Weights, protocol: Protocol
) -> DrawnFigures:
    """Return the figures of a method in one draw.

    Args:
        sides: The comparisons.
        ranked: Their ranks under the method's quality.
        weights: Of the draw.
        protocol: As the figures without a draw had it.
    """
    grid = protocol.grid
    up_from = nonmated_at_least(ranked, weights)
    up_to = np.cumsum(weights.top)
    thresholds = [
        _threshold(sides.top.sorted, up_to, float(up_from[0]), fmr) for fmr in protocol.fmrs
    ]
    counts = [rank_counts(sides, ranked, threshold, weights) for threshold in thresholds]
    fixed = [
        step_curve(c.mated, c.missed, threshold)
        for c, threshold in zip(counts, thresholds, strict=True)
    ]
    moving = _evrc(sides, ranked, weights, protocol, up_from)
    advised = counts if protocol.pair_quality == "minimum" else []
    return DrawnFigures(
        edc=np.stack([_at(curve, grid) for curve in fixed]),
        evrc=np.stack([curve.errors for curve in moving]),
        paucs=np.array([[_area(c, limit) for limit in protocol.discard_limits] for c in fixed]),
        aocs=np.array([aoc(curve).value for curve in moving]),
        advice=np.array([[a.threshold for a in advise(c, protocol)] for c in advised]),
    )


def _at(curve: ErrorDiscardCurve, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    return errors_at(curve, grid) if len(curve.errors) else np.full(len(grid), np.nan)


def _area(curve: ErrorDiscardCurve, limit: float) -> float:
    return normalised_pauc(curve, limit).value if len(curve.errors) else math.nan


def _evrc(
    sides: ComparedSides,
    ranked: RankedSides,
    weights: Weights,
    protocol: Protocol,
    up_from: Sums,
) -> list[ErrorDiscardCurve]:
    grid = protocol.grid
    points = len(grid)
    lowest = lowest_ranks(leaving(ranked, protocol, up_from, weights), grid)
    there_nonmated = up_from[lowest]
    there_mated = at_least(np.bincount(ranked.mated, weights.mated, ranked.number))[lowest]
    errors, thresholds = np.full((2, len(protocol.fmrs), points), np.nan)
    for point in np.flatnonzero((there_mated > 0) & (there_nonmated > 0)):
        there, there_top = ranked.mated >= lowest[point], ranked.top >= lowest[point]
        mated, similarities = weights.mated[there], sides.mated.similarities[there]
        largest, up_to = sides.top.sorted[there_top], np.cumsum(weights.top[there_top])
        for place, fmr in enumerate(protocol.fmrs):
            threshold = _threshold(largest, up_to, float(there_nonmated[point]), fmr)
            if not math.isnan(threshold):
                missed = mated[is_false_non_match(similarities, threshold)].sum()
                thresholds[place, point] = threshold
                errors[place, point] = missed / there_mated[point]
    left = there_mated.astype(np.int64)
    return [ErrorDiscardCurve(grid, *both, left) for both in zip(errors, thresholds, strict=True)]


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
        *(np.stack([getattr(part, field.name) for part in parts]) for field in fields(DrawnFigures))
    )


def mean_figures(parts: Sequence[DrawnFigures]) -> DrawnFigures:
    """Return the mean of the figures of one draw over several seeds of a method."""
    together = stacked(parts)
    return DrawnFigures(*(getattr(together, f.name).mean(axis=0) for f in fields(DrawnFigures)))


def seed_draw(seeds: int, seed: int, draw: int, name: str) -> NDArray[np.int64]:
    """Return which seeds of a method a draw has, as many as there are, with replacement."""
    generator = np.random.default_rng([seed, draw, zlib.crc32(name.encode())])
    return generator.integers(seeds, size=seeds)
