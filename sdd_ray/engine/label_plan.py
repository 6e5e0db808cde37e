"""Plan the label stage: which rows take part, in which order, and in which shards.

The canonical order is by (identity, image_id), and a shard is a run of whole identities. Both
follow from the keys alone, so the plan is the same however the embeddings are split over files. The
plan holds keys and positions, never an embedding.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sdd_ray.columns import CONTENT, IDENTITY, IMAGE_ID
from sdd_ray.errors import InputError
from sdd_ray.store.dataset import Dataset, read_parquet_with_groups
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

ROWS_PER_SHARD = 8192
"""A shard is closed once it holds this many rows, and an identity of more than twice as many is cut
into shards of so many. A constant, because results are bit-equal only for equal shards; one shard
of 512 float32 is 16 MiB."""

_KEYS = pa.schema(
    [(IMAGE_ID, pa.large_string()), (IDENTITY, pa.large_string()), (CONTENT, pa.uint64())]
)
_READERS = 8  # files whose keys are read at the same time


@dataclass(frozen=True)
class LabelShard:
    """One shard of N rows in canonical order: whole identities, or a piece of a large one.

    image_ids, identities: the keys, (N,). codes: (N,) number of the identity in the whole set.
    files, rows: (N,) file number and row in it, where the embedding lies. family: numbers of the
    first shard and after the last one that hold its identities; more than one for a piece.
    """

    number: int
    image_ids: pa.Array
    identities: pa.Array
    codes: NDArray[np.int64]
    files: NDArray[np.int32]
    rows: NDArray[np.int64]
    family: tuple[int, int]


@dataclass(frozen=True)
class LabelPlan:
    """All shards, what was set aside before any embedding was read, and duplicates kept.

    row_groups: for each file the rows at which its row groups begin, and their number.
    """

    files: tuple[Location, ...]
    row_groups: tuple[NDArray[np.int64], ...]
    shards: list[LabelShard]
    rejects: list[Reject]
    num_identities: int
    duplicates_across_identities: int

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return sum(len(shard.codes) for shard in self.shards)


def plan_labels(dataset: Dataset, drop_duplicates: bool) -> LabelPlan:
    """Return the plan for a dataset of embeddings.

    Args:
        dataset: Embeddings.
        drop_duplicates: Set aside images whose pixels equal those of an earlier image of the same
            identity; earlier means first in canonical order.

    Raises:
        InputError: The dataset holds no usable row, or a file is damaged.
    """
    keys, row_groups = _read_keys(dataset)
    if keys.num_rows == 0:
        raise InputError(f"{dataset.location.uri} holds no embeddings")
    keys, rejects = _set_aside(keys, _keyless(keys), "no_identity", "image_id or identity is null")
    keys = _sorted(keys.combine_chunks())
    keys, twice = _set_aside(
        keys, _repeated(keys[IMAGE_ID]), "duplicate_image_id", "key not unique"
    )
    rejects += twice
    if drop_duplicates:
        detail = "equal pixels to another image of the identity"
        keys, equal = _set_aside(keys, _equal_before(keys), "duplicate_image", detail)
        rejects += equal
    if keys.num_rows == 0:
        raise InputError(f"{dataset.location.uri}: every row had to be set aside, see reasons")
    codes = _codes(keys[IDENTITY])
    shards = [
        _shard(number, keys.slice(start, stop - start), codes[start:stop], family)
        for number, (start, stop, family) in enumerate(shard_bounds(codes))
    ]
    shared = _shared_content(keys)
    num_identities = int(codes[-1]) + 1
    del keys
    pa.default_memory_pool().release_unused()  # else the copies of keys count until the end
    return LabelPlan(dataset.files, row_groups, shards, rejects, num_identities, shared)


def shard_bounds(codes: NDArray[np.int64]) -> list[tuple[int, int, tuple[int, int]]]:
    """Return (start, stop, family) of all shards.

    A shard is a run of whole identities of at least ROWS_PER_SHARD rows, or a piece of an identity
    of more than twice that; the pieces of an identity are one family.

    Args:
        codes: (N,) identity of each row, in ascending order.
    """
    ends = np.append(np.flatnonzero(np.diff(codes)) + 1, len(codes))
    large = 2 * ROWS_PER_SHARD
    bounds: list[tuple[int, int, tuple[int, int]]] = []
    start = place = 0
    for end, before in zip(ends.tolist(), [0, *ends.tolist()[:-1]], strict=True):
        if end - before > large:
            if before > start:
                bounds.append((start, before, (place, place + 1)))
                place += 1
            cuts = [*range(before, end, ROWS_PER_SHARD), end]
            family = (place, place + len(cuts) - 1)
            bounds += [(a, b, family) for a, b in pairwise(cuts)]
            start, place = end, family[1]
        elif end - start >= ROWS_PER_SHARD:
            bounds.append((start, end, (place, place + 1)))
            start, place = end, place + 1
    if start < len(codes):
        bounds.append((start, len(codes), (place, place + 1)))
    return bounds


def _read_keys(dataset: Dataset) -> tuple[pa.Table, tuple[NDArray[np.int64], ...]]:
    if not dataset.files:
        raise InputError(f"{dataset.location.uri} holds no Parquet file")
    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(_keys_of, range(len(dataset.files)), dataset.files))
    return pa.concat_tables([part for part, _ in found]), tuple(groups for _, groups in found)


def _keys_of(number: int, file: Location) -> tuple[pa.Table, NDArray[np.int64]]:
    part, sizes = read_parquet_with_groups(file, [IMAGE_ID, IDENTITY, CONTENT])
    # Strings of many rows together may need more than 2 GiB.
    part = part.cast(_KEYS)
    place = {
        "file": pa.array(np.full(part.num_rows, number, np.int32)),
        "row": pa.array(np.arange(part.num_rows, dtype=np.int64)),
    }
    for name, values in place.items():
        part = part.append_column(name, values)
    return part, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _sorted(keys: pa.Table) -> pa.Table:
    """Return the keys in canonical order; embed mostly writes them so."""
    identity, image_id = keys[IDENTITY], keys[IMAGE_ID]
    if keys.num_rows < 2 or _is_sorted(identity, image_id):
        return keys
    order = pc.sort_indices(keys, sort_keys=[(IDENTITY, "ascending"), (IMAGE_ID, "ascending")])
    return keys.take(order).combine_chunks()


def _is_sorted(identity: pa.ChunkedArray, image_id: pa.ChunkedArray) -> bool:
    before, after = identity.slice(0, len(identity) - 1), identity.slice(1)
    rises = pc.less(before, after)
    in_order = pc.less_equal(image_id.slice(0, len(image_id) - 1), image_id.slice(1))
    same = pc.equal(before, after)
    return bool(pc.all(pc.or_(rises, pc.and_(same, in_order))).as_py())


def _set_aside(
    keys: pa.Table, bad: NDArray[np.bool_], reason: str, detail: str
) -> tuple[pa.Table, list[Reject]]:
    if not bad.any():
        return keys, []
    ids = keys.filter(pa.array(bad))[IMAGE_ID].to_pylist()
    kept = keys.filter(pa.array(~bad)).combine_chunks()
    return kept, [Reject(image_id or "", reason, detail) for image_id in ids]


def _keyless(keys: pa.Table) -> NDArray[np.bool_]:
    missing = pc.or_(pc.is_null(keys[IMAGE_ID]), pc.is_null(keys[IDENTITY]))
    return np.asarray(missing)


def _repeated(ids: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Mark every row whose image_id occurs more than once: which one is right is unknown."""
    rises = pc.less(ids.slice(0, max(len(ids) - 1, 0)), ids.slice(min(1, len(ids))))
    if pc.all(rises).as_py() is not False:  # as where ids begin with their identity
        return np.zeros(len(ids), bool)
    codes = np.asarray(pc.dictionary_encode(ids).combine_chunks().indices)
    repeated: NDArray[np.bool_] = np.bincount(codes)[codes] > 1
    return repeated


