"""Sums over embeddings from which means and spreads of similarities follow without any pair.

The mean similarity of one image to a set of images is its product with the set's mean embedding,
and the variance follows from the set's covariance. Both come from sums, so every shard adds up its
own rows and the shards are merged in their canonical order: floating point addition is not
associative, and only a fixed order gives equal bits on any number of workers.

Shapes: N embeddings of d numbers.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.similarity import column_products, lower_factor, products

SUM_TILE = 4096
"""Rows whose second moment is added up in float32; beyond, in float64."""

_FACTOR_BLOCK = 128  # columns of the triangular factor that are multiplied at once
_RIDGE = 1e-10  # of the mean variance, so that the factor exists for any covariance


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

    @cached_property
    def mean(self) -> NDArray[np.float64]:
        """(d,) the mean embedding."""
        return self.total / max(self.count, 1)

    @cached_property
    def _factor(self) -> tuple[NDArray[np.float32], float]:
        """(d, d) lower triangular L with L L^T = covariance + ridge, and the ridge."""
        covariance = self.second_moment / max(self.count, 1) - np.outer(self.mean, self.mean)
        size = len(covariance)
        ridge = max(_RIDGE * float(np.trace(covariance)) / size, 1e-14)
        while (factor := lower_factor(covariance + ridge * np.eye(size))) is None:
            ridge *= 10.0  # rounding left the covariance of few or collinear rows indefinite
        return factor.astype(np.float32), ridge

    def variances(self, unit: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return (N,) the population variance of each row's similarities to the whole set.

        A sum of squares in float32, so its relative error is some 1e-6 however small it is.

        Args:
            unit: (N, d) unit-length rows.
        """
        factor, ridge = self._factor
        found = np.zeros(len(unit))
        for first in range(0, factor.shape[1], _FACTOR_BLOCK):
            block = factor[first:, first : first + _FACTOR_BLOCK]
            part = products(np.ascontiguousarray(unit[:, first:]), np.ascontiguousarray(block.T))
            found += np.einsum("nb,nb->n", part, part)
        return np.maximum(found - ridge, 0.0)


def partial_sums(unit: NDArray[np.float32]) -> EmbeddingSums:
    """Return the sums over one shard.

    The sum is in float64. Second moments are taken about the mean of a tile, in float32 within a
    tile of SUM_TILE rows, and moved to the origin and added up in float64: what is rounded is the
    spread of the rows, not their length.

    Args:
        unit: (N, d) unit-length rows.

    Example:
        >>> sums = partial_sums(np.float32([[1, 0], [0, 1], [0, -1]]))
        >>> sums.count, sums.total.tolist(), sums.second_moment.round(6).tolist()
        (3, [1.0, 0.0], [[1.0, 0.0], [0.0, 2.0]])
    """
    sums = EmbeddingSums.empty(unit.shape[1])
    for start in range(0, len(unit), SUM_TILE):
        tile = unit[start : start + SUM_TILE]
        total = tile.sum(axis=0, dtype=np.float64)
        shift = (total / len(tile)).astype(np.float32)
        spread = column_products(tile - shift).astype(np.float64)
        exact_shift = shift.astype(np.float64)
        cross = np.outer(exact_shift, total - 0.5 * len(tile) * exact_shift)
        sums = sums.merge(EmbeddingSums(len(tile), total, spread + cross + cross.T))
    return sums
