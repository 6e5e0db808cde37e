"""Distances between the distribution functions of similarities, for many images at once.

Samples of equal size need a sort and a mean. Samples of any sizes are held as comparisons (which
row, which similarity) and merged into steps: between two neighbouring similarities of a row both
distribution functions are constant, so an integral over them is a sum over steps. One sort of
64-bit keys (row, similarity, kind) does this for all rows; no row is handled by itself.

A row's integral depends on that row's similarities alone, and not on their order: they are sorted
first and then added one after the other.

Shapes: R rows (one an image, or an image and round), E comparisons or steps of all rows together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_STEPS = 1 << 20
"""Steps expanded into float64 at once, about 60 MiB; a row with more is expanded whole."""

_SIGN = np.uint32(0x80000000)
_ROW_SHIFT = np.uint64(33)  # key: row, 32 bits of similarity, 1 bit that is 1 for mated


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Similarities of several rows.

    Attributes:
        row: (E,) row of each comparison, in [0, R).
        similarity: (E,) its similarity.
    """

    row: NDArray[np.int64]
    similarity: NDArray[np.float32]

    def sorted(self) -> "Comparisons":
        """Return the same comparisons by row, and by similarity within a row."""
        keys = np.sort(_keys(self, mated=False))
        return Comparisons(_rows(keys), _similarities(keys))


@dataclass(frozen=True, eq=False)
class Steps:
    """Intervals on which both distribution functions of a row are constant.

    The last step of a row reaches from its largest similarity to 1; the part of the line below the
    smallest listed similarity is no step.

    Attributes:
        row: (E,) row of each step, in [0, R), not decreasing.
        width: (E,) its length, 0 for ties.
        mated_cdf: (E,) share of the row's mated similarities that lie at or below the step.
        nonmated_cdf: (E,) the same for nonmated.
    """

    row: NDArray[np.int64]
    width: NDArray[np.float64]
    mated_cdf: NDArray[np.float64]
    nonmated_cdf: NDArray[np.float64]

    def integrate(self, values: NDArray[np.float64], num_rows: int) -> NDArray[np.float64]:
        """Return (R,) integrals of a function that is `values` (E,) on the steps."""
        return row_sums(self.row, self.width * values, num_rows)


def row_sums(
    row: NDArray[np.int64], values: NDArray[np.float64], num_rows: int
) -> NDArray[np.float64]:
    """Return (R,) the sum of each row's values, added one after the other in the order given.

    Args:
        row: (E,) row of each value, in [0, R).
        values: (E,) the values.
        num_rows: R.

    Example:
        >>> row_sums(np.array([0, 2, 2]), np.array([1.0, 2.0, 3.0]), 3).tolist()
        [1.0, 0.0, 5.0]
    """
    return np.bincount(row, weights=values, minlength=num_rows).astype(np.float64, copy=False)


def merged_steps(
    mated: Comparisons, nonmated: Comparisons, num_nonmated: NDArray[np.int64]
) -> Iterator[Steps]:
    """Yield the steps of all rows, several whole rows at a time.

    Args:
        mated: All mated comparisons of the rows.
        nonmated: Nonmated comparisons of the rows; some of the smallest may be left out.
        num_nonmated: (R,) the number of nonmated comparisons, with those left out: they count as
            smaller than every one that is listed.
    """
    num_rows = len(num_nonmated)
    num_mated = np.bincount(mated.row, minlength=num_rows)
    num_unlisted = num_nonmated - np.bincount(nonmated.row, minlength=num_rows)
    keys = np.sort(np.concatenate([_keys(mated, mated=True), _keys(nonmated, mated=False)]))
    bounds = np.searchsorted(keys, np.arange(num_rows + 1, dtype=np.uint64) << _ROW_SHIFT)
    first = 0
    while first < num_rows:
        last = int(np.searchsorted(bounds, bounds[first] + MAX_STEPS, side="right")) - 1
        last = max(last, first + 1)
        chunk = keys[bounds[first] : bounds[last]]
        if len(chunk):
            yield _steps(chunk, num_mated, num_nonmated, num_unlisted)
        first = last


