"""The correction C of labels from the nonmated similarities above the smallest mated one.

With H and G the shares of a row's mated and nonmated similarities above t, C is the integral of
(G - H)^+. Below the smallest mated similarity H is 1, so only the nonmated similarities above it,
the row's *hits*, matter; of the others only the number does. Where the hits are those of a random
sample, C comes with a bound on its error.

All rows are worked on as one dense array: each row's mated similarities and hits are sorted
together as float32 numbers whose lowest bit says which of the two they are. That moves a similarity
by at most 6e-8, and lets one sort of plain numbers do.

Mostly even that is more than needed: between a mated similarity and the next one H is constant and
G falls, so if G is below H at the first of the two, nothing there counts. A *tail* leaves out the
mated similarities, and the part of the line, of which this is known.

Shapes: B rows, W mated similarities of a tail and M hits at most, E = W + M.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.hits import Hits
from sdd_ray.core.mated import PAD, MatedTile

MAX_ELEMENTS = 1 << 16
"""Elements of a chunk of rows: its float64 arrays stay in the processor's cache."""

_WIDTHS = (16, 64, 256, 1024, 4096)  # rows with similar numbers of steps are worked on together
_NARROWINGS = 6  # times that a tail is made shorter by what a sample says


@dataclass(frozen=True, eq=False)
class Tail:
    """The upper part of rows' mated similarities.

    Attributes:
        mated: (B, W) those that matter, ascending; PAD on the left where a row has fewer.
        listed: (B,) how many they are, at least 1 for a row with any mated similarity.
        num_mated: (B,) mated similarities of the row in all.
    """

    mated: NDArray[np.float32]
    listed: NDArray[np.int64]
    num_mated: NDArray[np.int64]

    @classmethod
    def of(cls, tile: MatedTile, first: NDArray[np.int64]) -> "Tail":
        """Return the tail of each row of a tile from a column on."""
        width = tile.similarity.shape[1]
        listed = np.minimum(width - first, tile.num_mated)
        mated = tile.similarity[:, width - int(listed.max(initial=0)) :]
        column = np.arange(mated.shape[1])
        is_listed = column >= (mated.shape[1] - listed)[:, None]
        return cls(np.where(is_listed, mated, PAD), listed, tile.num_mated)

    @property
    def floor(self) -> NDArray[np.float32]:
        """(B,) the smallest listed similarity, above which hits count; infinity without any."""
        width = self.mated.shape[1]
        if width == 0:
            return np.full(len(self.listed), np.inf, np.float32)
        column = np.minimum(width - self.listed, width - 1)
        lowest = self.mated[np.arange(len(column)), column]
        return np.where(self.listed > 0, lowest, np.float32(np.inf))

    def subset(self, chosen: NDArray[np.intp] | slice) -> "Tail":
        """Return the tails of some of the rows."""
        return Tail(self.mated[chosen], self.listed[chosen], self.num_mated[chosen])


@dataclass(frozen=True, eq=False)
class NonmatedMoments:
    """What is known exactly of the nonmated similarities of B rows, without any pair.

    Attributes:
        number: (B,) of them.
        mean: (B,) their mean.
        variance: (B,) their population variance.
    """

    number: NDArray[np.int64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]

    def subset(self, chosen: NDArray[np.intp]) -> "NonmatedMoments":
        """Return the moments of some of the rows."""
        return NonmatedMoments(self.number[chosen], self.mean[chosen], self.variance[chosen])


@dataclass(frozen=True, eq=False)
class Sample:
    """What the bound on a sampled C needs besides the hits.

    Attributes:
        moments: Exact moments of each row's nonmated similarities.
        similarity: (B, R) all sampled similarities; PAD where a column is not nonmated.
        deviations: Standard errors in the bound.
    """

    moments: NonmatedMoments
    similarity: NDArray[np.float32]
    deviations: float


