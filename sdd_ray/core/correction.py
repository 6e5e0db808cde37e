"""By how much an image's distribution distance exceeds the difference of its two means.

With F_P and F_N the distribution functions of an image's mated and nonmated similarities,

    W1 = integral of |F_P - F_N| = mean(P) - mean(N) + 2 C,   C = integral of (F_P - F_N)^+.

C is 0 where the mated similarities lie above the nonmated ones at every rank, which holds for most
images of a usable recogniser; it is what tells the poor images apart. Only the line above the
smallest mated similarity matters, so only the nonmated similarities above it are collected.

Here C is computed exactly from all embeddings, or estimated from a shared random sample of them
with a bound on the error. Columns are cut into tiles of constant width before they are multiplied,
so a result does not depend on the blocks in which the reference arrives, only on its order.

Shapes: R rows, C reference columns, d numbers an embedding, E mated comparisons of all rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.similarity import products
from sdd_ray.core.wasserstein import Comparisons, merged_steps, row_sums

COLUMN_TILE = 4096
"""Reference columns multiplied at once. Blocks of a multiple of this are used without a copy."""

DEVIATIONS = 3.0
"""Standard errors of the sampled distribution function in the error bound."""


@dataclass(frozen=True, eq=False)
class ReferenceBlock:
    """Some reference embeddings.

    Attributes:
        unit: (C, d) unit-length rows.
        identities: (C,) integer code of each row's identity, the same codes as the shard's.

    Raises:
        ValueError: The shapes do not fit together.
    """

    unit: NDArray[np.float32]
    identities: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.unit.ndim != 2 or self.identities.shape != self.unit.shape[:1]:
            raise ValueError(
                f"expected (C, d) embeddings and (C,) identities, got {self.unit.shape} "
                f"and {self.identities.shape}"
            )


@dataclass(frozen=True, eq=False)
class Reference:
    """The embeddings that stand for everybody else, in canonical order.

    Attributes:
        blocks: The columns. They are gone through once for every row tile; a sequence that fetches
            a block when it is asked for it works as well as a list.
        is_exhaustive: True if the columns are all images of the run, so that labels are exact;
            False if they are a sample of them, drawn with equal chance for every image.
    """

    blocks: Sequence[ReferenceBlock]
    is_exhaustive: bool

    def tiles(self) -> Iterator[ReferenceBlock]:
        """Yield the columns again in tiles of COLUMN_TILE, the last one smaller."""
        held: list[ReferenceBlock] = []
        num_held = 0
        for block in self.blocks:
            start = 0
            while start < len(block.unit):
                stop = min(start + COLUMN_TILE - num_held, len(block.unit))
                held.append(ReferenceBlock(block.unit[start:stop], block.identities[start:stop]))
                num_held += stop - start
                start = stop
                if num_held == COLUMN_TILE:
                    yield _joined(held)
                    held, num_held = [], 0
        if held:
            yield _joined(held)


@dataclass(frozen=True, eq=False)
class RowTile:
    """Some rows of a shard, with their mated comparisons.

    Attributes:
        unit: (R, d) unit-length rows.
        identities: (R,) integer code of each row's identity.
        mated: All E mated comparisons, sorted by row and similarity.
        num_mated: (R,) mated comparisons of each row.
    """

    unit: NDArray[np.float32]
    identities: NDArray[np.int64]
    mated: Comparisons
    num_mated: NDArray[np.int64]


def correction(
    tile: RowTile, reference: Reference
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return C of each row by the reference, the spread of that estimate, and its sample size.

    The spread bounds |C by the reference - C by all images|: wherever F_P may lie above F_N, the
    sampled F_N is taken to be wrong by DEVIATIONS standard errors. The share of nonmated
    similarities above t counts as (k + 1) / (r + 2) for k seen among r, so that a tail of which
    the sample shows nothing still costs something. It is a bound on one row at the confidence
    measured in `distances.shard_distances`, not a certainty.

    Returns:
        (R,) C >= 0, 0 for a row with no mated or no nonmated comparison; (R,) its spread,
        meaningless for an exhaustive reference; (R,) nonmated comparisons made for the row.
    """
    nonmated, num_nonmated = _nonmated_above(tile, reference)
    num_rows = len(tile.unit)
    excess = np.zeros(num_rows)
    spread = np.zeros(num_rows)
    for steps in merged_steps(tile.mated, nonmated, num_nonmated):
        gap = steps.mated_cdf - steps.nonmated_cdf
        excess += steps.integrate(np.maximum(gap, 0.0), num_rows)
        if not reference.is_exhaustive:
            size = np.maximum(num_nonmated, 1)[steps.row]
            share = ((1.0 - steps.nonmated_cdf) * size + 1.0) / (size + 2.0)
            error = DEVIATIONS * np.sqrt(share * (1.0 - share) / size)
            spread += steps.integrate(np.clip(gap + error, 0.0, error), num_rows)
    return np.where(num_nonmated > 0, excess, 0.0), spread, num_nonmated


