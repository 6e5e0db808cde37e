"""Rows that a sample shows nothing of, found by bfloat16 products.

Most rows that are compared with a sample turn out to have no similarity in it above their largest
mated one. Processors with bfloat16 matrix units multiply several times faster in that format, and
its error is bounded, so such a row can be told by it with certainty: whatever float32 products
would say, they would say the same. All other rows are left to float32. So screening changes what a
label costs, and nothing else but the order of a float64 sum.

Shapes: B rows, R sampled columns, W mated similarities, d numbers an embedding.
"""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from sdd_ray.core.mated import MatedTile
from sdd_ray.core.reference import Block, Rows, own_columns
from sdd_ray.core.similarity import one_thread, tensor_of
from sdd_ray.core.tails import first_after

MARGIN = 0.0125
"""What a bfloat16 product of unit rows may be off by. Inputs and result have 8 significant bits, so
each is rounded by at most 2^-8 of itself, and the sum of |x_k y_k| is at most 1: 3 * 2^-8, and room
for the squares of that, for the float32 sum (d 2^-24), and for rows that are not quite of length 1.
"""


class Screen:
    """A sample in bfloat16.

    Args:
        sample: Columns sorted by identity.
    """

    def __init__(self, sample: Block) -> None:
        self._sample = sample

    @property
    def size(self) -> int:
        """R, the columns of the sample."""
        return len(self._sample.unit)

    @cached_property
    def _columns(self) -> torch.Tensor:
        return tensor_of(self._sample.unit).to(torch.bfloat16).T

    def unreached(
        self, rows: Rows, tile: MatedTile, may_exceed: NDArray[np.bool_], deviations: float
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Return (B,) which rows' tails are their largest mated similarity with no hit above it.

        Args:
            rows: The rows.
            tile: Their mated similarities.
            may_exceed: (B, W) where G may exceed H (see `certificate`).
            deviations: As for `tails.narrowed`, whose tails these are.

        Returns:
            (B,) the rows, and (B,) the number of nonmated columns of each.
        """
        with one_thread():
            found = torch.mm(tensor_of(rows.unit).to(torch.bfloat16), self._columns)
        similarity = _ordered(found.view(torch.int16).numpy())
        first, last = own_columns(rows, self._sample)
        for row in np.flatnonzero(last > first):
            similarity[row, first[row] : last[row]] = np.iinfo(np.int16).min
        number = len(self._sample.unit) - (last - first)

        def count_above(some: NDArray[np.intp], floor: NDArray[np.float32]) -> NDArray[np.int64]:
            columns = similarity if len(some) == len(similarity) else similarity[some]
            count: NDArray[np.int64] = np.count_nonzero(columns > _below(floor)[:, None], axis=1)
            return count

        start = first_after(tile, may_exceed, (number, count_above), deviations)
        no_hit = similarity.max(axis=1) <= _below(tile.largest.astype(np.float32))
        return no_hit & (start == tile.similarity.shape[1] - 1), number


def _ordered(bits: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the bits of bfloat16 numbers as integers in the order of the numbers."""
    bits ^= (bits >> 15) & np.int16(0x7FFF)
    return bits


def _below(floor: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return ordered bits that a product surely exceeds if the similarity exceeds the floor."""
    lowered = floor - np.float32(MARGIN)
    bits = _ordered((lowered.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.int16))
    return bits - np.int16(1)  # cut off towards zero, and one step down for negative ones
