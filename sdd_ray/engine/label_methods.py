"""The ways to label a shard, behind one interface."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdd_ray.core.all_pairs import AllPairsDistances, AllPairsPlan, ColumnBlock, RowTally
from sdd_ray.core.distances import (
    Precision,
    References,
    ShardDistances,
    ShardLabeller,
)
from sdd_ray.core.leave_one_out import (
    NUM_BINS,
    ImageTile,
    PairHistograms,
    add_row_histograms,
    leave_one_out_area,
    leave_one_out_fnmr,
)
from sdd_ray.core.mated import MatedTile, Shard
from sdd_ray.core.reference import Block
from sdd_ray.core.sampled import (
    Places,
    SamplingPlan,
    draw,
    image_digests,
    partner_similarities,
    round_distances,
)
from sdd_ray.core.screening import Screen
from sdd_ray.core.shard_statistics import ShardScan, ShardStatistics
from sdd_ray.engine.label_store import LabelContext, ShardRows, ShardStore
from sdd_ray.settings import LabelConfig

_SAMPLED_ROWS = 64
"""Rows whose partners are gathered at once."""

_COUNTED_ROWS = 256
"""Rows whose histograms are held at once (16 MiB)."""


@dataclass(frozen=True, eq=False)
class MethodInput:
    """What a method labels.

    Attributes:
        config: Configuration of the run.
        shard: Whole identities.
        part: Rows of the shard to label, from and to.
        image_ids: (N,) keys of the rows to label.
        position: Place of the first of them in the canonical order of all usable rows.
        context: What is known of the other shards.
        samples: Random images of the run, fetched when they are needed.
        screen: The first sample for screening, or None.
        kept: What a method keeps for the worker's next shard.
        watch: To be called with every tile of mated similarities.
        pairs: All similarities of the set, counted, for the leave-one-out label.
    """

    config: LabelConfig
    shard: Shard
    part: tuple[int, int]
    image_ids: Sequence[str]
    position: int
    context: LabelContext
    samples: tuple[Callable[[], Block], ...]
    screen: Screen | None
    kept: dict[str, Any]
    watch: Callable[[MatedTile], None]
    pairs: PairHistograms | None


@dataclass(frozen=True, eq=False)
class Labelled:
    """What a method found of N rows; NaN where it says nothing.

    Attributes:
        statistics: Numbers and moments of each row's similarities.
        distance: (N,) distribution distance.
        error_bound: (N,) of the distance.
        settled: (N,) code into `core.distances.SETTLED`, -1 where that has no meaning.
        reason: (N,) code into `core.distances.DISTANCE_REASONS`.
        leave_one_out: (N,) Q of the seed's equation (3) or (4).
        rounds: (N, K) distance of each round of the paper's estimator, or None.
    """

    statistics: ShardStatistics
    distance: NDArray[np.float64]
    error_bound: NDArray[np.float64]
    settled: NDArray[np.int8]
    reason: NDArray[np.int8]
    leave_one_out: NDArray[np.float64]
    rounds: NDArray[np.float64] | None = None


def run_method(given: MethodInput) -> Labelled:
    """Return the labels of a shard by the configured method."""
    methods = {
        "exact": _exact,
        "sampled": _sampled,
        "leave_one_out": _leave_one_out,
        "all_pairs": _all_pairs,
    }
    return methods[given.config.method](given)


def count_pairs(
    rows: ShardRows, position: int, store: ShardStore
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (K,) mated and (K,) nonmated similarities of a shard's rows with all images."""
    mated, nonmated = np.zeros(NUM_BINS, np.int64), np.zeros(NUM_BINS, np.int64)
    for _, own, others in _row_histograms(rows.unit, rows.codes, position, store):
        mated += own.sum(axis=0)
        nonmated += others.sum(axis=0)
    return mated, nonmated


def _scan(given: MethodInput) -> ShardScan:
    limit = given.config.max_mated_similarity
    return ShardScan(given.shard, given.context.sums, limit, given.part, given.watch)


def _distances(given: MethodInput) -> ShardDistances:
    options = given.config.exact
    references = References(given.samples, given.context.store.blocks, given.screen)
    precision = Precision(options.tolerance, options.deviations)
    return ShardLabeller(_scan(given), references, precision).settle()


def _exact(given: MethodInput) -> Labelled:
    return _as_labelled(_distances(given))


def _as_labelled(
    found: ShardDistances, leave_one_out: NDArray[np.float64] | None = None
) -> Labelled:
    unknown = np.full(len(found.distance), np.nan)
    return Labelled(
        found.statistics,
        found.distance,
        found.error_bound,
        found.settled,
        found.reason,
        unknown if leave_one_out is None else leave_one_out,
    )


def _all_pairs(given: MethodInput) -> Labelled:
    options, context = given.config.all_pairs, given.context
    plan = AllPairsPlan(
        precision=options.precision,
        bins=options.bins,
        tail_only=options.tail_only,
        device="cuda" if given.config.resources.gpus_per_worker > 0 else "cpu",
    )
    statistics = _scan(given).look()
    columns = given.kept.setdefault("columns", _Columns(context.store, plan))
    first, last = given.part
    step = plan.rows_at_once(context.sums.count)
    found = []
    for start in range(first, last, step):
        tally = RowTally(given.shard, plan, range(start, min(start + step, last)), context.sums)
        for block in columns:
            tally.add(block)
        found.append(tally.finish())
    labels = AllPairsDistances.joined(found)
    settled = np.full(last - first, 2, np.int8)
    unknown = np.full(last - first, np.nan)
    return Labelled(
        statistics, labels.distance, labels.error_bound, settled, statistics.reason, unknown
    )


