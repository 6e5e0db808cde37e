"""The distribution distance of every image of a shard: two means, and what they leave out.

With F_P and F_N the distribution functions of an image's mated and nonmated similarities,

    W1 = integral of |F_P - F_N| = mean(P) - mean(N) + 2 C,   C = integral of (F_P - F_N)^+.

The means need no pair, and C is 0 where the mated similarities lie above the nonmated ones at every
rank, which holds for most images of a usable recogniser; it is what tells the poor images apart.
Each row goes only as far as it must until its error is within a tolerance:

1. `certificate`: what C cannot exceed by mean and variance alone. A certainty.
2. `tails`: C estimated from a random sample of the run, and then from larger ones. At a stated
   number of standard errors.
3. C from all images of the run: exact.

A shard holds whole identities, its rows sorted by (identity, image_id). Together with the sums of
all embeddings (`moments`) and the references it determines its labels: shards can be computed
anywhere, in any order, and again.

Shapes: N rows of a shard, d numbers an embedding, B rows of a tile.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.certificate import largest_correction
from sdd_ray.core.hits import Hits, collect
from sdd_ray.core.mated import MatedTile, Shard
from sdd_ray.core.moments import EmbeddingSums
from sdd_ray.core.reference import Block, hits_among_all, similarities
from sdd_ray.core.screening import Screen
from sdd_ray.core.shard_statistics import ShardScan, ShardStatistics
from sdd_ray.core.tails import (
    Sample,
    Tail,
    exact_correction,
    first_columns,
    narrowed,
    sampled_correction,
)

SETTLED = ("certificate", "reference", "all_images")
"""What settled the distance of an image, by code."""

MAX_EXACT_HITS = 1 << 25
"""Rows times images of the run that are compared with everybody at once: at most 128 MiB of hits,
or one tile's."""

MAX_SAMPLED = 1 << 21
"""Similarities of rows to a sample that are held at once (8 MiB), but at least one row's."""

MAX_WAITING = 1 << 23
"""Mated similarities of open rows that are held (32 MiB) before they are followed."""


@dataclass(frozen=True)
class Precision:
    """How far a distance is followed.

    Attributes:
        tolerance: Error of a distance that is small enough, in units of similarity; 0: none is.
        deviations: Standard errors in the bound of a sampled correction.
    """

    tolerance: float = 1e-3
    deviations: float = 4.0


@dataclass(frozen=True, eq=False)
class References:
    """Whom rows are compared with if the certificate leaves them open.

    Attributes:
        samples: Random samples of the run, each larger than the one before, sorted by identity;
            fetched when they are needed.
        everybody: All images of the run, in canonical order; called once for every pass over them.
        screen: The first sample for screening, where that is faster; changes no result.
    """

    samples: Sequence[Callable[[], Block]]
    everybody: Callable[[], Iterable[Block]]
    screen: Screen | None = None


@dataclass(frozen=True, eq=False)
class ShardDistances:
    """The labels of a shard, before they are scaled.

    Attributes:
        statistics: Numbers and moments of each row's similarities.
        distance: (N,) distribution distance in [0, 2]; NaN where `reason` is not 0.
        error_bound: (N,) bound on the distance's error; 0 where it is exact, NaN where `reason` is
            not 0.
        settled: (N,) codes into SETTLED.
        reason: (N,) codes into DISTANCE_REASONS.
    """

    statistics: ShardStatistics
    distance: NDArray[np.float64]
    error_bound: NDArray[np.float64]
    settled: NDArray[np.int8]
    reason: NDArray[np.int8]