def first_columns(may_exceed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return (B,) the first column of each row that is True; the number of columns if none is."""
    if may_exceed.shape[1] == 0:
        return np.zeros(len(may_exceed), np.int64)
    first = np.argmax(may_exceed, axis=1)
    has_one = may_exceed[np.arange(len(first)), first]
    columns: NDArray[np.int64] = np.where(has_one, first, may_exceed.shape[1]).astype(np.int64)
    return columns


def narrowed(
    tile: MatedTile,
    may_exceed: NDArray[np.bool_],
    similarity: NDArray[np.float32],
    deviations: float,
) -> Tail:
    """Return the tails in which, by a sample, G may exceed H.

    Args:
        tile: The mated similarities.
        may_exceed: (B, W) where it may before the sample is looked at (see `certificate`).
        similarity: (B, R) sampled similarities; PAD where a column is not nonmated.
        deviations: Standard errors that G must be below H by, on a whole step, to be left out.
    """
    number = np.count_nonzero(similarity > PAD, axis=1)

    def count_above(rows: NDArray[np.intp], floor: NDArray[np.float32]) -> NDArray[np.int64]:
        columns = similarity if len(rows) == len(similarity) else similarity[rows]
        count: NDArray[np.int64] = np.count_nonzero(columns > floor[:, None], axis=1)
        return count

    return Tail.of(tile, first_after(tile, may_exceed, (number, count_above), deviations))


def first_after(
    tile: MatedTile,
    may_exceed: NDArray[np.bool_],
    sample: tuple[
        NDArray[np.int64], Callable[[NDArray[np.intp], NDArray[np.float32]], NDArray[np.int64]]
    ],
    deviations: float,
) -> NDArray[np.int64]:
    """Return (B,) the first column of each row's tail by what a sample says (see `narrowed`).

    Args:
        tile: The mated similarities.
        may_exceed: (B, W) where G may exceed H before the sample is looked at.
        sample: (B,) the number of sampled similarities, and a function that counts those of some
            rows that lie above a floor each, or more.
        deviations: Standard errors that G must be below H by, on a whole step, to be left out.
    """
    width = tile.similarity.shape[1]
    first = first_columns(may_exceed)
    number, count_above = np.maximum(sample[0], 1), sample[1]
    asked = np.flatnonzero(first < width - 1)
    for _ in range(_NARROWINGS):
        if len(asked) == 0:
            break
        column = first[asked]
        share = count_above(asked, tile.similarity[asked, column]) / number[asked]
        smooth = np.minimum((share * number[asked] + 1.0) / (number[asked] + 2.0), 0.5)
        error = deviations * np.sqrt(smooth * (1.0 - smooth) / number[asked])
        rank = column + 1 - width + tile.num_mated[asked]
        is_below = 1.0 - rank / tile.num_mated[asked] - share > error
        asked, column = asked[is_below], column[is_below]
        rest = may_exceed[asked] & (np.arange(width) > column[:, None])
        first[asked] = first_columns(rest)
        asked = asked[first[asked] < width - 1]
    return first


def exact_correction(tail: Tail, hits: Hits) -> NDArray[np.float64]:
    """Return (B,) C of each row, from the hits among all of its nonmated similarities."""
    excess = np.zeros(len(tail.listed))
    for rows, steps in _chunks(tail, hits):
        excess[rows] = steps.excess()
    return excess


def sampled_correction(
    tail: Tail, hits: Hits, sample: Sample
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (B,) estimates of C from a random sample, and (B,) bounds on their errors.

    With A the part of the line where the sampled G exceeds H, the estimate is the integral of G - H
    over A, a mean over the sample of a(s), the length of A below s. Its error has two parts:

    - the standard error of that mean. Mean and variance of the nonmated similarities are known
      exactly, so a(s) is regressed on s and s^2, and only the rest of it is sampled (control
      variates): for an image whose two distributions overlap a tenth of the spread remains;
    - that A itself is sampled: where |G - H| is less than `deviations` standard errors of G, the
      sign may be wrong, which costs at most the difference. A share of nonmated similarities of
      which the sample shows nothing is allowed for in the same way, as (k + 1) / (r + 2) for k seen
      among r, so a row without any hit has a bound above 0.

    The sample is drawn without replacement, which shrinks the bound to 0 as it grows to the whole.
    """
    excess, bound = np.zeros(len(tail.listed)), np.zeros(len(tail.listed))
    for rows, steps in _chunks(tail, hits):
        excess[rows], bound[rows] = _estimate(steps, sample, rows)
    return excess, bound


@dataclass(frozen=True, eq=False)
class _Steps:
    """Intervals of the line between neighbouring similarities of a row, ascending; float64.

    Attributes:
        at: (B, E) lower end of each.
        width: (B, E) its length; 0 before the first similarity.
        above_mated: (B, E) H on it.
        above_nonmated: (B, E) G on it, by what was looked at.
        is_hit: (B, E) whether it begins at a hit.
        num_compared: (B,) nonmated similarities looked at.
    """

    at: NDArray[np.float32]
    width: NDArray[np.float64]
    above_mated: NDArray[np.float64]
    above_nonmated: NDArray[np.float64]
    is_hit: NDArray[np.bool_]
    num_compared: NDArray[np.int64]

    def excess(self) -> NDArray[np.float64]:
        """Return (B,) the integral of (G - H)^+."""
        gap = self.above_nonmated - self.above_mated
        excess: NDArray[np.float64] = np.einsum(
            "be,be->b", self.width, np.maximum(gap, 0.0, out=gap)
        )
        return excess


def _chunks(tail: Tail, hits: Hits) -> Iterator[tuple[NDArray[np.intp], _Steps]]:
    """Yield the steps of rows with similar numbers of them, as many as fit MAX_ELEMENTS."""
    size = tail.listed + hits.count
    kind = np.searchsorted(_WIDTHS, size)
    for number in np.unique(kind):
        rows = np.flatnonzero(kind == number)
        step = max(1, MAX_ELEMENTS // max(int(size[rows].max()), 1))
        for first in range(0, len(rows), step):
            chosen = rows[first : first + step]
            yield chosen, _steps(tail, hits, chosen)


def _steps(tail: Tail, hits: Hits, rows: NDArray[np.intp]) -> _Steps:
    """Return the steps of some rows."""
    listed, num_hits = tail.listed[rows], hits.count[rows]
    mated = tail.mated[rows, tail.mated.shape[1] - int(listed.max(initial=0)) :]
    width, most = mated.shape[1], int(num_hits.max(initial=0))
    found = hits.similarity[rows]
    if found.shape[1] > most:
        found = np.sort(found, axis=1)[:, found.shape[1] - most :]
    both = np.empty((len(rows), width + most), np.float32)
    both[:, :width], both[:, width:] = mated, found
    bits = both.view(np.uint32)
    bits[:, :width] |= np.uint32(1)
    bits[:, width:] &= np.uint32(0xFFFFFFFE)
    both.sort(axis=1)
    is_there = both > -2.0
    is_mated = (bits & np.uint32(1)).astype(bool) & is_there
    is_hit = is_there & ~is_mated
    seen_mated = np.cumsum(is_mated, axis=1, dtype=np.int32)
    num_pads = both.shape[1] - listed - num_hits
    seen = np.arange(1, both.shape[1] + 1) - num_pads[:, None]
    seen_hits = np.maximum(seen, 0) - seen_mated
    length = np.ones(both.shape)
    length[:, :-1] = both[:, 1:]
    length -= both
    np.maximum(length, 0.0, out=length)
    length *= is_there
    mated_share = 1.0 / np.maximum(tail.num_mated[rows], 1)
    hit_share = 1.0 / np.maximum(hits.num_compared[rows], 1)
    return _Steps(
        at=both,
        width=length,
        above_mated=(listed[:, None] - seen_mated) * mated_share[:, None],
        above_nonmated=(num_hits[:, None] - seen_hits) * hit_share[:, None],
        is_hit=is_hit,
        num_compared=hits.num_compared[rows],
    )


def _estimate(
    steps: _Steps, sample: Sample, rows: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the estimates of some rows, and their bounds (see `sampled_correction`)."""
    number = steps.num_compared.astype(np.float64)
    moments = sample.moments.subset(rows)
    rest = np.clip((moments.number - number) / np.maximum(moments.number - 1, 1), 0.0, 1.0)
    errors = sample.deviations * np.sqrt(rest / np.maximum(number, 1.0))
    gap = steps.above_nonmated - steps.above_mated
    is_above = gap > 0.0
    excess = np.einsum("be,be,be->b", steps.width, gap, is_above)
    share = (steps.above_nonmated * number[:, None] + 1.0) / (number[:, None] + 2.0)
    doubt = errors[:, None] * np.sqrt(share * (1.0 - share)) - np.abs(gap)
    # Where no mated similarity is left, no sampled share can be above for want of one.
    doubt[is_above & (steps.above_mated <= 0.0)] = 0.0
    sign = np.einsum("be,be->b", steps.width, np.maximum(doubt, 0.0, out=doubt))

    length = np.cumsum(steps.width * is_above, axis=1)
    length[:, 1:] = length[:, :-1].copy()
    length[:, :1] = 0.0  # of A below each similarity
    length *= steps.is_hit
    total, square = length.sum(axis=1), np.einsum("be,be->b", length, length)
    at_most = length.max(axis=1, initial=0.0)  # one more hit than was seen, as far up as any
    spread = (square + np.square(at_most)) / np.maximum(number, 1.0)
    spread -= np.square(total / np.maximum(number, 1.0))
    plain = errors * np.sqrt(np.maximum(spread, 0.0))
    shift, better = _controlled(steps, length, sample, rows)
    with np.errstate(invalid="ignore"):  # infinity times 0, where all of a row's are sampled
        controlled = better * errors
    use = controlled < plain
    excess = np.where(use, excess - shift, excess)
    bound = np.where(use, controlled, plain) + sign
    return excess, np.where(number > 0, bound, np.inf)


def _controlled(
    steps: _Steps, length: NDArray[np.float64], sample: Sample, rows: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (B,) by how much the estimate is off as its s and s^2 tell, and (B,) what spread is
    left; infinity for rows of fewer than a hundred hits, which gain nothing.
    """  # noqa: D205
    shift, spread = np.zeros(len(rows)), np.full(len(rows), np.inf)
    chosen = np.flatnonzero(np.count_nonzero(steps.is_hit, axis=1) >= 100)
    if len(chosen) == 0:
        return shift, spread
    number = steps.num_compared[chosen].astype(np.float64)
    moments = sample.moments.subset(rows[chosen])
    mean, variance = moments.mean[:, None], moments.variance
    all_s = sample.similarity[rows[chosen]]
    s = np.where(all_s > PAD, all_s - mean.astype(np.float32), np.float32(0.0))
    square = s * s
    power = [
        s.sum(axis=1, dtype=np.float64),
        square.sum(axis=1, dtype=np.float64),
        np.einsum("br,br->b", square, s).astype(np.float64),
        np.einsum("br,br->b", square, square).astype(np.float64),
    ]
    m1, m2, m3, m4 = (p / number for p in power)
    at = steps.at[chosen].astype(np.float64) - mean
    a = length[chosen]
    a0 = a.sum(axis=1) / number
    a1, a2 = (np.einsum("be,be->b", a, p) / number for p in (at, at * at))
    c11, c12, c22 = m2 - m1 * m1, m3 - m1 * m2, m4 - m2 * m2
    d1, d2 = a1 - a0 * m1, a2 - a0 * m2
    det = np.maximum(c11 * c22 - c12 * c12, 1e-30)
    b1, b2 = (c22 * d1 - c12 * d2) / det, (c11 * d2 - c12 * d1) / det
    shift[chosen] = b1 * m1 + b2 * (m2 - variance)
    left = np.einsum("be,be->b", a, a) / number - a0 * a0 - b1 * d1 - b2 * d2
    left = np.maximum(left, 0.0) * number / np.maximum(number - 3.0, 1.0)
    # and one more similarity than was seen, a standard deviation off the fit
    spread[chosen] = np.sqrt(left + variance / number)
    return shift, spread
