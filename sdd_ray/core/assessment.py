"""Assess a quality by all curves at several false match rates: the numbers behind the tables.

Shapes: N images, M mated and K nonmated comparisons, F discard fractions, L discard limits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.advice import Advice, RankCounts, advise_discard, advise_fnmr
from sdd_ray.core.comparisons import ComparedPairs
from sdd_ray.core.discarding import (
    ErrorDiscardCurve,
    Ranks,
    Sums,
    TopNonmated,
    at_least,
    false_non_matches,
    lowest_ranks,
    rank_qualities,
    step_curve,
    top_nonmated,
)
from sdd_ray.core.edc import EVRC_DISCARD_FRACTIONS, check_fractions, errors_at
from sdd_ray.core.edc_areas import Area, aoc, best_pauc, normalised_pauc, pauc
from sdd_ray.core.error_rates import OperatingPoint, check_similarities, is_false_non_match

EDC_DISCARD_FRACTIONS: NDArray[np.float64] = np.arange(96) / 100
"""Where error versus discard curves are tabulated; their areas are of the full step functions."""
EDC_DISCARD_FRACTIONS.setflags(write=False)

PairQuality = Literal["minimum", "maximum", "mean"]


@dataclass(frozen=True)
class Protocol:
    """What is computed.

    Attributes:
        fmrs: False match rates, in (0, 1).
        discard_limits: (L,) where partial areas end, in (0, 1].
        fractions: (F,) discard fractions of the tables, in [0, 1).
        pair_quality: From the qualities of two images to that of their comparison. Only by the
            minimum are the comparisons below a quality those of the images below it.
        discarded: What the fractions of the EVRC are shares of. Images go with the minimum only.
        advice_discards: Shares of the images to advise quality thresholds for, in [0, 1).
        advice_fnmrs: False non-match rates to advise them for, in [0, 1). Advice is for the minimum
            only.
    """

    fmrs: tuple[float, ...]
    discard_limits: tuple[float, ...] = (0.3,)
    fractions: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)
    pair_quality: PairQuality = "minimum"
    discarded: Literal["images", "comparisons"] = "images"
    advice_discards: tuple[float, ...] = ()
    advice_fnmrs: tuple[float, ...] = ()

    @property
    def grid(self) -> NDArray[np.float64]:
        """(P,) discard fractions at which the EVRC is computed: the paper's and the tables'."""
        return np.union1d(EVRC_DISCARD_FRACTIONS, np.asarray(self.fractions, np.float64))


@dataclass(frozen=True, eq=False)
class ComparedSides:
    """The comparisons of an evaluation, ready to be assessed by any number of qualities.

    Attributes:
        mated: M comparisons.
        top: The largest nonmated similarities in order, and how many nonmated comparisons there
            are.
        nonmated: K comparisons; None where they are all those between images of two people (and
            `mated` all others), too many to be held.
    """

    mated: ComparedPairs
    top: TopNonmated
    nonmated: ComparedPairs | None = None

    @classmethod
    def of(
        cls, mated: ComparedPairs, nonmated: ComparedPairs, fmrs: Sequence[float]
    ) -> "ComparedSides":
        """Sort what is needed for some false match rates.

        Raises:
            ValueError: A kind of comparison is missing, or a similarity is NaN.
        """
        check_similarities(mated.similarities, "mated")
        given = (nonmated.first, nonmated.second, nonmated.similarities)
        return cls(mated, top_nonmated(*given, max(fmrs)), nonmated)

    def points(self, fmrs: Sequence[float]) -> list[OperatingPoint]:
        """Return threshold and achieved rate before anything is discarded, for each rate."""
        top, size = self.top, self.top.size
        everything = np.zeros(1, np.int64), np.array([size])
        ranks, all_ranks = np.zeros(len(top.sorted), np.int32), None
        if top.all is not None:
            all_ranks = np.zeros(size, np.int32)
        solved = top.solve(ranks, *everything, fmrs, all_ranks)
        return [
            OperatingPoint(float(threshold[0]), rate, float(achieved[0]), size)
            for rate, threshold, achieved in zip(
                fmrs, solved.thresholds, solved.achieved, strict=True
            )
        ]


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


@dataclass(frozen=True, eq=False)
class RankedSides:
    """The rank of every image and comparison under one quality.

    Attributes:
        images: Of the N images.
        mated: (M,) of the mated comparisons.
        top: (T,) of the largest nonmated ones.
        nonmated: (K,) of all of them, if they are held.
        number: U, ranks of comparisons there are.
    """

    images: Ranks
    mated: NDArray[np.int32]
    top: NDArray[np.int32]
    nonmated: NDArray[np.int32] | None
    number: int


@dataclass(frozen=True, eq=False)
class Weights:
    """How often images and comparisons count; see `sdd_ray.core.resampling`.

    Attributes:
        images: (N,) of the images, whole numbers.
        mated: (M,) of the mated comparisons.
        nonmated: (K,) of the nonmated ones, if they are held.
        top: (T,) of the largest nonmated ones.
    """

    images: NDArray[np.float64]
    mated: NDArray[np.float64]
    nonmated: NDArray[np.float64] | None
    top: NDArray[np.float64]


def rank_sides(
    sides: ComparedSides, qualities: NDArray[np.float64], protocol: Protocol
) -> RankedSides:
    """Return the ranks of all comparisons under a quality.

    Raises:
        ValueError: Images are discarded by another pair quality than the minimum, or comparisons
            that are not held are.
    """
    how = protocol.pair_quality
    if how != "minimum" and protocol.discarded == "images":
        raise ValueError(f"images cannot be discarded by the {how}")
    if how != "minimum" and sides.nonmated is None:
        raise ValueError(f"the {how} needs all nonmated comparisons at hand")
    ends = [(c.first, c.second) for c in (sides.mated, sides.top)]
    ends += [(c.first, c.second) for c in (sides.nonmated,) if c is not None]
    images = rank_qualities(qualities)
    if how == "mean":
        means = [(qualities[first] + qualities[second]) / 2 for first, second in ends]
        ranks = rank_qualities(np.concatenate(means))
        cuts = np.cumsum([len(part) for part in means])[:-1]
        number, of = ranks.number, np.split(ranks.of, cuts)
    else:
        lower = np.minimum if how == "minimum" else np.maximum
        of = [lower(images.of[first], images.of[second]) for first, second in ends]
        number = images.number
    return RankedSides(images, of[0], of[1], of[2] if len(of) > 2 else None, number)


def nonmated_at_least(ranked: RankedSides, weights: Weights | None = None) -> Sums:
    """Return (U,) how many nonmated comparisons have each rank or a higher one, or their weights.

    Where they are not held they are counted by their images: all pairs of these but the mated ones.
    """
    if ranked.nonmated is not None:
        given = None if weights is None else weights.nonmated
        held: Sums = np.bincount(ranked.nonmated, given, ranked.number)
        return at_least(held)
    if weights is None:
        images = at_least(np.bincount(ranked.images.of, minlength=ranked.number))
        mated = at_least(np.bincount(ranked.mated, minlength=ranked.number))
        counted: Sums = images * (images - 1) // 2 - mated
        return counted
    # A mated pair is one of two copies of a person drawn w times: its product would be w * w.
    own = np.bincount(ranked.images.of, weights.images, ranked.number)
    squares = np.bincount(ranked.images.of, weights.images**2, ranked.number)
    mated_squares = np.bincount(ranked.mated, weights.mated**2, ranked.number)
    pairs = (at_least(own) ** 2 - at_least(squares)) / 2
    return np.asarray(np.round(pairs - at_least(mated_squares)))


def leaving(ranked: RankedSides, protocol: Protocol, weights: Weights | None = None) -> Sums:
    """Return (U,) how many of what the EVRC discards have each rank, or their weights."""
    if protocol.discarded == "images":
        images = None if weights is None else weights.images
        return np.asarray(np.bincount(ranked.images.of, images, ranked.number))
    mated = np.bincount(ranked.mated, None if weights is None else weights.mated, ranked.number)
    up_from = nonmated_at_least(ranked, weights)
    return np.asarray(mated + up_from - np.append(up_from[1:], 0))


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
    solved = _evrc(sides, ranked, protocol)
    found = [
        _assessment(fixed, moving, point, protocol)
        for fixed, moving, point in zip(_edcs(sides, ranked, points), solved, points, strict=True)
    ]
    if protocol.pair_quality != "minimum":
        return found
    return [
        replace(part, advice=advise(rank_counts(sides, ranked, point.threshold), protocol))
        for part, point in zip(found, points, strict=True)
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


def _edcs(
    sides: ComparedSides, ranked: RankedSides, points: Sequence[OperatingPoint]
) -> list[tuple[ErrorDiscardCurve, ErrorDiscardCurve]]:
    """Return FNM-EDC and FM-EDC of each operating point."""
    number = ranked.number
    up_from = nonmated_at_least(ranked)
    totals = [
        np.bincount(ranked.mated, minlength=number),
        up_from - np.append(up_from[1:], 0),
    ]
    curves = []
    for point in points:
        missed = ranked.mated[is_false_non_match(sides.mated.similarities, point.threshold)]
        passed = _passed(sides, ranked, point)
        wrong = [np.bincount(of, minlength=number) for of in (missed, passed)]
        fnm, fm = (step_curve(*c, point.threshold) for c in zip(totals, wrong, strict=True))
        curves.append((fnm, fm))
    return curves


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


def _evrc(sides: ComparedSides, ranked: RankedSides, protocol: Protocol) -> list[_Solved]:
    grid = protocol.grid
    lowest = lowest_ranks(leaving(ranked, protocol), grid)
    there = np.asarray(nonmated_at_least(ranked)[lowest], np.int64)
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
        **means,
    )


def _mean_area(areas: Sequence[Area]) -> Area:
    """Return the mean, or the first area that is undefined: a mean of the others would hide it."""
    undefined = [area for area in areas if area.reason]
    return undefined[0] if undefined else Area(float(np.mean([area.value for area in areas])))