class ShardLabeller:
    """Settles the distances of a shard.

    Args:
        scan: The shard, not gone through yet.
        references: Whom open rows are compared with.
        precision: How far a distance is followed.
    """

    def __init__(self, scan: ShardScan, references: References, precision: Precision) -> None:
        self._scan, self._references, self._precision = scan, references, precision

    def settle(self) -> ShardDistances:
        """Return the distances of all rows to label, each followed as far as it must."""
        statistics, first = self._scan.statistics, self._scan.part[0]
        state = self._state = _State.of(len(statistics.num_mated), self._precision.tolerance)
        waiting: list[tuple[MatedTile, NDArray[np.bool_]]] = []
        for tile in self._scan.tiles():
            may_exceed = self._certify(tile)
            chosen = np.flatnonzero(state.is_open(tile.rows - first))
            if len(chosen):
                waiting.append((tile.subset(chosen), may_exceed[chosen]))
            widest = max([columns.shape[1] for _, columns in waiting], default=0)
            if sum(len(part.rows) for part, _ in waiting) * widest >= MAX_WAITING:
                self._follow(waiting)
                waiting = []
        self._follow(waiting)
        reason = statistics.reason
        distance = statistics.signed_gap + 2.0 * state.excess
        return ShardDistances(
            statistics=statistics,
            distance=np.where(reason == 0, distance, np.nan),
            error_bound=np.where(reason == 0, 2.0 * state.doubt, np.nan),
            settled=state.settled,
            reason=reason,
        )

    def _certify(self, tile: MatedTile) -> NDArray[np.bool_]:
        """Note what mean and variance say of C of a tile's rows; return where it can come from."""
        found, at = self._scan.statistics, tile.rows - self._scan.part[0]
        std = np.sqrt(np.square(found.nonmated_std[at]) + self._scan.slack[at])
        lowest = np.maximum(0.0, -found.signed_gap[at])  # no distance is below |mean - mean|
        largest, may_exceed = largest_correction(tile, found.nonmated_mean[at], std)
        known = found.reason[at] == 0
        self._state.begin(at, np.where(known, lowest, 0.0), np.where(known, largest, 0.0), known)
        return may_exceed

    def _follow(self, waiting: Sequence[tuple[MatedTile, NDArray[np.bool_]]]) -> None:
        """Compare rows that are open with samples, and in the end with everybody."""
        if not waiting:
            return
        tile = MatedTile.joined([part for part, _ in waiting])
        height, width = tile.similarity.shape
        may_exceed: NDArray[np.bool_] = np.zeros((height, width), np.bool_)
        row = 0
        for _, columns in waiting:
            may_exceed[row : row + len(columns), width - columns.shape[1] :] = columns
            row += len(columns)
        at = tile.rows - self._scan.part[0]
        screen = self._references.screen
        for fetch in self._references.samples if self._precision.tolerance > 0.0 else ():
            chosen = np.flatnonzero(self._state.is_open(at))
            if len(chosen) == 0:
                return
            sample = fetch()
            if screen is not None:
                chosen = self._screened(tile, may_exceed, chosen, screen)
                screen = None
            self._ask(tile, may_exceed, chosen, sample)
        chosen = np.flatnonzero(self._state.is_open(at))
        step = max(1, MAX_EXACT_HITS // self._scan.sums.count)
        for start in range(0, len(chosen), step):
            some = chosen[start : start + step]
            self._settle_exactly(tile.subset(some), may_exceed[some])

    def _ask(
        self,
        tile: MatedTile,
        may_exceed: NDArray[np.bool_],
        chosen: NDArray[np.intp],
        sample: Block,
    ) -> None:
        """Compare some rows with a sample; take what it says where it says more."""
        deviations = self._precision.deviations
        for some in _portions(chosen, len(sample.unit)):
            part = tile.subset(some)
            similarity = similarities(self._scan.rows_of(part), sample)
            tail = narrowed(part, may_exceed[some], similarity, deviations)
            excess, bound = sampled_correction(
                tail,
                collect(similarity, tail.floor),
                Sample(self._scan.moments_of(part), similarity, deviations),
            )
            self._state.improve(part.rows - self._scan.part[0], excess, bound)

    def _screened(
        self,
        tile: MatedTile,
        may_exceed: NDArray[np.bool_],
        chosen: NDArray[np.intp],
        screen: Screen,
    ) -> NDArray[np.intp]:
        """Note what the first sample says of the rows that it shows nothing of; return the rest."""
        rest = []
        for some in _portions(chosen, screen.size):
            part = tile.subset(some)
            is_done, number = screen.unreached(
                self._scan.rows_of(part), part, may_exceed[some], self._precision.deviations
            )
            done = part.subset(np.flatnonzero(is_done))
            nothing = np.zeros((len(done.rows), 0), np.float32)
            last = np.full(len(done.rows), done.similarity.shape[1] - 1)
            excess, bound = sampled_correction(
                Tail.of(done, last),
                Hits(nothing, np.zeros(len(last), np.int64), number[is_done]),
                Sample(self._scan.moments_of(done), nothing, self._precision.deviations),
            )
            self._state.improve(done.rows - self._scan.part[0], excess, bound)
            rest.append(some[~is_done])
        return np.concatenate(rest)

    def _settle_exactly(self, tile: MatedTile, may_exceed: NDArray[np.bool_]) -> None:
        """Compare rows with every image of the run."""
        tail = Tail.of(tile, first_columns(may_exceed))
        hits = hits_among_all(self._scan.rows_of(tile), tail.floor, self._references.everybody())
        at = tile.rows - self._scan.part[0]
        self._check_all(hits.num_compared, at)
        self._state.end(at, exact_correction(tail, hits))

    def _check_all(self, num_compared: NDArray[np.int64], at: NDArray[np.int64]) -> None:
        """Raise ValueError if a row was not compared with every image of other identities."""
        expected = self._scan.statistics.num_nonmated[at]
        wrong = np.flatnonzero(num_compared != expected)
        if len(wrong):
            raise ValueError(
                f"expected all images of the run, {expected[wrong[0]]} of them of other "
                f"identities than a row's, got {num_compared[wrong[0]]}"
            )


@dataclass(eq=False)
class _State:
    """What is known of C of the rows to label: it is excess, give or take doubt."""

    tolerance: float
    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]
    excess: NDArray[np.float64]
    doubt: NDArray[np.float64]
    settled: NDArray[np.int8]
    has_distance: NDArray[np.bool_]

    @classmethod
    def of(cls, size: int, tolerance: float) -> "_State":
        low, high, excess, doubt = np.zeros((4, size))
        codes = np.zeros(size, np.int8)
        return cls(tolerance, low, high, excess, doubt, codes, np.zeros(size, bool))

    def begin(
        self,
        at: NDArray[np.int64],
        lowest: NDArray[np.float64],
        highest: NDArray[np.float64],
        has_distance: NDArray[np.bool_],
    ) -> None:
        """Note between what C of some rows lies."""
        highest = np.maximum(highest, lowest)
        self.lowest[at], self.highest[at], self.excess[at] = lowest, highest, lowest
        self.doubt[at], self.has_distance[at] = highest - lowest, has_distance

    def is_open(self, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which rows are not known well enough; with tolerance 0, all not exact."""
        known = self.settled[at] == 2
        if self.tolerance > 0.0:
            known |= 2.0 * self.doubt[at] <= self.tolerance
        is_open: NDArray[np.bool_] = self.has_distance[at] & ~known
        return is_open

    def improve(
        self, at: NDArray[np.int64], excess: NDArray[np.float64], bound: NDArray[np.float64]
    ) -> None:
        """Take a sampled C and its bound for the rows where they say more than what is known."""
        lowest, highest = self.lowest[at], self.highest[at]
        excess = np.clip(excess, lowest, highest)
        bound = np.minimum(bound, np.maximum(highest - excess, excess - lowest))
        better = bound < self.doubt[at]
        chosen = at[better]
        self.excess[chosen], self.doubt[chosen] = excess[better], bound[better]
        self.settled[chosen] = 1

    def end(self, at: NDArray[np.int64], excess: NDArray[np.float64]) -> None:
        """Take an exact C."""
        self.excess[at] = np.maximum(excess, self.lowest[at])
        self.doubt[at], self.settled[at] = 0.0, 2


def _portions(chosen: NDArray[np.intp], columns: int) -> list[NDArray[np.intp]]:
    """Return the rows in even portions of at most MAX_SAMPLED products with so many columns."""
    most = max(1, MAX_SAMPLED // max(columns, 1))
    return np.array_split(chosen, -(-len(chosen) // most)) if len(chosen) else []


def shard_distances(
    shard: Shard,
    sums: EmbeddingSums,
    references: References,
    precision: Precision | None = None,
) -> ShardDistances:
    """Return the distribution distance of every row of a shard.

    It is the first Wasserstein distance between the row's mated and nonmated similarities. The
    means and deviations in it are exact in every case; see the module for what is not, and
    `tails.sampled_correction` for what the bound of a sampled correction means.

    Args:
        shard: The rows.
        sums: Sums over all images of the run, the shard's among them.
        references: Whom open rows are compared with.
        precision: How far a distance is followed.

    Raises:
        ValueError: The sums are of fewer images than the shard or of another size, or everybody is
            not all images of the run.

    Source:
        Ou et al., "SDD-FIQA", CVPR 2021, equation (7). Equal, row by row, to
        scipy.stats.wasserstein_distance over all pairs (tests/unit/test_distances.py).

    Example:
        >>> from sdd_ray.core.moments import partial_sums
        >>> unit = np.float32([[1, 0], [0.6, 0.8], [0, 1]])
        >>> codes = np.array([7, 7, 9])
        >>> everybody = References((), lambda: [Block(unit, codes)])
        >>> labels = shard_distances(Shard.of(unit, codes), partial_sums(unit), everybody)
        >>> labels.distance.round(6).tolist(), labels.reason.tolist()
        ([0.6, 0.2, nan], [0, 0, 1])
    """
    return ShardLabeller(ShardScan(shard, sums), references, precision or Precision()).settle()
