"""Comparisons between the images of a set: all mated ones, and all or a share of the nonmated ones.

Shapes: N images of the set, D numbers of an embedding, A rows of one tile, K comparisons.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.hashing import GOLDEN, mix, unit_interval


@dataclass(frozen=True)
class ComparedPairs:
    """K comparisons: numbers of the two images, first < second, and the cosine similarity."""

    first: NDArray[np.int32]
    second: NDArray[np.int32]
    similarities: NDArray[np.float32]


def compare_tile(
    unit: NDArray[np.float32],
    codes: NDArray[np.int64],
    rows: tuple[int, int],
    nonmated_share: float,
    seed: int,
) -> tuple[ComparedPairs, ComparedPairs]:
    """Return the mated and the nonmated comparisons of some images with all later ones.

    A nonmated comparison is drawn by a hash of (seed, first, second), so that the comparisons do
    not depend on how the rows are cut into tiles.

    Args:
        unit: (N, D) embeddings of unit length.
        codes: (N,) number of the identity of each image.
        rows: First row of the tile, and the row after its last.
        nonmated_share: Share of the nonmated comparisons that is made, in [0, 1].
        seed: Draws them.

    Returns:
        Mated and nonmated comparisons, each ordered by (first, second).
    """
    start, stop = rows
    similarities = unit[start:stop] @ unit[start:].T
    later = np.arange(len(unit) - start)[None, :] > np.arange(stop - start)[:, None]
    mated = codes[start:stop, None] == codes[None, start:]
    first, second = np.nonzero(later & ~mated)
    if nonmated_share < 1:
        drawn = _uniform(first + start, second + start, seed) < nonmated_share
        first, second = first[drawn], second[drawn]
    mated_first, mated_second = np.nonzero(later & mated)
    return (
        _pairs(similarities, mated_first, mated_second, start),
        _pairs(similarities, first, second, start),
    )


def count_nonmated(codes: NDArray[np.int64]) -> int:
    """Return how many nonmated comparisons N images have.

    Example:
        >>> count_nonmated(np.array([0, 0, 1]))
        2
    """
    counts = np.unique(codes, return_counts=True)[1].astype(object)
    return int((len(codes) ** 2 - (counts**2).sum()) // 2)


def _pairs(
    similarities: NDArray[np.float32],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    start: int,
) -> ComparedPairs:
    return ComparedPairs(
        (first + start).astype(np.int32),
        (second + start).astype(np.int32),
        similarities[first, second],
    )


def _uniform(first: NDArray[np.int64], second: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each pair: a hash of (seed, first, second)."""
    with np.errstate(over="ignore"):
        state = mix(first.astype(np.uint64) + np.uint64(seed) * GOLDEN + GOLDEN)
        state = mix(state + second.astype(np.uint64) * GOLDEN + GOLDEN)
    return unit_interval(state)
