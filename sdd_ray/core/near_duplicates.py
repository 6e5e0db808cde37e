"""Pairs of nearly equal embeddings: exact in tiles, or from candidates that share hashes.

The hashes are signs of products with random hyperplanes. Two unit vectors at an angle a agree in
one sign with probability p = 1 - a / pi (Charikar, "Similarity estimation techniques from rounding
algorithms", STOC 2002), so in all `bits` signs of a table with p^bits, and in at least one of
`tables` tables with 1 - (1 - p^bits)^tables. What agrees by chance is sorted out by 64 more signs.

Shapes: N embeddings of d numbers, P pairs.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import bdtr

from sdd_ray.core.similarity import products

_TILE_ROWS = 1024
_TILE_COLUMNS = 4096
_CHECK_BITS = 64
_CHECK_LOSS = 1e-3
"""Share of the pairs at the limit that the check may lose."""
_MAX_IN_BUCKET = 1000
"""In a bucket of equal hashes an embedding is paired with at most so many after it."""

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


def pairs_above(
    rows: NDArray[np.float32], columns: NDArray[np.float32], limit: float, *, is_same: bool
) -> Pairs:
    """Return row, column and similarity of all pairs from a limit on, in order of row and column.

    Args:
        rows: (R, d) unit length.
        columns: (C, d) unit length.
        limit: Smallest similarity of a pair.
        is_same: Rows and columns are the same: each pair once, with row < column.

    Example:
        >>> unit = np.float32([[1, 0], [0, 1], [1, 0]])
        >>> [part.tolist() for part in pairs_above(unit, unit, 0.9, is_same=True)]
        [[0], [2], [1.0]]
    """
    found: list[Pairs] = []
    for start in range(0, len(rows), _TILE_ROWS):
        first = start - start % _TILE_COLUMNS if is_same else 0
        for left in range(first, len(columns), _TILE_COLUMNS):
            similarities = products(
                rows[start : start + _TILE_ROWS], columns[left : left + _TILE_COLUMNS]
            )
            i, j = np.nonzero(similarities >= limit)
            values = similarities[i, j]
            i, j = i + start, j + left
            kept = i < j if is_same else np.ones(len(i), bool)
            found.append((i[kept], j[kept], values[kept]))
    return joined(found)


def joined(parts: list[Pairs]) -> Pairs:
    """Return all pairs of several parts, by row and column."""
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    first, second, values = (np.concatenate([part[n] for part in parts]) for n in range(3))
    order = np.lexsort((second, first))
    return first[order].astype(np.int64), second[order].astype(np.int64), values[order]


def duplicate_groups(
    unit: NDArray[np.float32], limit: float
) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
    """Return groups of images that are linked by near-duplicates, and how many pairs there are.

    Args:
        unit: (N, d) unit length.
        limit: Near-duplicates from this similarity on.

    Returns:
        (N,) number of the first image of the group, -1 for an image in none; (N,) its largest
        similarity to another image of the group, NaN in none; and the pairs of near-duplicates.

    Example:
        >>> unit = np.float32([[1, 0], [0, 1], [1, 0]])
        >>> groups, similarity, pairs = duplicate_groups(unit, 0.9)
        >>> groups.tolist(), similarity.tolist(), pairs
        ([0, -1, 0], [1.0, nan, 1.0], 1)
    """
    groups = np.arange(len(unit))
    best = np.full(len(unit), -np.inf, np.float32)
    num_pairs = 0
    for start in range(0, len(unit), _TILE_ROWS):
        # One strip of rows at a time: all pairs of a large identity would not fit.
        rows = unit[start : start + _TILE_ROWS]
        i, j, values = pairs_above(rows, unit[start:], limit, is_same=False)
        later = i < j
        i, j, values = i[later] + start, j[later] + start, values[later]
        if len(i):
            groups = linked(groups, i, j)
            for side in (i, j):
                np.maximum.at(best, side, values)
            num_pairs += len(i)
    alone = np.isneginf(best)
    best[alone] = np.nan
    groups[alone] = -1
    return groups, best, num_pairs


def linked(
    groups: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return (N,) groups with those of each pair joined, named by their smallest member.

    Args:
        groups: (N,) smallest member of the group of each.
        first: (P,) one member of each pair.
        second: (P,) the other.

    Example:
        >>> linked(np.arange(5), np.array([3, 1]), np.array([4, 3])).tolist()
        [0, 1, 2, 1, 1]
    """
    n = len(groups)
    ends = np.concatenate([groups[first], np.arange(n)]), np.concatenate([groups[second], groups])
    graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(n, n))
    _, component = connected_components(graph, directed=False)
    smallest = np.full(component.max(initial=-1) + 1, n, np.int64)
    np.minimum.at(smallest, component, np.arange(n))
    return np.asarray(smallest[component])