def _equal_before(keys: pa.Table) -> NDArray[np.bool_]:
    """Mark rows of which an earlier row has the same identity and the same pixels."""
    marked = np.zeros(keys.num_rows, bool)
    rows, content, codes = _of_repeated_content(keys)
    order = np.lexsort((rows, content, codes))
    same = (np.diff(codes[order]) == 0) & (np.diff(content[order]) == 0)
    marked[rows[order[1:][same]]] = True
    return marked


def _shared_content(keys: pa.Table) -> int:
    """Return how many images have pixels that also stand under another identity."""
    _, content, codes = _of_repeated_content(keys)
    if len(content) == 0:
        return 0
    pairs = np.unique(np.stack([content, codes.astype(np.uint64)]), axis=1)
    values, people = np.unique(pairs[0], return_counts=True)
    return int(np.isin(content, values[people > 1]).sum())


def _of_repeated_content(
    keys: pa.Table,
) -> tuple[NDArray[np.intp], NDArray[np.uint64], NDArray[np.int64]]:
    """Return the rows whose pixels occur more than once, their content, and their identities."""
    content = np.asarray(keys[CONTENT])
    ordered = np.sort(content)
    repeated = np.unique(ordered[1:][np.diff(ordered) == 0])
    rows = np.flatnonzero(np.isin(content, repeated)) if len(repeated) else np.zeros(0, np.intp)
    if len(rows) == 0:
        return rows, content[rows], np.zeros(0, np.int64)
    return rows, content[rows], _codes(keys[IDENTITY])[rows]


def _codes(identities: pa.ChunkedArray) -> NDArray[np.int64]:
    """Number identities in order of appearance; the column is sorted."""
    encoded = pc.dictionary_encode(identities).combine_chunks()
    return np.asarray(encoded.indices).astype(np.int64)


def _shard(
    number: int, keys: pa.Table, codes: NDArray[np.int64], family: tuple[int, int]
) -> LabelShard:
    # `take` copies: a slice would travel to a worker with the buffers of the whole set.
    keys = keys.take(pa.array(np.arange(keys.num_rows)))
    return LabelShard(
        number=number,
        image_ids=keys[IMAGE_ID].cast(pa.string()).combine_chunks(),
        identities=keys[IDENTITY].cast(pa.string()).combine_chunks(),
        codes=codes.copy(),
        files=np.asarray(keys["file"]),
        rows=np.asarray(keys["row"]),
        family=family,
    )
