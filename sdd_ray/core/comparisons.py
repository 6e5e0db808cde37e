"""Comparisons between the images of a set: all mated ones, and all, some or the largest nonmated.

Shapes: N images of the set, D numbers of an embedding, A rows of one tile, K comparisons.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.hashing import GOLDEN, mix, unit_interval

_PAIRS_AT_ONCE = 16_384


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


def mated_pairs(codes: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the two images of all mated comparisons, ordered by (first, second).

    Args:
        codes: (N,) number of the identity of each image.

    Example:
        >>> [ends.tolist() for ends in mated_pairs(np.array([1, 0, 1, 1, 0]))]
        [[0, 0, 1, 2], [2, 3, 4, 3]]
    """
    order = np.argsort(codes, kind="stable")
    cuts = np.flatnonzero(np.diff(codes[order])) + 1
    firsts, seconds = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for rows in np.split(order.astype(np.int32), cuts):
        a, b = np.triu_indices(len(rows), 1)
        firsts.append(rows[a])
        seconds.append(rows[b])
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    by = np.lexsort((second, first))
    return first[by], second[by]


def sampled_nonmated(
    codes: NDArray[np.int64], number: int, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the two images of nonmated comparisons drawn evenly, each at most once.

    Args:
        codes: (N,) number of the identity of each image; at least two of them.
        number: How many; fewer than there are.
        seed: Draws them.

    Returns:
        Ordered by (first, second).
    """
    generator = np.random.default_rng([seed, 1])
    size = len(codes)
    keys = np.zeros(0, np.int64)
    while len(keys) < number:
        a, b = generator.integers(0, size, (2, number + number // 4 + 64))
        usable = codes[a] != codes[b]
        drawn = np.minimum(a, b)[usable] * size + np.maximum(a, b)[usable]
        # In order of their first draw, so that more draws only add to those that there are.
        everything = np.concatenate([keys, drawn])
        keys = everything[np.sort(np.unique(everything, return_index=True)[1])]
    keys = np.sort(keys[:number])
    return (keys // size).astype(np.int32), (keys % size).astype(np.int32)


def similarities_between(
    unit: NDArray[np.float32], first: NDArray[np.integer[Any]], second: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Return the (K,) cosines of pairs of rows of (N, D) unit embeddings, summed in float64."""
    found = np.empty(len(first), np.float64)
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        some = slice(start, start + _PAIRS_AT_ONCE)
        rows = (unit[first[some]], unit[second[some]])
        found[some] = np.einsum("pd,pd->p", *rows, dtype=np.float64)
    return found


def largest_of_tile(
    unit: NDArray[np.float32],
    codes: NDArray[np.int64],
    rows: tuple[int, int],
    cutoff: float,
) -> ComparedPairs:
    """Return the nonmated comparisons of some images with all later ones above a similarity.

    Args:
        unit: (N, D) embeddings of unit length.
        codes: (N,) number of the identity of each image.
        rows: First row of the tile, and the row after its last.
        cutoff: Similarity.
    """
    start, stop = rows
    similarities = unit[start:stop] @ unit[start:].T
    first, second = np.nonzero(similarities > cutoff)
    wanted = (second > first) & (codes[start + first] != codes[start + second])
    return _pairs(similarities, first[wanted], second[wanted], start)


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
