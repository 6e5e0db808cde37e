"""The actor of the audit, and its tasks: a few calls of numerics on blocks of embeddings.

A block is a run of whole identities: one shard of the plan, or all pieces of a large identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from sdd_ray.core.audit import (
    BlockSurvey,
    Identities,
    SurveyPlan,
    like_identities,
    match_shares,
    nearest_identity,
    survey_block,
)
from sdd_ray.core.levels import (
    Levels,
    nonmated_similarities,
    provisional_levels,
    trusted_levels,
)
from sdd_ray.core.near_duplicates import (
    HashPlan,
    Pairs,
    candidate_pairs,
    hash_rows,
    pair_similarities,
    pairs_above,
)
from sdd_ray.engine.label_plan import LabelShard
from sdd_ray.engine.shard_rows import Place, RowSource, other_size, read_unit_rows
from sdd_ray.errors import SddError


@dataclass(frozen=True)
class Sample:
    """Images drawn for the thresholds: embeddings, identities, and numbers of the images."""

    unit: NDArray[np.float32]
    codes: NDArray[np.int64]
    rows: NDArray[np.int64]


def load_block(
    source: RowSource,
    shards: Sequence[LabelShard],
    places: Sequence[Place],
    drawn: NDArray[np.int64],
) -> tuple[Any, Any]:
    """Return (unit, codes) of a block for the object store, and (sample, faults) for the driver.

    Args:
        source: Files of the rows.
        shards: Of the block.
        places: Where their rows lie.
        drawn: Rows of the block, before any is set aside, that belong to the sample.
    """
    try:
        parts = [read_unit_rows(source, place) for place in places]
        sizes = [unit.shape[1] for unit, _ in parts]
        if min(sizes) < max(sizes):
            number = int(np.argmax(np.array(sizes) != sizes[0]))
            file = source.origin(int(places[number].files[0]))
            raise other_size(file, sizes[number], sizes[0])
    except SddError as error:
        return None, error
    unit = np.concatenate([part for part, _ in parts])
    faults = np.concatenate([part for _, part in parts])
    usable = faults == 0
    codes = np.concatenate([shard.codes for shard in shards])[usable]
    rows = (np.cumsum(usable) - 1)[drawn[usable[drawn]]]
    return (unit, codes), (Sample(unit[rows], codes[rows], rows), faults)


class AuditWorker:
    """Works on blocks in Ray's object store, which on one node are not copied.

    Args:
        blocks: References to (unit, codes), one a block.
    """

    def __init__(self, blocks: Sequence[Any]) -> None:
        self._blocks = blocks

    def ready(self) -> None:
        """Return: the worker has started."""

    def survey(self, block: int, plan: SurveyPlan) -> tuple[int, BlockSurvey]:
        """Return what the similarities within the identities of a block say."""
        return block, survey_block(*self._block(block), plan)

    def nearest(
        self,
        block: int,
        rows: NDArray[np.int64],
        identities: Identities,
        person: NDArray[np.int64],
        match: float,
    ) -> tuple[int, NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """Return the nearest other identity of some rows of a block, and shares that match."""
        unit, codes = self._block(block)
        nearest, similarity = nearest_identity(unit[rows], codes[rows], identities, person)
        return block, nearest, similarity, match_shares(unit, codes, rows, match)

    def like_identities(
        self,
        tiles: tuple[slice, slice],
        identities: Identities,
        factors: NDArray[np.float32],
        limits: tuple[float, float],
    ) -> Pairs:
        """Return pairs of identities of two tiles that may be one person."""
        return like_identities(identities, factors, tiles, *limits)

    def image_pairs(self, blocks: tuple[int, int], limit: float) -> tuple[tuple[int, int], Pairs]:
        """Return near-duplicates under different identities between two blocks, by their rows."""
        (left, left_codes), (right, right_codes) = (self._block(block) for block in blocks)
        i, j, values = pairs_above(left, right, limit, is_same=blocks[0] == blocks[1])
        kept = left_codes[i] != right_codes[j]
        return blocks, (i[kept], j[kept], values[kept])

    def similarities(
        self, blocks: tuple[int, int], rows: tuple[NDArray[np.int64], NDArray[np.int64]]
    ) -> tuple[tuple[int, int], Pairs]:
        """Return candidate pairs between two blocks with their similarities."""
        left, right = (self._block(block)[0] for block in blocks)
        return blocks, (*rows, pair_similarities(left[rows[0]], right[rows[1]]))

    def hashes(self, block: int, plan: HashPlan, seed: int) -> list[Any]:
        """Return the number of rows of a block, the keys of each table, and the check signs."""
        unit, _ = self._block(block)
        keys, check = hash_rows(unit, plan, seed)
        return [len(unit), *keys, check]

    def candidates(
        self,
        keys: Sequence[Any],
        checks: Sequence[Any],
        codes: NDArray[np.int64],
        max_differing: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return candidate pairs of one table; keys and checks are references, one a block."""
        key, check = (np.concatenate(ray.get(list(side))) for side in (keys, checks))
        return candidate_pairs(key, check, codes, max_differing)

    def provisional(self, sample: Sample, rates: tuple[float, float]) -> Levels:
        """Return the provisional levels of the set."""
        return provisional_levels(nonmated_similarities(sample.unit, sample.codes), *rates)

    def trusted(self, sample: Sample, levels: Levels, fmr: float) -> tuple[Levels, int]:
        """Return the levels from trusted images, and the comparisons; `codes` are people."""
        nonmated = nonmated_similarities(sample.unit, sample.codes)
        return trusted_levels(nonmated, levels, fmr), len(nonmated)

    def _block(self, block: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        unit, codes = ray.get(self._blocks[block])
        return unit, codes


def strings(arrays: Sequence[pa.Array]) -> pa.Array:
    """Return all keys of several shards as one array."""
    return pa.concat_arrays([pa.array(array).cast(pa.large_string()) for array in arrays])
