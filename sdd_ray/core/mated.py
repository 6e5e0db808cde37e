"""The mated similarities of a shard, row by row and sorted.

A shard holds whole identities, its rows sorted by (identity, image_id). Identities of nearly the
same size are multiplied together, so that many small ones take one product; a large one is worked
on a few rows at a time, and never held as a whole Gram matrix. Tiles depend on the shard alone, so
equal shards give equal bits.

Shapes: N rows of a shard, G identities in it, d numbers an embedding, B rows of a tile, W columns:
the largest number of mated similarities of a tile's rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.similarity import gram_matrices, products

PAD = np.float32(-4.0)
"""Stands where a row has no similarity: below all of them, and they come first in a sorted row."""

MAX_TILE_PRODUCTS = 1 << 19
"""Products of rows with their identities that are held at once (2 MiB), but at least one row's."""

_SIZE_RATIO = 0.8  # of the smallest to the largest identity that are multiplied together


@dataclass(frozen=True, eq=False)
class Shard:
    """Whole identities, side by side.

    Attributes:
        unit: (N, d) unit-length rows, finite, sorted by (identity, image_id).
        starts: (G + 1,) from 0 to N, strictly increasing: identity g has the rows starts[g] to
            starts[g + 1].
        identities: (G,) integer code of each identity, different for different identities, and
            the same in every shard and reference of a run.

    Raises:
        ValueError: The arrays do not fit together.
    """

    unit: NDArray[np.float32]
    starts: NDArray[np.int64]
    identities: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.unit.ndim != 2 or self.unit.dtype != np.float32 or len(self.unit) == 0:
            raise ValueError(
                f"expected (N, d) float32 embeddings with N >= 1, got {self.unit.dtype} "
                f"of shape {self.unit.shape}"
            )
        starts = self.starts
        ends_fit = len(starts) >= 2 and starts[0] == 0 and starts[-1] == len(self.unit)
        if not ends_fit or (np.diff(starts) < 1).any():
            raise ValueError(
                f"expected starts to rise strictly from 0 to {len(self.unit)}, got {starts}"
            )
        if self.identities.shape != (len(starts) - 1,):
            raise ValueError(
                f"expected {len(starts) - 1} identities, got shape {self.identities.shape}"
            )

    @classmethod
    def of(cls, unit: NDArray[np.float32], codes: NDArray[np.int64]) -> "Shard":
        """Return the shard of (N, d) rows with (N,) codes of identities that lie side by side."""
        starts = np.flatnonzero(np.diff(codes, prepend=codes[:1] - 1))
        return cls(unit, np.append(starts, len(unit)), codes[starts])

    @cached_property
    def group(self) -> NDArray[np.int64]:
        """(N,) the index in [0, G) of each row's identity."""
        return np.repeat(np.arange(len(self.identities)), np.diff(self.starts))

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        """(N,) the code of each row's identity."""
        return self.identities[self.group]