class _Columns:
    """All images of the run as columns; kept on a GPU, made again and again on a CPU."""

    def __init__(self, store: ShardStore, plan: AllPairsPlan) -> None:
        self._store, self._plan = store, plan
        self._kept: list[ColumnBlock] | None = None

    def __iter__(self) -> Iterator[ColumnBlock]:
        if self._plan.device == "cpu":
            yield from self._made()
            return
        if self._kept is None:
            self._kept = list(self._made())
        yield from self._kept

    def _made(self) -> Iterator[ColumnBlock]:
        for block in self._store.blocks():
            if len(block.unit):
                yield ColumnBlock.of(block.unit, block.identities, self._plan)


def _leave_one_out(given: MethodInput) -> Labelled:
    """Return Q, and the distances beside it.

    Raises:
        ValueError: The similarities of the set were not counted before.
    """
    if given.pairs is None:
        raise ValueError("expected the similarities of the whole set, got none")
    rows = slice(*given.part)
    fmr, store = given.config.leave_one_out.fmr, given.context.store
    found = []
    for _, mated, nonmated in _row_histograms(
        given.shard.unit[rows], given.shard.codes[rows], given.position, store
    ):
        found.append(
            leave_one_out_area(given.pairs, mated, nonmated)
            if fmr is None
            else leave_one_out_fnmr(given.pairs, mated, nonmated, fmr)
        )
    return _as_labelled(_distances(given), np.concatenate(found))


def _row_histograms(
    unit: NDArray[np.float32], codes: NDArray[np.int64], position: int, store: ShardStore
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield rows with (B, K) counts of their mated and nonmated similarities with all images."""
    for first in range(0, len(unit), _COUNTED_ROWS):
        rows = slice(first, min(first + _COUNTED_ROWS, len(unit)))
        places = position + np.arange(rows.start, rows.stop)
        tile = ImageTile(unit[rows], codes[rows], places)
        mated = np.zeros((len(places), NUM_BINS), np.int64)
        nonmated = np.zeros_like(mated)
        before = 0
        for block in store.blocks():
            others = before + np.arange(len(block.unit))
            if len(block.unit):
                columns = ImageTile(block.unit, block.identities, others)
                add_row_histograms(tile, columns, mated, nonmated)
            before += len(block.unit)
        yield rows, mated, nonmated


def _sampled(given: MethodInput) -> Labelled:
    statistics = _scan(given).look()
    options = given.config.sampled
    plan = SamplingPlan(options.seed, options.rounds, options.per_image)
    digests = image_digests(given.image_ids)
    unit = given.shard.unit[slice(*given.part)]
    rounds = np.concatenate(
        [
            _sampled_rows(unit[rows], digests[rows], places, plan, given.context)
            for rows, places in _places(given)
        ]
    )
    unknown = np.full(len(unit), np.nan)
    return Labelled(
        statistics,
        rounds.mean(axis=1),
        unknown,
        np.full(len(unit), -1, np.int8),
        statistics.reason,
        unknown,
        rounds,
    )


def _sampled_rows(
    unit: NDArray[np.float32],
    digests: NDArray[np.uint64],
    places: Places,
    plan: SamplingPlan,
    context: LabelContext,
) -> NDArray[np.float64]:
    partners = draw(digests, places, plan)
    needed = np.unique(np.concatenate([side.ravel() for side in partners]))
    needed = needed[needed >= 0]
    if len(needed) == 0:  # an image that is alone in the whole set
        return np.full((len(digests), plan.num_rounds), np.nan)
    pool = _rows_at(needed, context)
    similarities = [
        partner_similarities(unit, pool, np.where(side < 0, -1, np.searchsorted(needed, side)))
        for side in partners
    ]
    return round_distances(*similarities)


def _rows_at(places: NDArray[np.int64], context: LabelContext) -> NDArray[np.float32]:
    """Return the usable rows at ascending places of the canonical order."""
    numbers = np.searchsorted(context.offsets, places, side="right") - 1
    found = []
    for number in np.unique(numbers):
        shard = context.store.read(int(number))
        found.append(shard.unit[places[numbers == number] - context.offsets[number]])
    return np.concatenate(found)


def _places(given: MethodInput) -> list[tuple[slice, Places]]:
    """Return the rows to label in tiles, with the place of each row and of its identity."""
    first, last = given.part
    begin = given.position - first  # place of the shard's first row
    starts = begin + given.shard.starts
    tiles = []
    for low in range(first, last, _SAMPLED_ROWS):
        rows = np.arange(low, min(low + _SAMPLED_ROWS, last))
        group = given.shard.group[rows]
        places = Places(begin + rows, starts[group], starts[group + 1], given.context.sums.count)
        tiles.append((slice(low - first, int(rows[-1]) + 1 - first), places))
    return tiles
