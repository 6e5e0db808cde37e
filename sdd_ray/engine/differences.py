"""Which of the methods is better, and how sure that is: paired differences over the draws.

A method is called better than another one only where the interval of their difference leaves out
zero. Random order is no method with draws of its own: its expectation is known, the error rates
stay as they are without any discard.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.assessment import Assessment
from sdd_ray.core.ranked_sides import Protocol
from sdd_ray.core.resampling import DrawnFigures, Interval, interval
from sdd_ray.engine.assessing import RANDOM, MethodResult

Floats = NDArray[np.float64]
Verdict = Literal["better", "worse", "undecided", "undefined"]

_RANDOM_AOC = 0.05
"""The paper's area of no gain; see `sdd_ray.core.edc_areas.aoc`."""


@dataclass(frozen=True, eq=False)
class Figure:
    """One figure of one method at one false match rate.

    Attributes:
        name: Such as `normalised_pauc_0.3`, `aoc`, `evrc_0.1`, `edc_0.1`.
        value: Without a draw.
        draws: (B,) in the draws; none if nothing was drawn.
        by_chance: (B,) what random order is expected to have in the same draws.
        chance: The same without a draw.
        larger_is_better: Whether it is.
    """

    name: str
    value: float
    draws: Floats
    by_chance: Floats
    chance: float
    larger_is_better: bool = False

    @property
    def interval(self) -> Interval:
        """Where 95 % of the draws lie."""
        return interval(self.draws)


@dataclass(frozen=True)
class Difference:
    """How much a figure of one method differs from that of another one.

    Attributes:
        method, other: Their names.
        fmr: The false match rate.
        figure: Name of the figure.
        value: Of the method, less that of the other.
        interval: Of the difference.
        verdict: On the method.
    """

    method: str
    other: str
    fmr: float
    figure: str
    value: float
    interval: Interval
    verdict: Verdict


def figures(method: MethodResult, number: int, protocol: Protocol) -> list[Figure]:
    """Return the figures of a method at a false match rate; none if nothing was drawn.

    Args:
        method: Its assessments and draws.
        number: Place of the rate among those of the protocol.
        protocol: What was computed.
    """
    if method.draws is None:
        return []
    found = method.assessments[number]
    areas = _areas(found, method.draws, number)
    return [*areas, *_rates(found, method.draws, number, protocol)]


def _areas(found: Assessment, draws: DrawnFigures, number: int) -> list[Figure]:
    ones = np.ones(len(draws.aocs))
    paucs = [
        Figure(f"normalised_pauc_{limit:g}", area.normalised.value, drawn, ones, 1.0)
        for (limit, area), drawn in zip(found.areas.items(), draws.paucs[:, number].T, strict=True)
    ]
    aocs = draws.aocs[:, number]
    return [
        *paucs,
        Figure(
            "aoc", found.aoc.value, aocs, _RANDOM_AOC * ones, _RANDOM_AOC, larger_is_better=True
        ),
    ]


def _rates(
    found: Assessment, draws: DrawnFigures, number: int, protocol: Protocol
) -> Iterator[Figure]:
    places = np.searchsorted(protocol.grid, protocol.fractions)
    for curve, table, drawn in (
        ("evrc", found.table_evrc, draws.evrc[:, number]),
        ("edc", found.table_edc, draws.edc[:, number]),
    ):
        for fraction, place, value in zip(protocol.fractions, places, table, strict=True):
            start = found.evrc[0]
            yield Figure(f"{curve}_{fraction:g}", value, drawn[:, place], drawn[:, 0], start)


def ends_on(
    grid: Floats, curve: str, method: MethodResult, number: int, protocol: Protocol
) -> tuple[Floats, Floats]:
    """Return the ends of the intervals of a curve at some discard fractions.

    Args:
        grid: (P,) discard fractions; those that are not on the protocol's grid get NaN.
        curve: `evrc` or `edc`; others have no draws.
        method: Whose curve.
        number: Place of the false match rate.
        protocol: What was computed.
    """
    ends = np.full((2, len(grid)), np.nan)
    if method.draws is None or curve not in ("evrc", "edc"):
        return ends[0], ends[1]
    drawn = getattr(method.draws, curve)[:, number]
    for place in np.flatnonzero(np.isin(protocol.grid, grid)):
        within = interval(drawn[:, place])
        ends[:, np.searchsorted(grid, protocol.grid[place])] = within.low, within.high
    return ends[0], ends[1]


def differences(methods: Sequence[MethodResult], protocol: Protocol) -> list[Difference]:
    """Return the paired differences of all methods, and of each from random order."""
    known = [method for method in methods if method.draws is not None]
    found = []
    for number, fmr in enumerate(protocol.fmrs):
        figures_of = {m.name: figures(m, number, protocol) for m in known}
        names = list(figures_of)
        for place, name in enumerate(names):
            for other in names[place + 1 :]:
                both = zip(figures_of[name], figures_of[other], strict=True)
                found += [
                    _difference(name, other, fmr, mine, (theirs.value, theirs.draws))
                    for mine, theirs in both
                ]
            found += [
                _difference(name, RANDOM, fmr, mine, (mine.chance, mine.by_chance))
                for mine in figures_of[name]
            ]
    return found


def _difference(
    method: str, other: str, fmr: float, mine: Figure, theirs: tuple[float, Floats]
) -> Difference:
    value, drawn = theirs
    within = interval(mine.draws - drawn)
    return Difference(
        method,
        other,
        fmr,
        mine.name,
        mine.value - value,
        within,
        _verdict(within, mine.larger_is_better),
    )


def _verdict(within: Interval, larger_is_better: bool) -> Verdict:
    if math.isnan(within.low):
        return "undefined"
    if within.low <= 0 <= within.high:
        return "undecided"
    return "better" if (within.low > 0) == larger_is_better else "worse"
