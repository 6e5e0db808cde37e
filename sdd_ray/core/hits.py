"""Nonmated similarities of rows that lie above a floor, as dense rows.

Shapes: B rows, M hits at most, R columns that rows are compared with, E hits of all rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.mated import PAD


@dataclass(frozen=True, eq=False)
class Hits:
    """Nonmated similarities of rows above a floor.

    Attributes:
        similarity: (B, M) in any order; PAD where a row has fewer.
        count: (B,) hits of each row.
        num_compared: (B,) nonmated similarities that were looked at.
    """

    similarity: NDArray[np.float32]
    count: NDArray[np.int64]
    num_compared: NDArray[np.int64]

    def subset(self, chosen: slice) -> "Hits":
        """Return the hits of some of the rows."""
        return Hits(self.similarity[chosen], self.count[chosen], self.num_compared[chosen])


def collect(similarity: NDArray[np.float32], floor: NDArray[np.float32]) -> Hits:
    """Return the hits of rows among columns, both sides dense.

    Args:
        similarity: (B, R) similarities; PAD where a column is not nonmated.
        floor: (B,) smallest mated similarity of each row that matters.
    """
    is_hit = similarity > floor[:, None]
    count = np.count_nonzero(is_hit, axis=1)
    num_compared = np.count_nonzero(similarity > PAD, axis=1)
    width = int(count.max(initial=0))
    if width > similarity.shape[1] // 4:
        return Hits(np.where(is_hit, similarity, PAD), count, num_compared)
    row, column = np.nonzero(is_hit)
    return Hits(_padded(row, similarity[row, column], count), count, num_compared)


def padded_hits(
    row: NDArray[np.int64], similarity: NDArray[np.float32], num_compared: NDArray[np.int64]
) -> Hits:
    """Return hits given as (E,) rows, not decreasing, and (E,) similarities as dense rows."""
    count = np.bincount(row, minlength=len(num_compared))
    return Hits(_padded(row, similarity, count), count, num_compared)


def _padded(
    row: NDArray[np.int64], similarity: NDArray[np.float32], count: NDArray[np.int64]
) -> NDArray[np.float32]:
    dense = np.full((len(count), int(count.max(initial=0))), PAD, np.float32)
    dense[row, np.arange(len(row)) - (np.cumsum(count) - count)[row]] = similarity
    return dense
