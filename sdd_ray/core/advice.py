"""Which quality to ask for: thresholds for a share to discard, or for an error rate to reach.

Shapes: U ranks of qualities.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.discarding import Sums
from sdd_ray.core.error_rates import counts_within


@dataclass(frozen=True)
class Advice:
    """A quality threshold: images of a lower quality are to be discarded.

    Attributes:
        threshold: Quality; NaN where what was asked for cannot be reached.
        discarded: Share of the images that this discards.
        fnmr: Share of false non-matches that remains at the fixed similarity threshold.
    """

    threshold: float
    discarded: float
    fnmr: float


UNREACHABLE = Advice(math.nan, math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class RankCounts:
    """Images and mated comparisons of each rank, as counts or as sums of whole-numbered weights.

    Attributes:
        images: (U,) images.
        mated: (U,) mated comparisons, of the lower rank of their images.
        missed: (U,) those of them that are false non-matches; NaN where nobody knows.
        qualities: (U,) quality of each rank, increasing; minus infinity for failures, which no
            threshold accepts.
    """

    images: Sums
    mated: Sums
    missed: Sums
    qualities: NDArray[np.float64]

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """(U,) ranks that may be asked for: they have an image, and a quality is known."""
        return np.asarray((self.images > 0) & ~np.isneginf(self.qualities))

    def at(self, rank: int) -> Advice:
        """Return what asking for the quality of a rank does, or the lowest one that is known."""
        known = np.flatnonzero(self.accepted)
        if not len(known):
            return UNREACHABLE
        rank = max(rank, int(known[0]))
        mated = self.mated[rank:].sum()
        return Advice(
            threshold=float(self.qualities[rank]),
            discarded=float(self.images[:rank].sum() / self.images.sum()),
            fnmr=float(self.missed[rank:].sum() / mated) if mated else math.nan,
        )


def advise_discard(counts: RankCounts, most: float) -> Advice:
    """Return the highest quality that discards at most a share of the images.

    Failures are never accepted: where they are more, it is the lowest quality.

    Args:
        counts: Of each rank.
        most: Share in [0, 1).

    Example:
        >>> ones = np.ones(5)
        >>> counts = RankCounts(ones, ones, np.array([1, 1, 0, 0, 0]), np.arange(5.0))
        >>> advise_discard(counts, 0.25)
        Advice(threshold=1.0, discarded=0.2, fnmr=0.25)
    """
    up_to = np.cumsum(counts.images)
    allowed = int(counts_within(np.array([most]), int(up_to[-1]))[0])
    # The first rank beyond what is allowed has an image, also in a draw without some of the others.
    return counts.at(int(np.searchsorted(up_to, allowed, "right")))


def advise_fnmr(counts: RankCounts, most: float) -> Advice:
    """Return the lowest quality from which on at most a share of mated comparisons is missed.

    Args:
        counts: Of each rank.
        most: False non-match rate in [0, 1).

    Returns:
        `UNREACHABLE` where no threshold reaches it.

    Example:
        >>> ones = np.ones(5)
        >>> counts = RankCounts(ones, ones, np.array([1, 1, 0, 0, 0]), np.arange(5.0))
        >>> advise_fnmr(counts, 0.25).threshold, advise_fnmr(counts, 0.0).discarded
        (1.0, 0.4)
    """
    mated = counts.mated[::-1].cumsum()[::-1]
    missed = counts.missed[::-1].cumsum()[::-1]
    reached = np.flatnonzero((mated > 0) & (missed <= most * mated) & counts.accepted)
    return counts.at(int(reached[0])) if len(reached) else UNREACHABLE
