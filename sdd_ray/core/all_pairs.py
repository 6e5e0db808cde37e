"""The distribution distance by its definition: every row against every image, in tiles.

For each row of a shard its mated similarities are kept, and all its nonmated similarities are
either kept too and sorted (`bins=None`, for small sets) or counted in bins as they are computed, so
that they are never written anywhere. Nothing is left out and no closed form is used: this is what
`distances.shard_distances` is checked against at sizes that scipy does not reach, and on a GPU it
is fast enough to be used itself. With `tail_only` the means come from sums over all embeddings, as
there, and only similarities that can matter beyond them are counted: W1 = mean(P) - mean(N) + 2 C.

Columns may come in blocks of any size and in any order: counts and sums are whole numbers, and a
similarity has the same bits in every tile (`all_pairs_counts`; in the kernel, because each is added
up by itself in one order), so that labels have the same bits, too.

Rounding embeddings to multiples of 2^-26 moves no similarity by more than sqrt(d) 2^-26 and is not
counted in error bounds, as float32 rounding is not elsewhere in this package. Everything else is.

Shapes: R rows of a tally, C columns of a block, d numbers an embedding, G identities of the rows,
K bins over [-1, 1]; B rows of a tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from sdd_ray.core.all_pairs_areas import LIMIT, BinnedRows
from sdd_ray.core.all_pairs_counts import (
    TILE_CELLS,
    CountedRows,
    count_by_torch,
    similarity_error,
)
from sdd_ray.core.all_pairs_plan import AllPairsPlan, ColumnBlock, multiplied, on_device
from sdd_ray.core.all_pairs_rows import MatedRows, tail_needs
from sdd_ray.core.mated import Shard
from sdd_ray.core.moments import EmbeddingSums
from sdd_ray.core.wasserstein import Comparisons, wasserstein

SORTED_AT_ONCE = 1 << 20
"""Similarities that are sorted at once, but at least one row's."""

__all__ = [
    "AllPairsDistances",
    "AllPairsPlan",
    "ColumnBlock",
    "RowTally",
    "all_pairs_distances",
]


