"""Assess a quality by all curves at several false match rates: the numbers behind the tables.

Shapes: N images, M mated and K nonmated comparisons, F discard fractions, L discard limits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.advice import Advice, RankCounts, advise_discard, advise_fnmr
from sdd_ray.core.discarding import (
    ErrorDiscardCurve,
    Sums,
    at_least,
    false_non_matches,
    lowest_ranks,
    of_each,
    step_curve,
)
from sdd_ray.core.edc import EVRC_DISCARD_FRACTIONS, check_fractions, errors_at
from sdd_ray.core.edc_areas import Area, aoc, best_pauc, normalised_pauc, pauc
from sdd_ray.core.error_rates import OperatingPoint, is_false_non_match
from sdd_ray.core.ranked_sides import (
    ComparedSides,
    Protocol,
    RankedSides,
    Weights,
    leaving,
    nonmated_at_least,
    rank_sides,
)

EDC_DISCARD_FRACTIONS: NDArray[np.float64] = np.arange(96) / 100
"""Where error versus discard curves are tabulated; their areas are of the full step functions."""
EDC_DISCARD_FRACTIONS.setflags(write=False)


@dataclass(frozen=True)
class LimitArea:
    """Areas under an EDC up to a discard limit.

    Attributes:
        raw: In [0, limit], lower is better.
        normalised: As a share of what it is without use; 1 is no use, lower is better.
        best: The raw area of a quality that knows every error.
    """

    raw: Area
    normalised: Area
    best: Area


@dataclass(frozen=True)
class Assessment:
    """What one quality is worth at one false match rate.

    Attributes:
        fmr: The false match rate asked for.
        point: Threshold and achieved rate at zero discard.
        edc: (96,) false non-match rates at `EDC_DISCARD_FRACTIONS` of the mated comparisons.
        fm_edc: (96,) false match rates at `EDC_DISCARD_FRACTIONS` of the nonmated comparisons.
        evrc: (20,) false non-match rates at `EVRC_DISCARD_FRACTIONS`, threshold solved again.
        achieved: (20,) the false match rates of the EVRC, at most `fmr`.
        table_edc: (F,) the EDC at exactly the fractions asked for.
        table_evrc: (F,) the EVRC at exactly the fractions asked for.
        areas: Under the EDC, for each discard limit.
        aoc: The paper's area over the EVRC on its grid, higher is better.
        advice: Quality thresholds, first those for the protocol's `advice_discards`, then those for
            its `advice_fnmrs`; none by other pair qualities than the minimum.
        lowest: The lowest similarity threshold of all; NaN where there is none.
    """

    fmr: float
    point: OperatingPoint
    edc: NDArray[np.float64]
    fm_edc: NDArray[np.float64]
    evrc: NDArray[np.float64]
    achieved: NDArray[np.float64]
    table_edc: NDArray[np.float64]
    table_evrc: NDArray[np.float64]
    areas: dict[float, LimitArea]
    aoc: Area
    advice: tuple[Advice, ...] = ()
    lowest: float = math.nan


def assess(
    sides: ComparedSides, qualities: NDArray[np.float64], protocol: Protocol
) -> list[Assessment]:
    """Return what a quality is worth at each false match rate.

    Args:
        sides: The comparisons.
        qualities: (N,) quality of each image, larger is better, NaN where it failed.
        protocol: What is asked for.

    Raises:
        ValueError: A number of the protocol is out of range.
    """
    check_fractions(protocol.grid)
    ranked = rank_sides(sides, qualities, protocol)
    points = sides.points(protocol.fmrs)
    up_from = nonmated_at_least(ranked)
    counts = [rank_counts(sides, ranked, point.threshold) for point in points]
    fixed = [
        (step_curve(c.mated, c.missed, point.threshold), _fm_edc(sides, ranked, point, up_from))
        for c, point in zip(counts, points, strict=True)
    ]
    moving = _evrc(sides, ranked, protocol, up_from)
    found = [_assessment(*parts, protocol) for parts in zip(fixed, moving, points, strict=True)]
    if protocol.pair_quality != "minimum":
        return found
    return [
        replace(part, advice=advise(of_rate, protocol))
        for part, of_rate in zip(found, counts, strict=True)
    ]


def rank_counts(
    sides: ComparedSides, ranked: RankedSides, threshold: float, weights: Weights | None = None
) -> RankCounts:
    """Return images, mated comparisons and false non-matches of each rank.

    Args:
        sides: The comparisons.
        ranked: Their ranks, of the minimum of two images.
        threshold: Similarity; NaN makes all sums of false non-matches NaN.
        weights: None: each counts once.
    """
    missed = is_false_non_match(sides.mated.similarities, threshold)
    images, mated = (None, None) if weights is None else (weights.images, weights.mated)
    wrong = np.bincount(
        ranked.mated[missed], None if mated is None else mated[missed], ranked.number
    )
    return RankCounts(
        np.bincount(ranked.images.of, images, ranked.number),
        np.bincount(ranked.mated, mated, ranked.number),
        np.full(ranked.number, np.nan) if math.isnan(threshold) else wrong,
        ranked.images.qualities,
    )


def advise(counts: RankCounts, protocol: Protocol) -> tuple[Advice, ...]:
    """Return the advice that a protocol asks for; see `Assessment`."""
    discards = [advise_discard(counts, most) for most in protocol.advice_discards]
    return (*discards, *(advise_fnmr(counts, most) for most in protocol.advice_fnmrs))


def _fm_edc(
    sides: ComparedSides, ranked: RankedSides, point: OperatingPoint, up_from: Sums
) -> ErrorDiscardCurve:
    passed = np.bincount(_passed(sides, ranked, point), minlength=ranked.number)
    return step_curve(of_each(up_from), passed, point.threshold)


def _passed(sides: ComparedSides, ranked: RankedSides, point: OperatingPoint) -> NDArray[np.int32]:
    """Return the ranks of the nonmated comparisons that are let through."""
    above = round(point.achieved_fmr * point.num_nonmated) if point.attainable else 0
    if above <= len(ranked.top) or sides.nonmated is None or ranked.nonmated is None:
        return ranked.top[:above]
    return ranked.nonmated[sides.nonmated.similarities > point.threshold]


@dataclass(frozen=True)
class _Solved:
    curve: ErrorDiscardCurve
    achieved: NDArray[np.float64]


def _evrc(
    sides: ComparedSides, ranked: RankedSides, protocol: Protocol, up_from: Sums
) -> list[_Solved]:
    grid = protocol.grid
    lowest = lowest_ranks(leaving(ranked, protocol, up_from), grid)
    there = np.asarray(up_from[lowest], np.int64)
    solved = sides.top.solve(ranked.top, lowest, there, protocol.fmrs, ranked.nonmated)
    errors = false_non_matches(sides.mated.similarities, ranked.mated, lowest, solved.thresholds)
    remaining = at_least(np.bincount(ranked.mated, minlength=ranked.number))[lowest]
    return [
        _Solved(ErrorDiscardCurve(grid, missed, thresholds, remaining), achieved)
        for missed, thresholds, achieved in zip(
            errors, solved.thresholds, solved.achieved, strict=True
        )
    ]


def _assessment(
    fixed: tuple[ErrorDiscardCurve, ErrorDiscardCurve],
    moving: _Solved,
    point: OperatingPoint,
    protocol: Protocol,
) -> Assessment:
    asked = np.asarray(protocol.fractions, np.float64)
    edc = fixed[0]
    areas = {
        limit: LimitArea(pauc(edc, limit), normalised_pauc(edc, limit), best_pauc(edc, limit))
        for limit in protocol.discard_limits
    }
    on_grid = np.searchsorted(protocol.grid, EVRC_DISCARD_FRACTIONS)
    return Assessment(
        fmr=point.asked_fmr,
        point=point,
        edc=errors_at(edc, EDC_DISCARD_FRACTIONS),
        fm_edc=errors_at(fixed[1], EDC_DISCARD_FRACTIONS),
        evrc=errors_at(moving.curve, EVRC_DISCARD_FRACTIONS),
        achieved=moving.achieved[on_grid],
        table_edc=errors_at(edc, asked),
        table_evrc=errors_at(moving.curve, asked),
        areas=areas,
        aoc=aoc(moving.curve),
        lowest=float(np.fmin.reduce(np.append(moving.curve.thresholds, point.threshold))),
    )


def mean_assessment(parts: Sequence[Assessment]) -> Assessment:
    """Return the mean over repeats, such as several random qualities; several advise nothing.

    Raises:
        ValueError: There is no repeat.
    """
    if not parts:
        raise ValueError("expected at least one assessment, got none")
    curves = ("edc", "fm_edc", "evrc", "achieved", "table_edc", "table_evrc")
    means = {name: np.mean([getattr(p, name) for p in parts], axis=0) for name in curves}
    areas = {
        limit: LimitArea(
            *(
                _mean_area([getattr(p.areas[limit], field.name) for p in parts])
                for field in fields(LimitArea)
            )
        )
        for limit in parts[0].areas
    }
    return Assessment(
        fmr=parts[0].fmr,
        point=parts[0].point,
        areas=areas,
        aoc=_mean_area([p.aoc for p in parts]),
        advice=parts[0].advice if len(parts) == 1 else (),
        lowest=float(np.fmin.reduce([part.lowest for part in parts])),
        **means,
    )


def _mean_area(areas: Sequence[Area]) -> Area:
    """Return the mean, or the first area that is undefined: a mean of the others would hide it."""
    undefined = [area for area in areas if area.reason]
    return undefined[0] if undefined else Area(float(np.mean([area.value for area in areas])))