class TopPairs:
    """The most similar of many pairs, and how many there were; in any order of adding.

    Args:
        limit: Pairs kept.
    """

    def __init__(self, limit: int) -> None:
        self.count = 0
        self._limit = limit
        self._parts: list[Pairs] = []

    def add(self, pairs: Pairs) -> None:
        """Add pairs, each of which is added once."""
        self.count += len(pairs[0])
        self._parts.append(pairs)
        if sum(len(part[0]) for part in self._parts) > 2 * self._limit:
            self._parts = [self.pairs()]

    def pairs(self) -> Pairs:
        """Return those kept, the most similar first."""
        first, second, values = joined(self._parts)
        order = np.argsort(-values, kind="stable")[: self._limit]
        return first[order], second[order], values[order]


@dataclass(frozen=True)
class HashPlan:
    """How candidates are found.

    Attributes:
        tables: Hash tables.
        bits: Signs in the key of a table, at most 63.
        max_differing: Of the 64 signs of the check, those in which two candidates may differ.
        recall: Expected share of the pairs at the limit that become candidates.
    """

    tables: int
    bits: int
    max_differing: int
    recall: float


def plan_hashes(limit: float, recall: float, num_images: int) -> HashPlan:
    """Return a plan that finds pairs from a similarity on with a probability of at least `recall`.

    Keys are as long as a number of an image, so that a bucket holds few by chance.

    Example:
        >>> plan_hashes(0.97, 0.95, 1_000_000)
        HashPlan(tables=14, bits=20, max_differing=13, recall=0.952...)
    """
    agree = 1.0 - math.acos(limit) / math.pi
    bits = min(max(math.ceil(math.log2(max(num_images, 2))), 8), 63)
    in_table = agree**bits
    kept = 1.0 - _CHECK_LOSS
    tables = max(1, math.ceil(math.log1p(-min(recall / kept, 1 - 1e-9)) / math.log1p(-in_table)))
    # The number of differing signs is binomial: the first count that is not exceeded too often.
    within = bdtr(np.arange(_CHECK_BITS + 1), _CHECK_BITS, 1.0 - agree)
    max_differing = int(np.argmax(within >= kept))
    return HashPlan(tables, bits, max_differing, kept * (1.0 - (1.0 - in_table) ** tables))


def hash_rows(
    unit: NDArray[np.float32], plan: HashPlan, seed: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return (tables, N) keys and (N,) check signs of unit rows.

    Args:
        unit: (N, d) unit length.
        plan: Numbers of tables and bits.
        seed: Draws the hyperplanes; equal for all rows that are to be compared.
    """
    size = plan.tables * plan.bits + _CHECK_BITS
    generator = np.random.default_rng([seed, unit.shape[1]])
    planes = generator.standard_normal((size, unit.shape[1])).astype(np.float32)
    words = np.zeros((plan.tables + 1, len(unit)), np.uint64)
    for start in range(0, len(unit), _TILE_ROWS):
        signs = products(unit[start : start + _TILE_ROWS], planes) > 0
        for table in range(plan.tables + 1):
            bits = signs[:, table * plan.bits :][:, : plan.bits if table < plan.tables else None]
            powers = np.uint64(1) << np.arange(bits.shape[1], dtype=np.uint64)
            words[table, start : start + _TILE_ROWS] = (bits * powers).sum(1, dtype=np.uint64)
    return words[:-1], words[-1]


def candidate_pairs(
    keys: NDArray[np.uint64],
    check: NDArray[np.uint64],
    codes: NDArray[np.int64],
    max_differing: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs (smaller row, larger row) of different identities that share a key.

    Args:
        keys: (N,) keys of one table.
        check: (N,) check signs.
        codes: (N,) identities.
        max_differing: Check signs in which a pair may differ.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    found = []
    at = np.arange(len(order))
    for step in range(1, _MAX_IN_BUCKET + 1):
        at = at[at + step < len(order)]
        at = at[ordered[at] == ordered[at + step]]
        if len(at) == 0:
            break
        first, second = order[at], order[at + step]
        differing = np.bitwise_count(check[first] ^ check[second])
        kept = (differing <= max_differing) & (codes[first] != codes[second])
        found.append(np.stack([first[kept], second[kept]]))
    pairs = np.concatenate(found, axis=1) if found else np.zeros((2, 0), np.int64)
    return pairs.min(axis=0), pairs.max(axis=0)


def pair_similarities(
    first: NDArray[np.float32], second: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return (P,) similarities of the rows of two (P, d) arrays, one pair a row."""
    similarities: NDArray[np.float64] = np.einsum("pd,pd->p", first, second, dtype=np.float64)
    return similarities.astype(np.float32)
