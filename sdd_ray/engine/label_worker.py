"""The actor of the label stage: one shard after the other, from unit rows to distances."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from sdd_ray.columns import LABELS, PSEUDO_LABEL
from sdd_ray.core.correction import Reference, ReferenceBlock
from sdd_ray.core.distances import (
    DISTANCE_REASONS,
    Shard,
    ShardDistances,
    shard_distances,
    shard_statistics,
)
from sdd_ray.core.moments import EmbeddingSums
from sdd_ray.core.sampled import (
    Places,
    SamplingPlan,
    draw,
    image_digests,
    partner_similarities,
    sampled_distances,
)
from sdd_ray.errors import SddError
from sdd_ray.settings import LabelConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import PartRecord, Reject, write_part

_SAMPLED_ROWS = 64
"""Rows whose partners are gathered at once."""

RAW_LABELS = pa.schema(
    [
        pa.field(f.name, pa.float64() if f.type == pa.float32() else f.type)
        for f in LABELS
        if f.name != PSEUDO_LABEL
    ]
)
"""Labels before they are scaled, in full precision."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to label: its usable rows and what was set aside.

    Attributes:
        number: Number of the shard.
        name: Name of the part it becomes.
        offset: Place of its first row in the canonical order of all usable rows.
        image_ids, identities: (N,) keys of the usable rows.
        rejects: The other rows.
    """

    number: int
    name: str
    offset: int
    image_ids: pa.Array
    identities: pa.Array
    rejects: list[Reject]


class StoredBlocks(Sequence[ReferenceBlock]):
    """Shards in Ray's object store, fetched one at a time; on one node without a copy."""

    def __init__(self, references: Sequence[Any]) -> None:
        self._references = references

    def __len__(self) -> int:
        return len(self._references)

    def __getitem__(self, index: Any) -> Any:
        return ReferenceBlock(*ray.get(self._references[index]))


class LabelWorker:
    """Labels shards; everything it needs to know of the other shards lies in the object store.

    Args:
        config: Configuration of the run.
        output: Folder of the parts it writes.
        sums: Sums over all embeddings.
        blocks: References to the (unit, codes) of all shards.
        offsets: Place of each shard's first row in the canonical order, and the number of rows.
    """

    def __init__(
        self,
        config: LabelConfig,
        output: Location,
        sums: EmbeddingSums,
        blocks: Sequence[Any],
        offsets: NDArray[np.int64],
    ) -> None:
        self._config, self._output, self._sums = config, output, sums
        self._blocks, self._offsets = StoredBlocks(blocks), offsets
        self._reference: Reference | None = None

    def ready(self) -> None:
        """Return: the worker has started."""

    def label(self, tasks: Sequence[ShardTask]) -> list[PartRecord] | SddError:
        """Label some shards and write their parts; an error for the user is returned."""
        try:
            return [self._label(task) for task in tasks]
        except SddError as error:
            return error

    def _label(self, task: ShardTask) -> PartRecord:
        block = self._blocks[task.number]
        if len(block.unit) == 0:
            return write_part(self._output, task.name, RAW_LABELS.empty_table(), task.rejects)
        starts = np.flatnonzero(np.diff(block.identities, prepend=-1))
        shard = Shard(block.unit, np.append(starts, len(block.unit)), block.identities[starts])
        labelled = (
            self._exact(shard) if self._config.method == "exact" else self._sampled(shard, task)
        )
        return write_part(self._output, task.name, self._table(task, labelled), task.rejects)

    def _exact(self, shard: Shard) -> ShardDistances:
        if self._reference is None:
            self._reference = self._find_reference()
        return shard_distances(shard, self._sums, self._reference)

    def _find_reference(self) -> Reference:
        """Return everybody, or the random images that stand for everybody."""
        size, total = self._config.exact.reference_size, int(self._offsets[-1])
        if size is None or size >= total:
            return Reference(self._blocks, is_exhaustive=True)
        generator = np.random.default_rng(self._config.exact.seed)
        drawn = np.sort(generator.choice(total, size, replace=False))
        return Reference([self._rows_at(drawn)], is_exhaustive=False)

    def _sampled(self, shard: Shard, task: ShardTask) -> ShardDistances:
        statistics = shard_statistics(shard, self._sums)
        options = self._config.sampled
        plan = SamplingPlan(options.seed, options.rounds, options.per_image)
        digests = image_digests(task.image_ids.to_pylist())
        own = shard.group
        distances = [
            self._sampled_rows(shard.unit[rows], digests[rows], places, plan)
            for rows, places in _places(shard, own, task.offset, int(self._offsets[-1]))
        ]
        reason = np.where(
            statistics.num_mated == 0, 1, np.where(statistics.num_nonmated == 0, 2, 0)
        ).astype(np.int8)
        unknown = np.full(len(reason), np.nan)
        return ShardDistances(statistics, np.concatenate(distances), unknown, reason)

    def _sampled_rows(
        self,
        unit: NDArray[np.float32],
        digests: NDArray[np.uint64],
        places: Places,
        plan: SamplingPlan,
    ) -> NDArray[np.float64]:
        partners = draw(digests, places, plan)
        needed = np.unique(np.concatenate([side.ravel() for side in partners]))
        needed = needed[needed >= 0]
        pool = self._rows_at(needed).unit
        similarities = [
            partner_similarities(unit, pool, np.where(side < 0, -1, np.searchsorted(needed, side)))
            for side in partners
        ]
        return sampled_distances(*similarities)

    def _rows_at(self, places: NDArray[np.int64]) -> ReferenceBlock:
        """Return the rows at ascending places of the canonical order."""
        numbers = np.searchsorted(self._offsets, places, side="right") - 1
        units, codes = [], []
        for number in np.unique(numbers):
            block = self._blocks[number]
            rows = places[numbers == number] - self._offsets[number]
            units.append(block.unit[rows])
            codes.append(block.identities[rows])
        return ReferenceBlock(np.concatenate(units), np.concatenate(codes))

    def _table(self, task: ShardTask, labelled: ShardDistances) -> pa.Table:
        statistics = labelled.statistics
        reasons = [DISTANCE_REASONS[code] or None for code in labelled.reason]
        values = {
            "image_id": task.image_ids,
            "identity": task.identities,
            "distance": labelled.distance,
            "error_bound": labelled.error_bound,
            "method": [self._config.method] * len(reasons),
            "reason": reasons,
            **{
                name: getattr(statistics, name)
                for name in RAW_LABELS.names
                if hasattr(statistics, name)
            },
        }
        arrays = [_column(values[field.name], field.type) for field in RAW_LABELS]
        return pa.table(arrays, schema=RAW_LABELS)


def _column(values: Any, kind: pa.DataType) -> pa.Array:
    """Return an Arrow column; a number that is NaN because there is none becomes null."""
    if isinstance(values, pa.Array):
        return values
    return pa.array(values, kind, from_pandas=isinstance(values, np.ndarray))


def _places(
    shard: Shard, own: NDArray[np.int64], offset: int, total: int
) -> list[tuple[slice, Places]]:
    """Return the tiles of a shard, with the place of each row and of its identity."""
    tiles = []
    for first in range(0, len(own), _SAMPLED_ROWS):
        rows = slice(first, min(first + _SAMPLED_ROWS, len(own)))
        places = Places(
            position=offset + np.arange(rows.start, rows.stop),
            start=offset + shard.starts[own[rows]],
            stop=offset + shard.starts[own[rows] + 1],
            num_images=total,
        )
        tiles.append((rows, places))
    return tiles
