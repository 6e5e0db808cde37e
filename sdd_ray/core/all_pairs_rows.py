"""Some rows of a shard with their mated similarities, and what else is known without any pair.

Mated similarities are computed in float64 from embeddings on the grid of `all_pairs_counts`, that
is exactly, and are not stored: identities can be large, and computing them again is cheap.

Shapes: R rows, G identities of theirs with A images in all, d numbers an embedding; B rows of a
tile with P mated similarities at most.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from sdd_ray.core.all_pairs_areas import LIMIT, excess_ceilings, fixed_sum
from sdd_ray.core.all_pairs_counts import on_grid
from sdd_ray.core.mated import Shard
from sdd_ray.core.moments import EmbeddingSums

TILE_ROWS = 1024
"""Rows of a tile, at most."""

TILE_PRODUCTS = 1 << 22
"""Products of a tile's rows with their identities, at most (32 MiB), but at least one row's."""

SPREAD_ERROR = 1e-5
"""Relative error of a sum of squares in `EmbeddingSums`, which are in part sums in float32."""


class MatedRows:
    """Rows of a shard, and all images of their identities.

    Attributes:
        own: (A, d) float32 embeddings on the grid.
        rows: Which of them the rows are.
        starts: (G + 1,) where each identity begins among the A, from 0 to A.
        group: (R,) the row's identity, in [0, G).
        num_mated: (R,) images of each row's identity but itself.

    Raises:
        ValueError: The rows are none of the shard's, or a row is not of unit length.
    """

    def __init__(self, shard: Shard, rows: range, device: str) -> None:
        if len(rows) == 0 or rows.step != 1 or rows.start < 0 or rows.stop > len(shard.unit):
            raise ValueError(
                f"expected consecutive rows among {len(shard.unit)}, at least one, got {rows}"
            )
        first, last = int(shard.group[rows.start]), int(shard.group[rows.stop - 1])
        start = int(shard.starts[first])
        self.rows = slice(rows.start - start, rows.stop - start)
        self.starts = shard.starts[first : last + 2] - start
        self.group = shard.group[rows.start : rows.stop] - first
        self.num_mated = np.diff(self.starts)[self.group] - 1
        span = np.stack([self.starts[self.group], self.starts[self.group + 1]])
        self._span = torch.tensor(span, device=device)
        own = torch.tensor(shard.unit[start : shard.starts[last + 1]], device=device)
        self.own = on_grid(own)

    @property
    def unit(self) -> torch.Tensor:
        """(R, d) the rows' embeddings on the grid."""
        return self.own[self.rows]

    def tiles(self, max_rows: int = TILE_ROWS) -> Iterator[slice]:
        """Yield the rows in tiles of at most `max_rows`, fewer where identities are large."""
        start, num_rows = 0, len(self.group)
        while start < num_rows:
            stop = min(start + min(max_rows, TILE_ROWS), num_rows)
            width = int(self.starts[self.group[stop - 1] + 1] - self.starts[self.group[start]])
            stop = min(stop, start + max(1, TILE_PRODUCTS // width))
            yield slice(start, stop)
            start = stop

    def mated(self, tile: slice) -> torch.Tensor:
        """Return (B, P) float64 mated similarities of some rows, sorted, LIMIT where there is none.

        Args:
            tile: Which of the R rows.
        """
        first = int(self.starts[self.group[tile.start]])
        last = int(self.starts[self.group[tile.stop - 1] + 1])
        similarity = self.unit[tile].double() @ self.own[first:last].double().T
        start, stop = self._span[0][tile, None] - first, self._span[1][tile, None] - first
        widest = int(self.num_mated[tile].max()) + 1
        column = start + torch.arange(widest, device=similarity.device)
        itself = torch.arange(tile.start, tile.stop, device=similarity.device)[:, None]
        is_mated = (column < stop) & (column != itself + (self.rows.start - first))
        mated = similarity.gather(1, column.clamp(max=last - first - 1))
        mated = torch.where(is_mated, mated, LIMIT)
        return mated.sort(dim=1).values[:, :-1]


@dataclass(frozen=True, eq=False)
class TailNeeds:
    """What the two means and the spread leave to be found out by counting.

    The distance is gap + 2 C, C the area where F_P lies above F_N. Below `floor`, that area is at
    most `left_out`.

    Attributes:
        gap: (R,) float64 mean mated minus mean nonmated similarity.
        floor: (R,) float64, one of the row's mated similarities, or LIMIT.
        left_out: (R,) float64.
    """

    gap: torch.Tensor
    floor: torch.Tensor
    left_out: torch.Tensor


def tail_needs(rows: MatedRows, sums: EmbeddingSums, tolerance: float) -> TailNeeds:
    """Return how far down similarities must be counted, for rows with both kinds of comparison.

    The smallest mated similarities are passed by as long as the parts of C that the certificate
    allows there (`excess_ceilings`) do not exceed half the tolerance together. That matters: many
    identities have one poor image, and with it every image of theirs has one small mated
    similarity, above which half of all nonmated ones lie.

    Args:
        rows: The rows.
        sums: Sums over all images of the run.
        tolerance: By how much the distance may be off at most for what is not counted.
    """
    device = rows.own.device
    total = torch.tensor(sums.total, device=device)
    second_moment = torch.tensor(sums.second_moment, device=device)
    group = torch.tensor(rows.group, device=device)
    num_mated = torch.tensor(rows.num_mated, device=device)
    identity = torch.repeat_interleave(
        torch.arange(len(rows.starts) - 1), torch.tensor(np.diff(rows.starts))
    ).to(device)
    own_totals = total.new_zeros((len(rows.starts) - 1, len(total)))
    own_totals.index_add_(0, identity, rows.own.double())  # exact: whole multiples of the grid
    parts = []
    for tile in rows.tiles():
        unit, mated, p = rows.unit[tile].double(), rows.mated(tile), num_mated[tile]
        m = (sums.count - p - 1).clamp(min=1).double()
        is_mated = mated < LIMIT
        similarity = torch.where(is_mated, mated, 0.0)
        mated_mean = fixed_sum(similarity / p.clamp(min=1)[:, None])
        mean = fixed_sum(unit * (total - own_totals[group[tile]]) / m[:, None])
        squares = ((unit @ second_moment) * unit).sum(dim=1)
        spread = squares - sums.count * (unit @ (total / sums.count)).square()
        squares -= similarity.square().sum(dim=1) + unit.square().sum(dim=1).square()
        variance = squares / m - mean.square() + SPREAD_ERROR * spread.clamp(min=0.0) / m
        ceilings = excess_ceilings(mated, p, mean, variance.clamp(min=0.0).sqrt())
        passed = torch.cumsum(ceilings, dim=1)
        num_passed = (2.0 * passed <= tolerance).logical_and(is_mated).sum(dim=1, keepdim=True)
        edge = mated.new_full((len(mated), 1), LIMIT)
        floor = torch.cat([mated, edge], dim=1).gather(1, num_passed)[:, 0]
        left_out = torch.cat([0.0 * edge, passed], dim=1).gather(1, num_passed)[:, 0]
        parts.append((mated_mean - mean, floor, left_out))
    return TailNeeds(*(torch.cat(part) for part in zip(*parts, strict=True)))