def certificate(
    mated: Comparisons,
    num_mated: NDArray[np.int64],
    mean: NDArray[np.float64],
    std: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return (R,) what C cannot exceed, given only mean and spread of the nonmated similarities.

    By Cantelli's inequality at most 1 / (1 + u^2) of the nonmated similarities lie above t, where
    u = (t - mean) / std >= 0. The excess of that bound over the share of mated similarities above
    t is integrated in closed form between neighbouring mated similarities.

    Args:
        mated: All mated comparisons, sorted by row and similarity.
        num_mated: (R,) their number in each row.
        mean: (R,) mean nonmated similarity.
        std: (R,) its population standard deviation.
    """
    row, start = mated.row, mated.similarity.astype(np.float64)
    is_last = np.concatenate([row[1:] != row[:-1], [True]])[: len(row)]
    following = np.where(is_last, 1.0, np.concatenate([start[1:], [1.0]])[: len(row)])
    stop = np.maximum(following, start)
    first = np.concatenate([[0], np.cumsum(num_mated)[:-1]])
    above = 1.0 - (np.arange(len(row)) - first[row] + 1) / num_mated[row]
    mu, sigma = mean[row], np.maximum(std, 1e-12)[row]
    with np.errstate(divide="ignore"):
        stop = np.minimum(stop, mu + sigma * np.sqrt(1.0 / above - 1.0))  # there bound = above
    stop = np.maximum(stop, start)
    middle = np.clip(mu, start, stop)
    tail = sigma * (np.arctan((stop - mu) / sigma) - np.arctan((middle - mu) / sigma))
    excess = (1.0 - above) * (middle - start) + tail - above * (stop - middle)
    return row_sums(row, np.maximum(excess, 0.0), len(num_mated))


def _nonmated_above(tile: RowTile, reference: Reference) -> tuple[Comparisons, NDArray[np.int64]]:
    """Return the nonmated similarities above the row's smallest mated one, and (R,) all counted."""
    num_rows = len(tile.unit)
    floor = np.full(num_rows, np.inf, np.float32)
    first = np.cumsum(tile.num_mated) - tile.num_mated
    has_mated = tile.num_mated > 0
    floor[has_mated] = tile.mated.similarity[first[has_mated]]
    num_nonmated = np.zeros(num_rows, np.int64)
    found_rows, found = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for columns in reference.tiles():
        similarity = products(tile.unit, columns.unit)
        hits = np.flatnonzero(similarity > floor[:, None])
        row, column = np.divmod(hits, len(columns.unit))
        is_nonmated = tile.identities[row] != columns.identities[column]
        found_rows.append(row[is_nonmated])
        found.append(similarity.ravel()[hits[is_nonmated]])
        num_nonmated += len(columns.unit) - _occurrences(tile.identities, columns.identities)
    return Comparisons(np.concatenate(found_rows), np.concatenate(found)), num_nonmated


def _occurrences(values: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each of the values occurs among others."""
    ordered = np.sort(among)
    right = np.searchsorted(ordered, values, side="right")
    return (right - np.searchsorted(ordered, values, side="left")).astype(np.int64)


def _joined(blocks: list[ReferenceBlock]) -> ReferenceBlock:
    """Return the blocks as one, without a copy where there is only one."""
    if len(blocks) == 1:
        return blocks[0]
    return ReferenceBlock(
        np.concatenate([block.unit for block in blocks]),
        np.concatenate([block.identities for block in blocks]),
    )