def wasserstein(mated: Comparisons, nonmated: Comparisons, num_rows: int) -> NDArray[np.float64]:
    """Return (R,) how far apart each row's two similarity samples lie, whatever their sizes.

    Args:
        mated: At least one comparison for every row.
        nonmated: The same; all comparisons listed.
        num_rows: R.

    Returns:
        (R,) first Wasserstein distances, in units of similarity, in [0, 2].

    Source:
        Equal, row by row, to scipy.stats.wasserstein_distance (tests/unit/test_wasserstein.py).

    Example:
        >>> one = np.zeros(1, np.int64)
        >>> two = np.zeros(2, np.int64)
        >>> mated = Comparisons(one, np.float32([1.0]))
        >>> wasserstein(mated, Comparisons(two, np.float32([0.0, 0.5])), 1).tolist()
        [0.75]
    """
    distances = np.zeros(num_rows)
    num_nonmated = np.bincount(nonmated.row, minlength=num_rows)
    for steps in merged_steps(mated, nonmated, num_nonmated):
        gaps = np.abs(steps.mated_cdf - steps.nonmated_cdf)
        distances += steps.integrate(gaps, num_rows)
    return distances


def distribution_distances(
    mated_nm: NDArray[np.float32], nonmated_nm: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return how far apart each row's two similarity samples of equal size lie.

    The distance is the first Wasserstein distance: the mean gap between similarities of equal
    rank. It has no sign: a row whose nonmated similarities are the larger ones also gets a large
    distance.

    Args:
        mated_nm: (R, M) similarities of comparisons with the same person.
        nonmated_nm: (R, M) the same, with other people.

    Returns:
        (R,) distances in [0, 2], in units of cosine similarity.

    Raises:
        ValueError: The shapes differ, are not two-dimensional, or M is 0.

    Source:
        Ou et al., "SDD-FIQA", CVPR 2021, equation (7). Equal, row by row, to
        scipy.stats.wasserstein_distance (tests/unit/test_wasserstein.py).

    Example:
        >>> mated = np.float32([[0.8, 0.6], [0.1, 0.3]])
        >>> nonmated = np.float32([[0.0, 0.2], [0.3, 0.1]])
        >>> distribution_distances(mated, nonmated).round(6).tolist()
        [0.6, 0.0]
    """
    if mated_nm.shape != nonmated_nm.shape or mated_nm.ndim != 2 or mated_nm.shape[1] == 0:
        raise ValueError(
            f"expected two (R, M) arrays with M >= 1, got {mated_nm.shape} and {nonmated_nm.shape}"
        )
    gaps = np.sort(mated_nm, axis=1).astype(np.float64) - np.sort(nonmated_nm, axis=1)
    distances: NDArray[np.float64] = np.abs(gaps).mean(axis=1)
    return distances


def _steps(
    keys: NDArray[np.uint64],
    num_mated: NDArray[np.int64],
    num_nonmated: NDArray[np.int64],
    num_unlisted: NDArray[np.int64],
) -> Steps:
    """Return the steps that begin at the similarities of sorted keys of whole rows."""
    row = _rows(keys)
    similarity = _similarities(keys).astype(np.float64)
    is_first = np.concatenate([[True], row[1:] != row[:-1]])
    is_last = np.concatenate([is_first[1:], [True]])
    place = np.flatnonzero(is_first)
    events = np.diff(np.concatenate([place, [len(keys)]]))
    mated_bit = (keys & np.uint64(1)).astype(np.int64)
    mated_so_far = np.cumsum(mated_bit)
    mated_so_far -= np.repeat(mated_so_far[place] - mated_bit[place], events)
    events_so_far = np.arange(1, len(keys) + 1) - np.repeat(place, events)
    nonmated_so_far = num_unlisted[row] + events_so_far - mated_so_far
    following = np.where(is_last, 1.0, np.concatenate([similarity[1:], [1.0]]))
    return Steps(
        row=row,
        width=np.maximum(following - similarity, 0.0),
        mated_cdf=mated_so_far / np.maximum(num_mated, 1)[row],
        nonmated_cdf=nonmated_so_far / np.maximum(num_nonmated, 1)[row],
    )


def _keys(comparisons: Comparisons, *, mated: bool) -> NDArray[np.uint64]:
    """Return (E,) integers whose order is the order by row, then by similarity."""
    bits = np.ascontiguousarray(comparisons.similarity, dtype=np.float32).view(np.uint32)
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)  # IEEE 754 made to sort as integers
    keys = comparisons.row.astype(np.uint64) << _ROW_SHIFT
    keys |= ordered.astype(np.uint64) << np.uint64(1)
    return keys | np.uint64(mated)


def _rows(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return (E,) the rows in keys."""
    return (keys >> _ROW_SHIFT).astype(np.int64)


def _similarities(keys: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Return (E,) the similarities in keys."""
    ordered = (keys >> np.uint64(1)).astype(np.uint32)  # the cast keeps the low 32 bits
    bits = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered)
    return bits.view(np.float32)
