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
from sdd_ray.core.edc_areas import aoc, normalised_pauc
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
        normalised_pauc: Area under the EDC over that of no gain: 1 is useless, lower is better.
        aoc: The paper's area over the EVRC, higher is better.
    """

    fmr: float
    point: OperatingPoint
    edc: NDArray[np.float64]
    evrc: NDArray[np.float64]
    normalised_pauc: float
    aoc: float

    def edc_at(self, fractions: Sequence[float]) -> list[float]:
        """Return the EDC at discard fractions that are on its grid."""
        return _at(EDC_DISCARD_FRACTIONS, self.edc, fractions)

    def evrc_at(self, fractions: Sequence[float]) -> list[float]:
        """Return the EVRC at discard fractions that are on its grid."""
        return _at(EVRC_DISCARD_FRACTIONS, self.evrc, fractions)


def assess(
    mated: ComparedPairs,
    nonmated: ComparedPairs,
    qualities: NDArray[np.float64],
    fmr: float,
    discard_limit: float,
) -> Assessment:
    """Return what a quality is worth at a false match rate.

    Args:
        mated: M comparisons.
        nonmated: K comparisons.
        qualities: (N,) quality of each image, larger is better, NaN where it failed.
        fmr: False match rate, in (0, 1).
        discard_limit: Upper end of the normalised partial area, in (0, 1].

    Raises:
        ValueError: A kind of comparison is missing, or a number is out of range.
    """
    sides = [
        Comparisons(c.similarities, pair_qualities(qualities[c.first], qualities[c.second]))
        for c in (mated, nonmated)
    ]
    point = threshold_at_fmr(nonmated.similarities, fmr)
    fixed = fnm_edc(sides[0], point.threshold)
    solved = evrc(sides[0], sides[1], fmr, population=qualities)
    return Assessment(
        fmr=fmr,
        point=point,
        edc=errors_at(fixed, EDC_DISCARD_FRACTIONS),
        evrc=solved.errors,
        normalised_pauc=normalised_pauc(fixed, discard_limit).value,
        aoc=aoc(solved).value,
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
        normalised_pauc=float(np.mean([p.normalised_pauc for p in parts])),
        aoc=float(np.mean([p.aoc for p in parts])),
    )


def _at(
    grid: NDArray[np.float64], errors: NDArray[np.float64], fractions: Sequence[float]
) -> list[float]:
    return [float(errors[np.searchsorted(grid, f + 1e-9, "right") - 1]) for f in fractions]
