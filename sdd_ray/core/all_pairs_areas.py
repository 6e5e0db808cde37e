"""Areas between a row's two distribution functions when the nonmated one is known in bins.

F_P steps up at the mated similarities, all of which are known. F_N is known at the edges of K equal
bins over [-1, 1]; a bin's similarities are taken to lie together, at a place within (or near) the
bin that the caller chooses. With them at the bins' lower ends F_N is nowhere smaller than it
should be, at the upper ends nowhere larger, which encloses every area.

Between neighbouring mated similarities F_P is constant and F_N does not fall, so they cross at most
once there: three look-ups in the running sums of the counts give the areas on both sides. Counts
and their sums are integers; the parts of a row are added as integer multiples of 2^-44. No sum
depends on the order or the padding of its terms.

Shapes: B rows, P mated similarities of a row at most, K bins.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

LIMIT = 4.0
"""Stands for infinity: beyond this there is no similarity, however much it is moved."""

_QUANTUM = 2.0**-44


def fixed_sum(values: torch.Tensor) -> torch.Tensor:
    """Return (B,) the sum of each row's values, independent of their order.

    Args:
        values: (B, E) float64, in absolute value at most 2^18 together; rounded to 2^-44 each.

    Example:
        >>> fixed_sum(torch.tensor([[0.5, 0.25], [1.0, -1.0]], dtype=torch.float64)).tolist()
        [0.75, 0.0]
    """
    return (values / _QUANTUM).round().long().sum(dim=1).double() * _QUANTUM


@dataclass(frozen=True, eq=False)
class BinnedRows:
    """Mated similarities and binned nonmated similarities of some rows.

    Attributes:
        mated: (B, P) float64, each row sorted, those beyond num_mated being LIMIT.
        num_mated: (B,) int64.
        cumulative: (B, K) int64, nonmated similarities in each bin and all below it; the last is
            the number of all.
    """

    mated: torch.Tensor
    num_mated: torch.Tensor
    cumulative: torch.Tensor

    @property
    def num_nonmated(self) -> torch.Tensor:
        """(B,) int64."""
        return self.cumulative[:, -1]

    @cached_property
    def _levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, P + 1) F_P after each step, and the first bin in which F_N is as large."""
        steps = torch.arange(self.mated.shape[1] + 1, device=self.mated.device)
        num_mated = self.num_mated.clamp(min=1)[:, None]
        # Whole numbers: F_N >= k / p where its count >= ceil(k m / p).
        needed = -torch.div(-steps * self.num_nonmated[:, None], num_mated, rounding_mode="floor")
        crossing = torch.searchsorted(self.cumulative, needed)
        return steps / num_mated.double(), crossing.double()

    @cached_property
    def _sums(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, K + 1) counts at or below each bin, and the sums of the counts before it."""
        counts = torch.cat([self.cumulative, self.cumulative[:, -1:]], dim=1)
        before = torch.cumsum(counts, dim=1) - counts
        return counts, before

    def areas(self, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B,) the area where F_P lies above F_N, and that where it lies below.

        Args:
            offset: (B,) where a bin's similarities are taken to lie, as seen from its lower end.

        Example:
            >>> row = BinnedRows(
            ...     torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([1]),
            ...     torch.tensor([[0, 1, 2, 2]]),
            ... )
            >>> [area.tolist() for area in row.areas(torch.tensor([0.25]))]
            [[0.0], [0.5]]
        """
        half = self.cumulative.shape[1] / 2
        edge = self.mated.new_full((len(self.mated), 1), LIMIT)
        ends = torch.cat([-edge, self.mated, edge], dim=1)
        ends = (ends - offset.double()[:, None] + 1.0) * half  # in bins
        share, crossing = self._levels
        start, stop = ends[:, :-1], ends[:, 1:]
        middle = torch.minimum(torch.maximum(crossing, start), stop)
        below = self._integral(ends)
        at_middle = self._integral(middle)
        above_area = share * (middle - start) - (at_middle - below[:, :-1])
        below_area = (below[:, 1:] - at_middle) - share * (stop - middle)
        return (
            fixed_sum(above_area.clamp(min=0.0) / half),
            fixed_sum(below_area.clamp(min=0.0) / half),
        )

    def _integral(self, place: torch.Tensor) -> torch.Tensor:
        """Return the integral of F_N up to (B, E) places, in bins."""
        counts, before = self._sums
        place = place.clamp(min=0.0)
        index = place.floor().clamp(max=counts.shape[1] - 1).long()
        area = before.gather(1, index) + counts.gather(1, index) * (place - index)
        return area / self.num_nonmated.clamp(min=1)[:, None]


def excess_ceilings(
    mated: torch.Tensor, num_mated: torch.Tensor, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """Return (B, P) what the area of F_P above F_N cannot exceed between two mated similarities.

    Only mean and spread of the nonmated similarities are known, so that by Cantelli's inequality at
    most 1 / (1 + u^2) of them lie above mean + u std, u >= 0. Entry k belongs to the part of the
    line from mated similarity k to the next (the last, to 1).

    Args:
        mated: (B, P) float64, sorted; those beyond num_mated are LIMIT.
        num_mated: (B,) int64.
        mean: (B,) float64 mean nonmated similarity.
        std: (B,) float64 what its population standard deviation does not exceed.
    """
    following = torch.cat([mated[:, 1:], mated.new_full((len(mated), 1), LIMIT)], dim=1)
    start = mated.clamp(max=1.0)
    stop = following.clamp(max=1.0)
    steps = torch.arange(1, mated.shape[1] + 1, device=mated.device)
    above = (1.0 - steps / num_mated.clamp(min=1).double()[:, None]).clamp(min=0.0)
    mu, sigma = mean[:, None], std.clamp(min=1e-12)[:, None]
    stop = torch.minimum(stop, mu + sigma * (1.0 / above - 1.0).sqrt())  # there the bound = above
    stop = torch.maximum(stop, start)
    middle = torch.minimum(torch.maximum(mu, start), stop)
    tail = sigma * (((stop - mu) / sigma).atan() - ((middle - mu) / sigma).atan())
    excess = (1.0 - above) * (middle - start) + tail - above * (stop - middle)
    return excess.clamp(min=0.0)
