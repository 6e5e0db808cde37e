"""By how much the error rate of the whole set falls when one image leaves it: equations (3), (4).

SIGN: Q_i = error(all images) - error(all images but i), as the paper writes it. A LARGE Q_i means
that dropping image i lowers the error much, so image i is POOR; a good image has a negative Q_i.
A quality label made of these numbers is therefore -Q_i. Nothing here negates it.

Everything is defined on similarities put into K equal bins over [-1, 1]: two similarities of one
bin are equal, and a threshold is a bin. On the bins nothing is approximate: counts are integers,
and Q_i is the exact rational number, rounded to float64 once. Removing an image and counting all
remaining pairs again gives the same bits (tests/unit/test_leave_one_out.py).

That needs a pair to fall into one bin in every tile and from both sides, which rounded products
do not promise. So embeddings are first rounded to multiples of 2^-26, moving a similarity by some
1e-8: all sums of products are then multiples of 2^-52 below 2, which float64 holds exactly.

Shapes: K bins, N images of d numbers, R rows against C columns, B rows with all columns counted.
Source: Ou et al., "SDD-FIQA", CVPR 2021.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.error_rates import counts_within
from sdd_ray.core.similarity import products

NUM_BINS = 4096
"""Bins of the similarity, 0.0005 wide. A row's two histograms take 64 KiB."""

ROW_TILE, COLUMN_TILE = 256, 4096
"""Rows and columns multiplied at once: a million float64 products, 8 MiB."""

CHUNK_COUNTS = 1 << 19
"""Histogram counts whose intermediate results are held at once, 4 MiB each."""

_FIXED_POINT = 2.0**26
_UNIT_TOLERANCE = 1e-2  # of a row's length: far above rounding, far below where products round

Counts = NDArray[np.int64]
Exact = Counts | NDArray[np.object_]  # the latter of Python integers, which do not overflow


@dataclass(frozen=True, eq=False)
class ImageTile:
    """Some images of the set.

    Attributes:
        unit: (N, d) unit-length rows, finite.
        identities: (N,) integer code of each row's identity.
        positions: (N,) the place of each row in the whole set; no two rows have the same.

    Raises:
        ValueError: The shapes do not fit, a row is not of unit length, or a position occurs twice.
    """

    unit: NDArray[np.float32]
    identities: NDArray[np.int64]
    positions: NDArray[np.int64]

    def __post_init__(self) -> None:
        shapes = self.unit.shape, self.identities.shape, self.positions.shape
        if self.unit.ndim != 2 or shapes[1:] != (shapes[0][:1],) * 2:
            raise ValueError(f"expected (N, d) embeddings and two (N,) arrays, got {shapes}")
        norms = np.sqrt(np.einsum("nd,nd->n", self.unit, self.unit))
        num_unit = int(np.count_nonzero(np.abs(norms - 1.0) <= _UNIT_TOLERANCE))
        if num_unit != len(norms):
            raise ValueError(f"expected {len(norms)} rows of unit length, got {num_unit}")
        num_positions = len(np.unique(self.positions))
        if num_positions != len(norms):
            raise ValueError(f"expected {len(norms)} different positions, got {num_positions}")


@dataclass(frozen=True, eq=False)
class PairHistograms:
    """Similarities of a set's pairs of images, each unordered pair counted once.

    Attributes:
        mated: (K,) number of pairs of one identity in each bin.
        nonmated: (K,) number of pairs of two identities in each bin.

    Raises:
        ValueError: The arrays are not int64 of one shape (K,) with K >= 1, or a count is negative.
    """

    mated: Counts
    nonmated: Counts

    def __post_init__(self) -> None:
        _check_counts(self.mated, self.nonmated, "(K,)", 1)
        lowest = min(int(self.mated.min()), int(self.nonmated.min()))
        if lowest < 0:
            raise ValueError(f"expected counts of at least 0, got {lowest}")

    @classmethod
    def empty(cls, num_bins: int = NUM_BINS) -> "PairHistograms":
        """Return the histograms of no pair."""
        return cls(np.zeros(num_bins, np.int64), np.zeros(num_bins, np.int64))

    def merge(self, other: "PairHistograms") -> "PairHistograms":
        """Return the histograms of the pairs of both, exactly: order and grouping do not matter.

        Raises:
            ValueError: The numbers of bins differ.
        """
        sizes = self.mated.size, other.mated.size
        if sizes[0] != sizes[1]:
            raise ValueError(f"expected equal numbers of bins, got {sizes[0]} and {sizes[1]}")
        return PairHistograms(self.mated + other.mated, self.nonmated + other.nonmated)