@dataclass(frozen=True, eq=False)
class AllPairsDistances:
    """The labels of some rows, before they are scaled.

    Attributes:
        distance: (R,) distribution distance in [0, 2]; NaN where `reason` is not 0.
        error_bound: (R,) what the distance can be off by, at most; NaN where `reason` is not 0.
        num_mated: (R,) comparisons with other images of the same identity.
        num_nonmated: (R,) comparisons with all images of other identities.
        reason: (R,) codes into `distances.DISTANCE_REASONS`.
    """

    distance: NDArray[np.float64]
    error_bound: NDArray[np.float64]
    num_mated: NDArray[np.int64]
    num_nonmated: NDArray[np.int64]
    reason: NDArray[np.int8]

    @classmethod
    def joined(cls, parts: Sequence["AllPairsDistances"]) -> "AllPairsDistances":
        """Return the rows of all parts, one part after the other."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class RowTally:
    """Some rows of a shard, and what is known of their similarities so far.

    Add every image of the run once, in blocks of any size and in any order, then finish.

    Args:
        shard: Whole identities; the rows' mated similarities come from it.
        plan: How to compute.
        rows: Which rows of the shard, not more than `plan.rows_at_once`; by default all.
        sums: Sums over all images of the run; needed for tail_only.

    Raises:
        ValueError: The rows are none of the shard's, a row is not of unit length, or sums are
            missing or of another size.
    """

    def __init__(
        self,
        shard: Shard,
        plan: AllPairsPlan,
        rows: range | None = None,
        sums: EmbeddingSums | None = None,
    ) -> None:
        rows = range(len(shard.unit)) if rows is None else rows
        self._plan, self._size = plan, shard.unit.shape[1]
        self._rows = MatedRows(shard, rows, plan.device)
        self._num_mated = torch.tensor(self._rows.num_mated, device=plan.device)
        codes = shard.identities[shard.group[rows.start] : shard.group[rows.stop - 1] + 1]
        order = np.argsort(codes)
        self._codes, self._code_order = on_device(codes[order], plan), on_device(order, plan)
        self._seen = torch.zeros_like(self._codes)
        self._num_columns = 0
        self._num_in_sums = None if sums is None else sums.count
        self._column_rounding = 0.0
        self._similarities: list[torch.Tensor] = []
        self._column_groups: list[torch.Tensor] = []
        self._needs = None
        if plan.tail_only:
            if sums is None or sums.total.size != self._size:
                found = "none" if sums is None else f"sums of size {sums.total.size}"
                raise ValueError(f"expected sums of embeddings of size {self._size}, got {found}")
            self._needs = tail_needs(self._rows, sums, plan.tolerance)
        self._counted, self._place, self._rounding = self._prepared_rows()

    def add(self, block: ColumnBlock) -> None:
        """Compare all rows with some columns.

        Raises:
            ValueError: The columns are of another size, or prepared for another format.
        """
        values = self._counted.values
        if block.values.shape[1:] != values.shape[1:] or block.values.dtype != values.dtype:
            raise ValueError(
                f"expected columns of {values.shape[1]} numbers, {values.dtype}, got "
                f"{block.values.shape[1]}, {block.values.dtype}"
            )
        place = torch.searchsorted(self._codes, block.identities).clamp(max=len(self._codes) - 1)
        is_own = self._codes[place] == block.identities
        group = torch.where(is_own, self._code_order[place], -1)
        self._seen += torch.bincount(group[is_own], minlength=len(self._codes))
        self._num_columns += len(group)
        self._column_rounding = max(self._column_rounding, block.rounding)
        group = group.to(torch.int32)
        if self._plan.bins is None:
            self._similarities.append((values.double() @ block.values.double().T).float())
            self._column_groups.append(group)
        elif self._plan.uses_triton:
            from sdd_ray.core import all_pairs_triton  # needs Triton, which CPUs do not have

            all_pairs_triton.count(self._counted, block.values, group, self._plan.precision)
        else:
            count_by_torch(self._counted, block.values, group)

    def finish(self) -> AllPairsDistances:
        """Return the distances of the rows.

        Raises:
            ValueError: As far as the rows' identities and the sums show, the columns were not all
                images, each once.
        """
        self._check_complete()
        num_mated = self._rows.num_mated
        num_nonmated = self._num_columns - num_mated - 1
        reason = np.where(num_mated == 0, 1, np.where(num_nonmated == 0, 2, 0)).astype(np.int8)
        if self._plan.bins is None:
            tiles = self._rows.tiles(SORTED_AT_ONCE // max(1, self._num_columns))
            parts = [self._sorted_distances(tile) for tile in tiles]
        else:
            tiles = self._rows.tiles(TILE_CELLS // self._plan.bins)
            parts = [self._binned_distances(tile, self._plan.bins) for tile in tiles]
        distance = torch.cat([part[0] for part in parts]).cpu().numpy()
        bound = torch.cat([part[1] for part in parts]).cpu().numpy()
        return AllPairsDistances(
            distance=np.where(reason == 0, distance, np.nan),
            error_bound=np.where(reason == 0, bound, np.nan),
            num_mated=num_mated,
            num_nonmated=num_nonmated,
            reason=reason,
        )

    def _prepared_rows(self) -> tuple[CountedRows, torch.Tensor, torch.Tensor]:
        """Return the rows as they are counted, each row's place there, and (R,) its rounding.

        Rows are counted in the order of their floors, so that tiles with nothing to count are
        not spoilt by a single row of another kind.
        """
        values, rounding = multiplied(self._rows.unit, self._plan)
        group = torch.tensor(self._rows.group, dtype=torch.int32, device=values.device)
        bins = self._plan.bins or 0
        order = torch.arange(len(values), device=values.device)
        floor_bin = None
        if self._needs is not None:
            # Wherever a counted similarity may lie in truth, the bin of the floor is complete.
            error = similarity_error(
                self._plan.precision, self._size, rounding=None, accumulates=True
            )
            lowest = (self._needs.floor - 2.0 / bins - error.to(values.device) + 1.0) * (bins / 2)
            floor_bin = lowest.floor().clamp(0, bins).to(torch.int32)
            order = torch.argsort(floor_bin, stable=True)
            floor_bin = floor_bin[order]
        histogram = torch.zeros((len(values), bins), dtype=torch.int32, device=values.device)
        counted = CountedRows(values[order], group[order], floor_bin, histogram)
        return counted, torch.argsort(order), rounding

    def _sorted_distances(self, tile: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (B,) distances of some rows, and zeros."""
        mated = self._rows.mated(tile)
        similarity = torch.cat([part[tile] for part in self._similarities], dim=1)
        is_nonmated = self._counted.group[tile, None] != torch.cat(self._column_groups)
        distance = wasserstein(
            _comparisons(mated, mated < LIMIT), _comparisons(similarity, is_nonmated), len(mated)
        )
        return torch.from_numpy(distance), torch.zeros(len(mated), dtype=torch.float64)

    def _binned_distances(self, tile: slice, bins: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (B,) distances of some rows, and bounds on their errors."""
        mated, num_mated = self._rows.mated(tile), self._num_mated[tile]
        counts = self._counted.histogram[self._place[tile]].long()
        num_nonmated = self._num_columns - 1 - num_mated
        counts[:, 0] += num_nonmated - counts.sum(dim=1)  # those below the floor
        cumulative = torch.cumsum(counts, dim=1)
        error = similarity_error(
            self._plan.precision,
            self._size,
            rounding=self._rounding[tile] + self._column_rounding,
            accumulates=self._plan.uses_triton,
        )
        half = torch.full_like(error, 1.0 / bins)
        if self._needs is None:
            above, below = BinnedRows(mated, num_mated, cumulative).areas(half)
            return above + below, half + error
        gap, floor = self._needs.gap[tile], self._needs.floor[tile, None]
        rows = BinnedRows(torch.maximum(mated, floor), num_mated, cumulative)
        # Nonmated similarities as small and as large as they can be.
        lowest = torch.maximum(rows.areas(-error)[0], (-gap).clamp(min=0.0))
        highest = rows.areas(2.0 * half + error)[0] + self._needs.left_out[tile]
        highest = torch.maximum(highest, lowest)
        excess = torch.minimum(torch.maximum(rows.areas(half)[0], lowest), highest)
        bound = 2.0 * torch.maximum(highest - excess, excess - lowest)
        return gap + 2.0 * excess, bound

    def _check_complete(self) -> None:
        """Raise ValueError if the columns cannot have been all images, each once."""
        sizes = np.diff(self._rows.starts)
        seen = np.empty_like(sizes)
        seen[:] = self._seen.cpu().numpy()
        wrong = np.flatnonzero(seen != sizes)
        if len(wrong):
            raise ValueError(
                f"expected all {sizes[wrong[0]]} images of each identity once among the columns, "
                f"got {seen[wrong[0]]}"
            )
        if self._num_in_sums not in (None, self._num_columns):
            raise ValueError(
                f"expected the {self._num_in_sums} images of the sums, got {self._num_columns}"
            )


def all_pairs_distances(
    shard: Shard,
    columns: Sequence[ColumnBlock],
    plan: AllPairsPlan,
    sums: EmbeddingSums | None = None,
) -> AllPairsDistances:
    """Return the distribution distance of every row of a shard, by comparing it with every image.

    The distance is the first Wasserstein distance between the row's mated and nonmated
    similarities. Its error bound is

    - without bins: 0;
    - with K bins: 1 / K, as no similarity is further than that from the middle of its bin, and
      `similarity_error`, by which it can be off itself: if no nonmated similarity is further off
      than e, neither is the distance;
    - with tail_only: half the range of distances that remain possible, when the similarities that
      count are moved by as much, and those that were not counted by as much as the certificate
      allows. Mostly it is 0 or near the tolerance, in any format.

    Args:
        shard: The rows.
        columns: All images of the run, each once, the shard's among them. They are gone through
            once for every `plan.rows_at_once` rows; a sequence that prepares a block when it is
            asked for it works as well as a list.
        plan: How to compute.
        sums: Sums over all images of the run; needed for tail_only.

    Raises:
        ValueError: The columns are not all images, a row is not of unit length, sums are missing
            or of another size, or Triton is asked for and not there.

    Source:
        Ou et al., "SDD-FIQA", CVPR 2021, equation (7). Equal, row by row, to
        scipy.stats.wasserstein_distance over all pairs (tests/unit/test_all_pairs.py).

    Example:
        >>> unit = np.float32([[1, 0], [0.6, 0.8], [0, 1]])
        >>> shard = Shard(unit, np.array([0, 2, 3]), np.array([7, 9]))
        >>> plan = AllPairsPlan(bins=None)
        >>> everybody = [ColumnBlock.of(unit, np.array([7, 7, 9]), plan)]
        >>> labels = all_pairs_distances(shard, everybody, plan)
        >>> labels.distance.round(6).tolist(), labels.reason.tolist()
        ([0.6, 0.2, nan], [0, 0, 1])
    """
    num_columns = 0
    if plan.bins is None:
        num_columns = sum(len(block.identities) for block in columns)
    rows_at_once = plan.rows_at_once(num_columns)
    parts = []
    for start in range(0, len(shard.unit), rows_at_once):
        rows = range(start, min(start + rows_at_once, len(shard.unit)))
        tally = RowTally(shard, plan, rows, sums)
        for block in columns:
            tally.add(block)
        parts.append(tally.finish())
    return AllPairsDistances.joined(parts)


def _comparisons(similarity: torch.Tensor, is_listed: torch.Tensor) -> Comparisons:
    """Return those of (B, E) similarities that are listed."""
    row = torch.nonzero(is_listed)[:, 0]
    return Comparisons(row.cpu().numpy(), similarity[is_listed].float().cpu().numpy())
