"""Plain definitions that the numerics of labels are compared with: every similarity, in float64."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.distances import References
from sdd_ray.core.hits import Hits, collect
from sdd_ray.core.mated import PAD, MatedTile
from sdd_ray.core.reference import Block, Rows, similarities
from sdd_ray.core.tails import NonmatedMoments, Tail

Sides = list[tuple[NDArray[np.float64], NDArray[np.float64]]]


def brute_force(unit, codes, max_similarity=np.inf) -> Sides:
    """Return each image's mated similarities up to a limit, and its nonmated ones."""
    similarity = unit.astype(np.float64) @ unit.astype(np.float64).T
    images = np.arange(len(unit))
    return [
        (row[(codes == codes[i]) & (images != i) & (row <= max_similarity)], row[codes != codes[i]])
        for i, row in enumerate(similarity)
    ]


def positive_part(mated, nonmated) -> float:
    """Return the integral of (F_P - F_N)^+ by the definition; 0 without mated similarities."""
    if len(mated) == 0 or len(nonmated) == 0:
        return 0.0
    mated, nonmated = np.asarray(mated, np.float64), np.asarray(nonmated, np.float64)
    points = np.sort(np.concatenate([mated, nonmated]))
    share_p = np.searchsorted(np.sort(mated), points[:-1], side="right") / len(mated)
    share_n = np.searchsorted(np.sort(nonmated), points[:-1], side="right") / len(nonmated)
    return float((np.diff(points) * np.maximum(share_p - share_n, 0)).sum())


def tile_of(mated: Sequence[Sequence[float]]) -> MatedTile:
    """Return a tile of rows with these mated similarities."""
    width = max((len(row) for row in mated), default=0)
    similarity = np.full((len(mated), width), PAD, np.float32)
    for i, row in enumerate(mated):
        similarity[i, width - len(row) :] = np.sort(np.asarray(row, np.float32))
    number = np.array([len(row) for row in mated], np.int64)
    return MatedTile(np.arange(len(mated)), similarity, number, np.zeros(len(mated)))


def dense(rows: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    """Return similarities of rows as they come from a sample, PAD behind those with fewer."""
    found = np.full((len(rows), max(len(row) for row in rows)), PAD, np.float32)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return found


def whole_tail(tile: MatedTile) -> Tail:
    """Return the tail that leaves out nothing."""
    return Tail.of(tile, tile.similarity.shape[1] - tile.num_mated)


def moments_of(nonmated: Sequence[NDArray[np.float64]]) -> NonmatedMoments:
    """Return the exact moments of nonmated similarities."""
    return NonmatedMoments(
        np.array([len(row) for row in nonmated]),
        np.array([row.mean() for row in nonmated]),
        np.array([row.var() for row in nonmated]),
    )


def drawn(unit, codes, size: int, seed: int) -> Block:
    """Return a random sample of a set, sorted by identity."""
    chosen = np.random.default_rng(seed).choice(len(unit), size, replace=False)
    return Block(unit[chosen], codes[chosen]).sorted()


def hits_of(tail: Tail, rows: Rows, sample: Block) -> Hits:
    """Return the hits of rows above their tails' floors."""
    return collect(similarities(rows, sample), tail.floor)


def all_images(unit, codes, cuts=(), samples=()) -> References:
    """Return references to a whole set, in blocks, and to samples of it."""
    pieces = list(zip(np.split(unit, cuts), np.split(codes, cuts), strict=True))
    return References(
        [lambda sample=sample: sample for sample in samples],
        lambda: [Block(*piece) for piece in pieces],
    )