def similarity_bins(
    similarities: NDArray[np.float32] | NDArray[np.float64], num_bins: int = NUM_BINS
) -> NDArray[np.int64]:
    """Return the bin of each similarity: K equal bins over [-1, 1], each closed below.

    What rounding left outside [-1, 1] goes into the first or last bin, as 1 itself does.

    Args:
        similarities: Any shape.
        num_bins: K, at least 1.

    Returns:
        Integers in [0, K), of the same shape.

    Raises:
        ValueError: K is less than 1, or a similarity is NaN.

    Example:
        >>> similarity_bins(np.array([-1.0, -0.5, 0.0, 0.49, 1.0, 1.0000001]), 4).tolist()
        [0, 1, 2, 2, 3, 3]
    """
    if num_bins < 1:
        raise ValueError(f"expected at least 1 bin, got {num_bins}")
    if similarities.size and np.isnan(similarities.min()):
        raise ValueError(f"expected similarities, got {np.isnan(similarities).sum()} NaN")
    scaled = similarities.astype(np.float64)
    scaled += 1.0
    scaled *= num_bins / 2
    np.clip(scaled, 0, num_bins - 1, out=scaled)
    return scaled.astype(np.int64)  # truncated, which is rounding down: nothing is negative


def row_histograms(
    rows: ImageTile, columns: ImageTile, num_bins: int = NUM_BINS
) -> tuple[Counts, Counts]:
    """Return the histograms of each row's similarities with the columns, itself left out.

    Additive over columns: the histograms of two parts of the columns add up to those of both.

    Args:
        rows: R images.
        columns: C images; those that are rows as well are known by their positions.
        num_bins: K, at least 1.

    Returns:
        (R, K) mated and (R, K) nonmated counts.

    Raises:
        ValueError: As for `add_row_histograms`.

    Example:
        >>> unit = np.float32([[1, 0], [0.6, 0.8], [0, 1]])
        >>> images = ImageTile(unit, np.array([7, 7, 9]), np.array([0, 1, 2]))
        >>> mated, nonmated = row_histograms(images, images, num_bins=4)
        >>> mated.tolist(), nonmated.tolist()
        ([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]], [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 1]])
    """
    shape = (len(rows.unit), num_bins)
    mated, nonmated = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    add_row_histograms(rows, columns, mated, nonmated)
    return mated, nonmated


def add_row_histograms(
    rows: ImageTile, columns: ImageTile, mated: Counts, nonmated: Counts
) -> None:
    """Add what `row_histograms` returns to (R, K) counts so far, in place and without a copy.

    Besides its arguments this holds the rows and a tile of columns in float64, and up to 60 MiB.

    Raises:
        ValueError: The counts are not contiguous int64 of one shape (R, K) with K >= 1, d differs,
            or an image (by its position) has two identities.
    """
    _check_counts(mated, nonmated, "(R, K)", 2)
    if len(mated) != len(rows.unit):
        raise ValueError(f"expected counts of {len(rows.unit)} rows, got {mated.shape}")
    if not (mated.flags.c_contiguous and nonmated.flags.c_contiguous):
        raise ValueError("expected C-contiguous counts, got others")
    _check_identities(rows, columns)
    row_points = _fixed_points(rows.unit)
    for left in range(0, len(columns.unit), COLUMN_TILE):
        cut = slice(left, left + COLUMN_TILE)
        column_points = _fixed_points(columns.unit[cut])
        for top in range(0, len(rows.unit), ROW_TILE):
            tile = slice(top, top + ROW_TILE)
            bins = similarity_bins(products(row_points[tile], column_points), mated.shape[1])
            bins += np.arange(len(bins))[:, None] * mated.shape[1]
            row, column = np.nonzero(rows.identities[tile, None] == columns.identities[cut])
            own = bins[row, column]
            is_other = rows.positions[tile][row] != columns.positions[cut][column]
            np.add.at(mated[tile].reshape(-1), own[is_other], 1)
            np.add.at(nonmated[tile].reshape(-1), bins.reshape(-1), 1)
            np.subtract.at(nonmated[tile].reshape(-1), own, 1)


