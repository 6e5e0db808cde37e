"""Numbers, means and spreads of the similarities of every image of a shard, without any sample.

The means follow from sums of embeddings, the mated spread and quantiles from the mated
similarities, and the nonmated spread from the covariance of all embeddings.

Shapes: N rows of a shard, d numbers an embedding, B rows of a tile.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.mated import MatedTile, Shard, mated_tiles
from sdd_ray.core.moments import EmbeddingSums
from sdd_ray.core.reference import Rows
from sdd_ray.core.tails import NonmatedMoments

DISTANCE_REASONS = ("", "no_mated_comparison", "no_nonmated_comparison")
"""Why an image has no distance, by code; code 0 is an image that has one."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Shares at which quantiles of an image's similarities are given."""

_FLOAT_ERROR = 4e-6  # of a sum of squares in float32, relative
_CHUNK = 256  # rows whose float64 copies stay in the processor's cache


@dataclass(frozen=True, eq=False)
class ShardStatistics:
    """Numbers and moments of each row's similarities; NaN where there is no comparison.

    Attributes:
        num_mated: (N,) comparisons with other images of the same identity.
        mated_mean: (N,) their mean similarity.
        mated_std: (N,) their population standard deviation.
        mated_quantiles: (N, len(QUANTILES)) of them, linear between ranks.
        num_nonmated: (N,) comparisons with all images of other identities.
        nonmated_mean: (N,) their mean similarity.
        nonmated_std: (N,) their population standard deviation.
        signed_gap: (N,) mated_mean - nonmated_mean.
    """

    num_mated: NDArray[np.int64]
    mated_mean: NDArray[np.float64]
    mated_std: NDArray[np.float64]
    mated_quantiles: NDArray[np.float64]
    num_nonmated: NDArray[np.int64]
    nonmated_mean: NDArray[np.float64]
    nonmated_std: NDArray[np.float64]
    signed_gap: NDArray[np.float64]

    @classmethod
    def empty(cls, size: int) -> "ShardStatistics":
        """Return statistics of `size` rows that are yet to be filled in."""

        def unknown() -> NDArray[np.float64]:
            return np.full(size, np.nan)

        return cls(
            num_mated=np.zeros(size, np.int64),
            mated_mean=unknown(),
            mated_std=unknown(),
            mated_quantiles=np.full((size, len(QUANTILES)), np.nan),
            num_nonmated=np.zeros(size, np.int64),
            nonmated_mean=unknown(),
            nonmated_std=unknown(),
            signed_gap=unknown(),
        )

    @property
    def reason(self) -> NDArray[np.int8]:
        """(N,) codes into DISTANCE_REASONS."""
        missing = np.where(self.num_mated == 0, 1, np.where(self.num_nonmated == 0, 2, 0))
        return missing.astype(np.int8)


