"""What one quality threshold does to groups of people: whom it discards, and what it saves.

All groups share the similarity threshold and the quality thresholds of the whole set, as they would
in use. A group whose images are discarded more often pays for the others.

Shapes: N images, M mated and K nonmated comparisons, G groups, F discard fractions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.comparisons import ComparedPairs
from sdd_ray.core.discarding import TopNonmated, at_least, lowest_ranks
from sdd_ray.core.error_rates import is_false_match, is_false_non_match
from sdd_ray.core.ranked_sides import ComparedSides, RankedSides

NO_GROUP = -1


@dataclass(frozen=True, eq=False)
class GroupFigures:
    """What a quality does to one group.

    Attributes:
        images: Images of the group.
        mated, nonmated: Comparisons within the group.
        fmr: Its false match rate within the group, nothing discarded; NaN without a comparison.
        discarded: (F,) share of its images that are discarded with each share of all images.
        fnmr: (F,) false non-match rate of its comparisons that remain; NaN where none does.
    """

    images: int
    mated: int
    nonmated: int
    fmr: float
    discarded: NDArray[np.float64]
    fnmr: NDArray[np.float64]


def group_figures(
    sides: ComparedSides,
    ranked: RankedSides,
    groups: NDArray[np.int64],
    threshold: float,
    fractions: NDArray[np.float64],
) -> list[GroupFigures]:
    """Return the figures of each group.

    Args:
        sides: The comparisons.
        ranked: Their ranks; of the minimum of two images.
        groups: (N,) number of the group of each image, `NO_GROUP` for none.
        threshold: Similarity of the whole set.
        fractions: (F,) shares of all images, increasing from 0.
    """
    counts = np.bincount(ranked.images.of, minlength=ranked.number)
    lowest = lowest_ranks(counts, fractions)
    missed = is_false_non_match(sides.mated.similarities, threshold)
    of_mated = _within(groups, sides.mated)
    found = []
    for group in range(int(groups.max(initial=NO_GROUP)) + 1):
        own, pairs = groups == group, of_mated == group
        images = int(own.sum())
        nonmated, matched = _nonmated(sides, groups, group, threshold)
        there = _from(ranked.mated[pairs], ranked.number)[lowest]
        wrong = _from(ranked.mated[pairs & missed], ranked.number)[lowest]
        kept = _from(ranked.images.of[own], ranked.number)[lowest]
        found.append(
            GroupFigures(
                images=images,
                mated=int(pairs.sum()),
                nonmated=nonmated,
                fmr=matched / nonmated if nonmated else float("nan"),
                discarded=1 - kept / max(images, 1),
                fnmr=_share(wrong, there),
            )
        )
    return found


def _from(ranks: NDArray[np.int32], number: int) -> NDArray[np.int64]:
    """Return (U,) how many have each rank or a higher one."""
    return np.asarray(at_least(np.bincount(ranks, minlength=number)), np.int64)


def _nonmated(
    sides: ComparedSides, groups: NDArray[np.int64], group: int, threshold: float
) -> tuple[int, int]:
    """Return nonmated comparisons within a group, and those that are let through."""
    if sides.nonmated is None:
        images = int((groups == group).sum())
        within = images * (images - 1) // 2 - int((_within(groups, sides.mated) == group).sum())
        top = _within(groups, sides.top) == group
        return within, int(np.count_nonzero(is_false_match(sides.top.sorted[top], threshold)))
    own = _within(groups, sides.nonmated) == group
    matched = is_false_match(sides.nonmated.similarities[own], threshold)
    return int(own.sum()), int(np.count_nonzero(matched))


def _within(groups: NDArray[np.int64], pairs: ComparedPairs | TopNonmated) -> NDArray[np.int64]:
    """Return the group of each comparison, `NO_GROUP` where its images are of two."""
    first, second = groups[pairs.first], groups[pairs.second]
    return np.where(first == second, first, NO_GROUP)


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    share = np.full(len(whole), np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share
