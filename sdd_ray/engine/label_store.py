"""What every worker of the label stage can reach: the rows of all shards, and sums over them.

Shards are read from their files when they are needed. Where a method needs rows at random, or all
of them again and again, and where the whole set is small, the unit rows of all shards are kept in
Ray's object store instead, group by group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from sdd_ray.core.moments import EmbeddingSums
from sdd_ray.core.reference import Block
from sdd_ray.engine.label_plan import LabelPlan
from sdd_ray.engine.shard_rows import Place, RowSource, read_unit_rows

SHARDS_PER_GROUP = 8
"""Shards whose sums are added up, and whose rows are kept, together. A constant: sums are bit-equal
only for equal groups."""


@dataclass(frozen=True, eq=False)
class ShardRows:
    """The usable rows of a shard.

    Attributes:
        unit: (M, d) unit-length rows.
        codes: (M,) number of the identity of each.
        faults: (N,) what is wrong with each row of the shard, 0 for those usable.
    """

    unit: NDArray[np.float32]
    codes: NDArray[np.int64]
    faults: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Positions:
    """Where the rows of all shards lie, as arrays that workers share.

    Attributes:
        offsets: (shards + 1,) first row of each shard among all rows.
        files, rows, codes: of all rows in canonical order.
    """

    offsets: NDArray[np.int64]
    files: NDArray[np.int32]
    rows: NDArray[np.int64]
    codes: NDArray[np.int64]

    @classmethod
    def of(cls, plan: LabelPlan, places: Sequence[Place]) -> "Positions":
        """Return the positions of all shards."""
        sizes = [len(shard.codes) for shard in plan.shards]
        return cls(
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            np.concatenate([place.files for place in places]),
            np.concatenate([place.rows for place in places]),
            np.concatenate([shard.codes for shard in plan.shards]),
        )


class ShardStore:
    """The rows of all shards; travels to workers, who share its arrays.

    Args:
        source: Files of the rows.
        positions: Where the rows lie, or a reference to that in the object store.
        groups: References to the kept rows of each group, or None: read the files.
    """

    def __init__(self, source: RowSource, positions: Any, groups: Sequence[Any] | None) -> None:
        self._source, self._positions, self._groups = source, positions, groups

    @property
    def positions(self) -> Positions:
        """Where the rows lie."""
        if isinstance(self._positions, ray.ObjectRef):
            self._positions = ray.get(self._positions)
        found: Positions = self._positions
        return found

    def read(self, number: int) -> ShardRows:
        """Return the usable rows of a shard.

        Raises:
            InputError: A file is damaged, or embeddings have different lengths.
        """
        if self._groups is not None:
            group = ray.get(self._groups[number // SHARDS_PER_GROUP])
            kept: ShardRows = group[number % SHARDS_PER_GROUP]
            return kept
        at = self.positions
        rows = slice(at.offsets[number], at.offsets[number + 1])
        unit, faults = read_unit_rows(self._source, Place(at.files[rows], at.rows[rows]))
        return ShardRows(unit, at.codes[rows][faults == 0], faults)

    def blocks(self) -> Iterator[Block]:
        """Yield the usable rows of all shards, one after the other."""
        for number in range(len(self.positions.offsets) - 1):
            shard = self.read(number)
            yield Block(shard.unit, shard.codes)


@dataclass(frozen=True)
class LabelContext:
    """What the workers of a run know in common.

    Attributes:
        store: The rows of all shards.
        sums: Sums over all usable rows.
        offsets: (shards + 1,) place of each shard's first usable row among all usable rows.
        samples: References to random images of the run as `Block`, each sample larger than the one
            before.
        counted: Reference to the images that nonmated similarities are counted with, or None.
    """

    store: ShardStore
    sums: EmbeddingSums
    offsets: NDArray[np.int64]
    samples: tuple[Any, ...]
    counted: Any


def fits_store(num_rows: int, size: int, share: float) -> bool:
    """Return whether float32 rows of a size fit a share of Ray's object store."""
    room = float(ray.cluster_resources().get("object_store_memory", 0.0))
    return num_rows * size * 4 <= share * room