class ShardScan:
    """Goes through the tiles of a shard and finds the statistics of its rows.

    Args:
        shard: The rows.
        sums: Sums over all images of the run, the shard's among them.
        max_similarity: Mated similarities above it are left out.
        part: Rows of the shard to label, from and to, if not all; needs a shard of one identity.
        watch: Called with every tile.

    Raises:
        ValueError: The sums are of fewer images than the shard, or of another size.
    """

    def __init__(
        self,
        shard: Shard,
        sums: EmbeddingSums,
        max_similarity: float | None = None,
        part: tuple[int, int] | None = None,
        watch: Callable[[MatedTile], None] | None = None,
    ) -> None:
        if sums.count < len(shard.unit) or sums.total.shape != shard.unit.shape[1:]:
            raise ValueError(
                f"expected sums over at least the shard's {shard.unit.shape} embeddings, got sums "
                f"over {sums.count} of size {sums.total.size}"
            )
        self.shard, self.sums = shard, sums
        self.part = (0, len(shard.unit)) if part is None else part
        self._max_similarity, self._watch = max_similarity, watch
        size = self.part[1] - self.part[0]
        self.statistics = ShardStatistics.empty(size)
        self.slack = np.zeros(size)  # by which the square of nonmated_std may be too small
        self._centre = np.zeros(len(shard.unit))
        self._all_variance = np.zeros(len(shard.unit))

    def tiles(self) -> Iterable[MatedTile]:
        """Yield the tiles of the rows to label; fill in their statistics meanwhile."""
        self._fill_means()
        first, last = self.part
        whole = self.sums.variances(self.shard.unit[first:last])
        self._all_variance[first:last] = whole
        for tile in mated_tiles(self.shard, self._centre, self._max_similarity, self.part):
            self._fill(tile)
            if self._watch is not None:
                self._watch(tile)
            yield tile

    def _fill_means(self) -> None:
        """Fill in what follows from sums of embeddings, in float64."""
        shard, found, (first, last) = self.shard, self.statistics, self.part
        sizes = np.diff(shard.starts)[shard.group]
        for start in range(first, last, _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, last))
            groups, place = np.unique(shard.group[rows], return_inverse=True)
            totals = np.stack([self._total(group) for group in groups])[place]
            unit = shard.unit[rows].astype(np.float64)
            itself = np.einsum("bd,bd->b", unit, unit)
            own = np.einsum("bd,bd->b", unit, totals)
            at = rows - first
            num_mated, num_nonmated = sizes[rows] - 1, self.sums.count - sizes[rows]
            found.num_mated[at], found.num_nonmated[at] = num_mated, num_nonmated
            found.mated_mean[at] = _divided(own - itself, num_mated)
            others = np.einsum("bd,bd->b", unit, self.sums.total - totals)
            found.nonmated_mean[at] = _divided(others, num_nonmated)
            self._centre[rows] = unit @ self.sums.mean

    def _total(self, group: int) -> NDArray[np.float64]:
        if self._known_total[0] != group:
            starts = self.shard.starts
            own = self.shard.unit[starts[group] : starts[group + 1]]
            self._known_total = (group, own.sum(axis=0, dtype=np.float64))
        return self._known_total[1]

    _known_total: tuple[int, NDArray[np.float64]] = (-1, np.zeros(0))

    def _fill(self, tile: MatedTile) -> None:
        """Fill in what a tile tells of its rows."""
        found, at = self.statistics, tile.rows - self.part[0]
        kept = tile.num_mated
        pads = tile.similarity.shape[1] - kept
        mated = np.where(np.arange(tile.similarity.shape[1]) >= pads[:, None], tile.similarity, 0.0)
        if self._max_similarity is not None:
            found.num_mated[at] = kept
            found.mated_mean[at] = _divided(mated.sum(axis=1, dtype=np.float64), kept)
        mean = found.mated_mean[at]
        mated -= np.where(np.arange(mated.shape[1]) >= pads[:, None], mean[:, None], 0.0)
        found.mated_std[at] = np.sqrt(_divided(np.einsum("bw,bw->b", mated, mated), kept))
        for column, share in enumerate(QUANTILES):
            ranked = tile.ranked(share * (kept - 1))
            found.mated_quantiles[at, column] = np.where(kept > 0, ranked, np.nan)
        number, count = found.num_nonmated[at], self.sums.count
        everybody = count * self._all_variance[tile.rows]
        moved = np.square(found.nonmated_mean[at] - self._centre[tile.rows])
        variance = _divided(everybody - tile.own_square, number) - moved
        found.nonmated_std[at] = np.sqrt(np.maximum(variance, 0.0))
        self.slack[at] = _divided(_FLOAT_ERROR * (everybody + tile.own_square), number)
        found.signed_gap[at] = mean - found.nonmated_mean[at]

    def look(self) -> ShardStatistics:
        """Return the statistics of all rows to label, without any distance."""
        for _ in self.tiles():
            pass
        return self.statistics

    def rows_of(self, tile: MatedTile) -> Rows:
        """Return the rows of a tile as those that are compared with a reference."""
        return Rows(self.shard.unit[tile.rows], self.shard.codes[tile.rows])

    def moments_of(self, tile: MatedTile) -> NonmatedMoments:
        """Return what is known of the nonmated similarities of a tile's rows."""
        found, at = self.statistics, tile.rows - self.part[0]
        return NonmatedMoments(
            found.num_nonmated[at], found.nonmated_mean[at], np.square(found.nonmated_std[at])
        )


def _divided(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (B,) means, NaN where the count is 0."""
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
