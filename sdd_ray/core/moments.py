"""Sums over embeddings from which means and spreads of similarities follow without any pair.

The mean similarity of one image to a set of images is its product with the set's mean embedding,
and the mean square follows from the set's second moment. Both are sums, so every shard adds up its
own rows and the shards are merged in their canonical order: floating point addition is not
associative, and only a fixed order gives equal bits on any number of workers.

Shapes: N embeddings of d numbers, G identities.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.similarity import products

SUM_TILE = 1024
"""Rows whose float64 copies are held at once."""


@dataclass(frozen=True, eq=False)
class EmbeddingSums:
    """Number, sum and second moment of a set of embeddings.

    Attributes:
        count: Number of embeddings.
        total: (d,) their sum.
        second_moment: (d, d) the sum of their outer products, symmetric.
    """

    count: int
    total: NDArray[np.float64]
    second_moment: NDArray[np.float64]

    @classmethod
    def empty(cls, size: int) -> "EmbeddingSums":
        """Return the sums of no embedding of `size` numbers."""
        return cls(0, np.zeros(size), np.zeros((size, size)))

    def merge(self, other: "EmbeddingSums") -> "EmbeddingSums":
        """Return the sums of both sets together.

        Raises:
            ValueError: The embeddings have different sizes.
        """
        if self.total.shape != other.total.shape:
            raise ValueError(
                f"expected sums of embeddings of one size, got {self.total.size} "
                f"and {other.total.size}"
            )
        return EmbeddingSums(
            self.count + other.count,
            self.total + other.total,
            self.second_moment + other.second_moment,
        )


def partial_sums(unit: NDArray[np.float32]) -> EmbeddingSums:
    """Return the sums over one shard, in float64.

    Args:
        unit: (N, d) unit-length rows.

    Example:
        >>> sums = partial_sums(np.float32([[1, 0], [0, 1], [0, -1]]))
        >>> sums.count, sums.total.tolist(), sums.second_moment.tolist()
        (3, [1.0, 0.0], [[1.0, 0.0], [0.0, 2.0]])
    """
    sums = EmbeddingSums.empty(unit.shape[1])
    for start in range(0, len(unit), SUM_TILE):
        tile = unit[start : start + SUM_TILE].astype(np.float64)
        columns = np.ascontiguousarray(tile.T)
        sums = sums.merge(EmbeddingSums(len(tile), tile.sum(axis=0), products(columns, columns)))
    return sums


def sum_of(parts: Iterable[EmbeddingSums]) -> EmbeddingSums:
    """Return the sums of all parts, added in the order given.

    Raises:
        ValueError: There is no part, or the embeddings have different sizes.
    """
    merged: EmbeddingSums | None = None
    for part in parts:
        merged = part if merged is None else merged.merge(part)
    if merged is None:
        raise ValueError("expected the sums of at least one shard, got none")
    return merged


def identity_totals(unit: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (G, d) the sum of each identity's embeddings, in float64.

    Args:
        unit: (N, d) unit-length rows, those of one identity side by side.
        starts: (G + 1,) strictly increasing: identity g has the rows starts[g] to starts[g + 1].

    Example:
        >>> identity_totals(np.float32([[1, 0], [0, 1], [1, 0]]), np.array([0, 2, 3])).tolist()
        [[1.0, 1.0], [1.0, 0.0]]
    """
    totals: NDArray[np.float64] = np.add.reduceat(unit, starts[:-1], axis=0, dtype=np.float64)
    return totals