def pair_histograms(mated: Counts, nonmated: Counts) -> PairHistograms:
    """Return the histograms of a set's pairs from those of all its rows, summed.

    Every pair is in the histograms of two rows, so the sums are halved. Sums over parts of the
    rows must be added up first: they count some pairs once and some twice.

    Args:
        mated: (K,) mated counts of `row_histograms`, summed over every row of the set.
        nonmated: (K,) the same of the nonmated ones.

    Raises:
        ValueError: A count is odd, so rows are missing, or unfit for PairHistograms.

    Example:
        >>> pairs = pair_histograms(np.array([0, 0, 0, 2]), np.array([0, 0, 2, 2]))
        >>> pairs.mated.tolist(), pairs.nonmated.tolist()
        ([0, 0, 0, 1], [0, 0, 1, 1])
    """
    num_odd = int(np.count_nonzero(mated % 2) + np.count_nonzero(nonmated % 2))
    if num_odd:
        raise ValueError(f"expected even counts, summed over all rows, got {num_odd} odd ones")
    return PairHistograms(mated // 2, nonmated // 2)


def leave_one_out_area(
    everybody: PairHistograms, mated: Counts, nonmated: Counts
) -> NDArray[np.float64]:
    """Return Q_i of equation (4): by how much the area under FNMR over FMR falls without image i.

    LARGE IS POOR: -Q_i is the quality label. The area is 1 - AUC, the chance that a mated
    similarity is smaller than a nonmated one, equal ones counted half: conf(P, N) / (|P| |N|)
    with the histograms P and N of all pairs. Without image i, whose histograms are P_i and N_i,
    conf is conf(P, N) - conf(P_i, N) - conf(P, N_i) + conf(P_i, N_i).

    Args:
        everybody: The pairs of the whole set.
        mated: (B, K) the rows' histograms against the whole set; any of its rows.
        nonmated: (B, K) the same.

    Returns:
        (B,) differences of areas, in [-1, 1], correctly rounded; NaN where no mated or no nonmated
        pair would be left.

    Raises:
        ValueError: The shapes or types do not fit, a row has more pairs in a bin than everybody,
            or there are so many pairs that a row's counts would overflow (10^8 images).

    Example:
        >>> mated, nonmated = np.array([[0, 1], [1, 0]]), np.array([[1, 0], [0, 1]])
        >>> everybody = PairHistograms(np.array([1, 1]), np.array([1, 1]))
        >>> leave_one_out_area(everybody, mated, nonmated).tolist()
        [-0.5, 0.5]
    """
    changes = np.full(len(mated), np.nan)
    num_mated, num_nonmated = int(everybody.mated.sum()), int(everybody.nonmated.sum())
    # Twice the number of mated similarities that a nonmated one of each bin exceeds, and twice
    # that of nonmated ones that exceed a mated one; equal ones count 1.
    exceeded = _twice_lower(everybody.mated)
    exceeding = 2 * num_nonmated - _twice_lower(everybody.nonmated)
    total = sum(int(a) * int(b) for a, b in zip(exceeded, everybody.nonmated, strict=True))
    for cut, own_mated, own_nonmated in _chunks(everybody, mated, nonmated):
        own_num_mated, own_num_nonmated = own_mated.sum(axis=1), own_nonmated.sum(axis=1)
        most = int(own_num_mated.max()) * num_nonmated + int(own_num_nonmated.max()) * num_mated
        if most >= 2**62:  # twice that does not fit into int64
            raise ValueError(f"expected less than 2^62 combinations with a row's pairs, got {most}")
        both = (_twice_lower(own_mated) * own_nonmated).sum(axis=1)
        rest = total - (own_mated @ exceeding + own_nonmated @ exceeded - both).astype(object)
        left = (num_mated - own_num_mated).astype(object) * (num_nonmated - own_num_nonmated)
        changes[cut] = _difference((total, 2 * num_mated * num_nonmated), (rest, 2 * left))
    return changes


def leave_one_out_fnmr(
    everybody: PairHistograms, mated: Counts, nonmated: Counts, fmr: float
) -> NDArray[np.float64]:
    """Return Q_i of equation (3): by how much the FNMR at a given FMR falls without image i.

    LARGE IS POOR: -Q_i is the quality label. The threshold is found again among the pairs left: the
    lowest bin of a nonmated pair with a false match rate of at most `fmr` above it. As in
    `sdd_ray.core.error_rates`, pairs in the threshold's bin are errors of neither kind.

    Args:
        everybody: The pairs of the whole set.
        mated: (B, K) the rows' histograms against the whole set; any of its rows.
        nonmated: (B, K) the same.
        fmr: The false match rate to stay within, in (0, 1).

    Returns:
        (B,) differences of rates, in [-1, 1], correctly rounded; NaN where no mated pair would be
        left, or too few nonmated ones for one false match within `fmr`.

    Raises:
        ValueError: `fmr` is outside (0, 1) or allows no false match among everybody's nonmated
            pairs, or the histograms do not fit, as for `leave_one_out_area`.

    Example:
        >>> everybody = PairHistograms(np.array([2, 0, 2]), np.array([4, 2, 2]))
        >>> mated, nonmated = np.array([[1, 0, 0], [0, 0, 1]]), np.array([[0, 1, 1], [1, 1, 0]])
        >>> leave_one_out_fnmr(everybody, mated, nonmated, 0.25).round(6).tolist()
        [0.166667, -0.166667]
    """
    if not 0 < fmr < 1:
        raise ValueError(f"expected a false match rate in (0, 1), got {fmr}")
    changes = np.full(len(mated), np.nan)
    num_nonmated = everybody.nonmated.sum(keepdims=True)
    num_allowed = _num_allowed(fmr, num_nonmated)
    if num_allowed[0] == 0:
        raise ValueError(f"expected a rate of at least 1 in {num_nonmated[0]} pairs, got {fmr}")
    whole = everybody.mated[None], everybody.nonmated[None]
    errors = int(_num_false_non_matches(*whole, num_allowed)[0]), int(everybody.mated.sum())
    for cut, own_mated, own_nonmated in _chunks(everybody, mated, nonmated):
        rest_mated, rest_nonmated = everybody.mated - own_mated, everybody.nonmated - own_nonmated
        num_allowed = _num_allowed(fmr, rest_nonmated.sum(axis=1))
        rest_errors = _num_false_non_matches(rest_mated, rest_nonmated, num_allowed)
        left = np.where(num_allowed > 0, rest_mated.sum(axis=1), 0)
        changes[cut] = _difference(errors, (rest_errors, left))
    return changes


def _check_counts(mated: Counts, nonmated: Counts, shape: str, ndim: int) -> None:
    """Raise ValueError unless both are int64 counts of one shape with at least one bin."""
    got = [(counts.shape, str(counts.dtype)) for counts in (mated, nonmated)]
    if got[0] != got[1] or got[0][1] != "int64" or mated.ndim != ndim or mated.shape[-1] == 0:
        raise ValueError(f"expected two {shape} int64 arrays with K >= 1, got {got}")


def _check_identities(rows: ImageTile, columns: ImageTile) -> None:
    """Raise ValueError if an image among rows and columns has another identity there than here."""
    _, row, column = np.intersect1d(rows.positions, columns.positions, True, return_indices=True)
    wrong = row[rows.identities[row] != columns.identities[column]]
    if len(wrong):
        raise ValueError(f"expected one identity an image, got two at {rows.positions[wrong[0]]}")


def _fixed_points(unit: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (N, d) the embeddings, rounded so that no product or sum of products is."""
    points: NDArray[np.float64] = np.rint(unit.astype(np.float64) * _FIXED_POINT) / _FIXED_POINT
    return points


def _chunks(
    everybody: PairHistograms, mated: Counts, nonmated: Counts
) -> Iterator[tuple[slice, Counts, Counts]]:
    """Yield the rows some at a time, after a check that they are part of everybody."""
    _check_counts(mated, nonmated, "(B, K)", 2)
    if mated.shape[1] != everybody.mated.size:
        raise ValueError(f"expected (B, {everybody.mated.size}) counts, got {mated.shape}")
    step = max(1, CHUNK_COUNTS // mated.shape[1])
    for start in range(0, len(mated), step):
        cut = slice(start, start + step)
        own = mated[cut], nonmated[cut]
        wrong = (own[0] < 0) | (own[0] > everybody.mated)
        wrong |= (own[1] < 0) | (own[1] > everybody.nonmated)
        if wrong.any():
            row = start + int(np.nonzero(wrong)[0][0])
            raise ValueError(f"expected counts from 0 to everybody's, got others in row {row}")
        yield cut, *own


def _twice_lower(counts: Counts) -> Counts:
    """Return (..., K) for each bin twice the count in lower bins, plus the count in it."""
    return 2 * np.cumsum(counts, axis=-1) - counts


def _num_allowed(fmr: float, num_nonmated: Counts) -> Counts:
    """Return (B,) how many false matches stay within a rate; 0 among no comparisons."""
    totals, place = np.unique(num_nonmated, return_inverse=True)  # few: one an identity size
    allowed = [counts_within(np.array([fmr]), int(total))[0] if total else 0 for total in totals]
    return np.array(allowed, np.int64)[place]


def _num_false_non_matches(mated: Counts, nonmated: Counts, num_allowed: Counts) -> Counts:
    """Return (B,) how many mated pairs lie in bins below the threshold's.

    The threshold is the nonmated similarity that num_allowed others follow when they are sorted.
    """
    rank = nonmated.sum(axis=1) - num_allowed
    below: Counts = (mated * (np.cumsum(nonmated, axis=1) < rank[:, None])).sum(axis=1)
    return below


def _difference(whole: tuple[int, int], rest: tuple[Exact, Exact]) -> NDArray[np.float64]:
    """Return (B,) whole[0] / whole[1] - rest[0] / rest[1], rounded once; NaN where rest[1] is 0.

    The rates agree in most of their digits and 64 bits do not hold their common denominator, so
    Python integers do it: a microsecond a row, which is little beside reading its histograms.
    """
    difference = np.full(len(rest[0]), np.nan)
    left = rest[1] > 0
    count, total = rest[0][left].astype(object), rest[1][left].astype(object)
    difference[left] = (whole[0] * total - count * whole[1]) / (whole[1] * total)
    return difference
