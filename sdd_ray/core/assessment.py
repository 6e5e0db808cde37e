"""Assess a quality by both curves at several false match rates: the numbers behind the tables.

Shapes: N images, M mated and K nonmated comparisons, F discard fractions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.comparisons import ComparedPairs
from sdd_ray.core.edc import (
    EVRC_DISCARD_FRACTIONS,
    Comparisons,
    errors_at,
    evrc,
    fnm_edc,
    pair_qualities,
)
from sdd_ray.core.edc_areas import Area, aoc, normalised_pauc
from sdd_ray.core.error_rates import OperatingPoint, threshold_at_fmr

EDC_DISCARD_FRACTIONS: NDArray[np.float64] = np.arange(96) / 100
"""Where error versus discard curves are tabulated; their areas are of the full step functions."""
EDC_DISCARD_FRACTIONS.setflags(write=False)


@dataclass(frozen=True)
class Assessment:
    """What one quality is worth at one false match rate.

    Attributes:
        fmr: The false match rate asked for.
        point: Threshold and achieved rate at zero discard.
        edc: (96,) false non-match rates at `EDC_DISCARD_FRACTIONS` of the mated comparisons.
        evrc: (20,) the same at `EVRC_DISCARD_FRACTIONS` of the images, threshold solved again.
        table_edc: (F,) the EDC at exactly the fractions asked for.
        table_evrc: (F,) the EVRC at exactly the fractions asked for.
        normalised_pauc: Area under the EDC over that of no gain: 1 is useless, lower is better.
        aoc: The paper's area over the EVRC on its grid, higher is better.
    """

    fmr: float
    point: OperatingPoint
    edc: NDArray[np.float64]
    evrc: NDArray[np.float64]
    table_edc: NDArray[np.float64]
    table_evrc: NDArray[np.float64]
    normalised_pauc: Area
    aoc: Area


def assess(
    mated: ComparedPairs,
    nonmated: ComparedPairs,
    qualities: NDArray[np.float64],
    fmr: float,
    discard_limit: float,
    fractions: Sequence[float],
) -> Assessment:
    """Return what a quality is worth at a false match rate.

    Args:
        mated: M comparisons.
        nonmated: K comparisons.
        qualities: (N,) quality of each image, larger is better, NaN where it failed.
        fmr: False match rate, in (0, 1).
        discard_limit: Upper end of the normalised partial area, in (0, 1].
        fractions: (F,) discard fractions of the table, in [0, 1).

    Raises:
        ValueError: A kind of comparison is missing, or a number is out of range.
    """
    sides = [
        Comparisons(c.similarities, pair_qualities(qualities[c.first], qualities[c.second]))
        for c in (mated, nonmated)
    ]
    asked = np.asarray(fractions, np.float64)
    point = threshold_at_fmr(nonmated.similarities, fmr)
    fixed = fnm_edc(sides[0], point.threshold)
    grid = np.union1d(EVRC_DISCARD_FRACTIONS, asked)
    solved = evrc(sides[0], sides[1], fmr, grid, population=qualities)
    return Assessment(
        fmr=fmr,
        point=point,
        edc=errors_at(fixed, EDC_DISCARD_FRACTIONS),
        evrc=errors_at(solved, EVRC_DISCARD_FRACTIONS),
        table_edc=errors_at(fixed, asked),
        table_evrc=errors_at(solved, asked),
        normalised_pauc=normalised_pauc(fixed, discard_limit),
        aoc=aoc(solved),
    )


def mean_assessment(parts: Sequence[Assessment]) -> Assessment:
    """Return the mean over repeats, such as several random qualities.

    Raises:
        ValueError: There is no repeat.
    """
    if not parts:
        raise ValueError("expected at least one assessment, got none")
    return Assessment(
        fmr=parts[0].fmr,
        point=parts[0].point,
        edc=np.mean([p.edc for p in parts], axis=0),
        evrc=np.mean([p.evrc for p in parts], axis=0),
        table_edc=np.mean([p.table_edc for p in parts], axis=0),
        table_evrc=np.mean([p.table_evrc for p in parts], axis=0),
        normalised_pauc=_mean_area([p.normalised_pauc for p in parts]),
        aoc=_mean_area([p.aoc for p in parts]),
    )


def _mean_area(areas: Sequence[Area]) -> Area:
    """Return the mean, or the first area that is undefined: a mean of the others would hide it."""
    undefined = [area for area in areas if area.reason]
    return undefined[0] if undefined else Area(float(np.mean([area.value for area in areas])))