@dataclass(frozen=True, eq=False)
class MatedTile:
    """Some rows of a shard with their mated similarities.

    Attributes:
        rows: (B,) their places in the shard.
        similarity: (B, W) mated similarities, ascending; PAD on the left where a row has fewer.
        num_mated: (B,) similarities of each row.
        own_square: (B,) sum over the row's whole identity, itself included, of the squared
            deviation of the similarity from the row's centre.
    """

    rows: NDArray[np.int64]
    similarity: NDArray[np.float32]
    num_mated: NDArray[np.int64]
    own_square: NDArray[np.float64]

    @cached_property
    def smallest(self) -> NDArray[np.float32]:
        """(B,) each row's smallest mated similarity; infinity for a row that has none."""
        return np.where(self.num_mated > 0, self.ranked(np.zeros(len(self.rows))), np.inf).astype(
            np.float32
        )

    @cached_property
    def largest(self) -> NDArray[np.float64]:
        """(B,) each row's largest mated similarity; PAD for a row that has none."""
        if self.similarity.shape[1] == 0:
            return np.full(len(self.rows), float(PAD))
        return self.similarity[:, -1].astype(np.float64)

    def ranked(self, rank: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return (B,) the similarity of a rank, from 0 to num_mated - 1, linear between ranks."""
        width = self.similarity.shape[1]
        if width == 0:
            return np.full(len(self.rows), float(PAD))
        place = np.clip(width - self.num_mated + rank, 0, width - 1)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, width - 1)
        line = np.arange(len(self.rows))
        below, above = (self.similarity[line, at].astype(np.float64) for at in (low, high))
        ranked: NDArray[np.float64] = below + (place - low) * (above - below)
        return ranked

    @classmethod
    def joined(cls, tiles: "Sequence[MatedTile]") -> "MatedTile":
        """Return the rows of all tiles, one tile after the other."""
        width = max(tile.similarity.shape[1] for tile in tiles)
        similarity = np.full((sum(len(tile.rows) for tile in tiles), width), PAD, np.float32)
        row = 0
        for tile in tiles:
            place = slice(row, row + len(tile.rows))
            similarity[place, width - tile.similarity.shape[1] :] = tile.similarity
            row += len(tile.rows)
        return cls(
            np.concatenate([tile.rows for tile in tiles]),
            similarity,
            np.concatenate([tile.num_mated for tile in tiles]),
            np.concatenate([tile.own_square for tile in tiles]),
        )

    def subset(self, chosen: NDArray[np.intp]) -> "MatedTile":
        """Return the tile of some of its rows."""
        return MatedTile(
            self.rows[chosen],
            self.similarity[chosen],
            self.num_mated[chosen],
            self.own_square[chosen],
        )


def mated_tiles(
    shard: Shard,
    centre: NDArray[np.float64],
    max_similarity: float | None = None,
    part: tuple[int, int] | None = None,
) -> Iterator[MatedTile]:
    """Yield the shard's rows in tiles, each row once.

    Args:
        shard: The rows.
        centre: (N,) what own_square is taken about.
        max_similarity: Mated similarities above it are left out, as of copies of one image.
        part: Only these rows of the shard, from and to, which needs a shard of one identity.
    """
    sizes = np.diff(shard.starts)
    first, last = part if part is not None else (0, len(shard.unit))
    for group in _groups(sizes):
        if len(group) == 1:
            start, stop = shard.starts[group[0]], shard.starts[group[0] + 1]
            step = max(1, MAX_TILE_PRODUCTS // int(stop - start))
            for low in range(max(start, first), min(stop, last), step):
                rows = np.arange(low, min(low + step, stop, last))
                gram = products(shard.unit[rows], shard.unit[start:stop])
                yield _tile(rows, gram, rows - start, centre[rows], max_similarity)
        else:
            rows, gram, itself, is_own = _gram_of_several(shard, group)
            yield _tile(rows, gram, itself, centre[rows], max_similarity, is_own)


def _groups(sizes: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the identities in groups of similar sizes whose Gram matrices fit a tile."""
    order = np.argsort(sizes, kind="stable")
    first = 0
    while first < len(order):
        smallest = sizes[order[first]]
        stop = first + 1
        while stop < len(order):
            largest = int(sizes[order[stop]])
            fits = (stop - first + 1) * largest**2 <= MAX_TILE_PRODUCTS
            if not fits or smallest < _SIZE_RATIO * largest:
                break
            stop += 1
        yield order[first:stop]
        first = stop


def _gram_of_several(
    shard: Shard, group: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_] | None]:
    """Return the rows of some identities, their products with their identity, and what is what.

    Returns:
        (B,) rows; (B, W) products; (B,) the column of each row itself; (B, W) which columns are of
        the row's identity, None if all are.
    """
    starts, sizes = shard.starts[group], np.diff(shard.starts)[group]
    local = np.arange(sizes.max())
    is_there = local < sizes[:, None]
    places = np.where(is_there, starts[:, None] + local, starts[:, None])
    gram = gram_matrices(shard.unit[places])
    itself = np.broadcast_to(local, places.shape)
    if is_there.all():
        return places.ravel(), gram.reshape(-1, len(local)), itself.ravel(), None
    is_own = np.repeat(is_there, sizes, axis=0)
    return places[is_there], gram[is_there], itself[is_there], is_own


def _tile(
    rows: NDArray[np.int64],
    gram: NDArray[np.float32],
    itself: NDArray[np.int64],
    centre: NDArray[np.float64],
    max_similarity: float | None,
    is_own: NDArray[np.bool_] | None = None,
) -> MatedTile:
    deviation = gram - centre[:, None]
    if is_own is not None:
        deviation[~is_own] = 0.0
        gram[~is_own] = PAD
    own_square = np.einsum("bw,bw->b", deviation, deviation)
    gram[np.arange(len(rows)), itself] = PAD
    if max_similarity is not None:
        gram[gram > max_similarity] = PAD
    gram.sort(axis=1)
    num_mated = np.count_nonzero(gram > PAD, axis=1)
    width = int(num_mated.max(initial=0))
    return MatedTile(rows, gram[:, gram.shape[1] - width :], num_mated, own_square)
