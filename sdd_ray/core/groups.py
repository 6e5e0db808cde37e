"""What one quality threshold does to groups of people: whom it discards, and what it saves.

All groups share the similarity threshold and the quality thresholds of the whole set, as they would
in use. A group whose images are discarded more often pays for the others.

Shapes: N images, M mated and K nonmated comparisons, G groups, F discard fractions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.assessment import ComparedSides, RankedSides
from sdd_ray.core.comparisons import ComparedPairs
from sdd_ray.core.discarding import points_kept, remaining_at
from sdd_ray.core.error_rates import is_false_match, is_false_non_match

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
    by_rank = points_kept(np.bincount(ranked.images.of, minlength=ranked.number), fractions)
    kept_images, kept = by_rank[ranked.images.of], by_rank[ranked.mated]
    missed = is_false_non_match(sides.mated.similarities, threshold)
    of_mated, of_nonmated = (_within(groups, side) for side in (sides.mated, sides.nonmated))
    matched = is_false_match(sides.nonmated.similarities, threshold)
    found = []
    for group in range(int(groups.max(initial=NO_GROUP)) + 1):
        own, pairs = groups == group, of_mated == group
        nonmated = of_nonmated == group
        images = int(own.sum())
        there = remaining_at(kept[pairs], len(fractions))
        wrong = remaining_at(kept[pairs & missed], len(fractions))
        found.append(
            GroupFigures(
                images=images,
                mated=int(pairs.sum()),
                nonmated=int(nonmated.sum()),
                fmr=float(matched[nonmated].mean()) if nonmated.any() else float("nan"),
                discarded=1 - remaining_at(kept_images[own], len(fractions)) / max(images, 1),
                fnmr=_share(wrong, there),
            )
        )
    return found


def _within(groups: NDArray[np.int64], pairs: ComparedPairs) -> NDArray[np.int64]:
    """Return the group of each comparison, `NO_GROUP` where its images are of two."""
    first, second = groups[pairs.first], groups[pairs.second]
    return np.where(first == second, first, NO_GROUP)


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    share = np.full(len(whole), np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share
