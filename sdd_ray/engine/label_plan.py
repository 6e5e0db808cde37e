"""Plan the label stage: which rows take part, in which order, and in which shards.

The canonical order is by (identity, image_id), and a shard is a run of whole identities. Both
follow from the keys alone, so the plan is the same however the embeddings are split over files. The
plan holds keys and positions, never an embedding.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sdd_ray.columns import CONTENT, IDENTITY, IMAGE_ID
from sdd_ray.errors import InputError
from sdd_ray.store.dataset import Dataset
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject

ROWS_PER_SHARD = 4096
"""A shard is closed once it holds this many rows. A constant, because results are bit-equal only
for equal shards; one shard of 512 float32 is 8 MiB."""


@dataclass(frozen=True)
class LabelShard:
    """One shard of whole identities, N rows in canonical order.

    image_ids, identities: the keys, (N,). codes: (N,) number of the identity in the whole set.
    files, rows: (N,) file number and row in it, where the embedding lies.
    """

    number: int
    image_ids: pa.Array
    identities: pa.Array
    codes: NDArray[np.int64]
    files: NDArray[np.int32]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class LabelPlan:
    """All shards, what was set aside before any embedding was read, and duplicates kept."""

    files: tuple[Location, ...]
    shards: list[LabelShard]
    rejects: list[Reject]
    num_identities: int
    duplicates_across_identities: int


def plan_labels(dataset: Dataset, drop_duplicates: bool) -> LabelPlan:
    """Return the plan for a dataset of embeddings.

    Args:
        dataset: Embeddings.
        drop_duplicates: Set aside images whose pixels equal those of an earlier image of the same
            identity; earlier means first in canonical order.

    Raises:
        InputError: The dataset holds no usable row, or a file is damaged.
    """
    keys = _read_keys(dataset)
    if keys.num_rows == 0:
        raise InputError(f"{dataset.location.uri} holds no embeddings")
    keys, rejects = _set_aside(keys, _keyless(keys), "no_identity", "image_id or identity is null")
    order = pc.sort_indices(keys, sort_keys=[(IDENTITY, "ascending"), (IMAGE_ID, "ascending")])
    keys = keys.take(order).combine_chunks()
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
        _shard(number, keys.slice(start, stop - start), codes[start:stop])
        for number, (start, stop) in enumerate(shard_bounds(codes))
    ]
    return LabelPlan(dataset.files, shards, rejects, int(codes[-1]) + 1, _shared_content(keys))


def shard_bounds(codes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return (start, stop) of runs of whole identities of at least `ROWS_PER_SHARD` rows.

    Args:
        codes: (N,) identity of each row, in ascending order.
    """
    ends = np.append(np.flatnonzero(np.diff(codes)) + 1, len(codes))
    bounds: list[tuple[int, int]] = []
    start = 0
    while start < len(codes):
        place = int(np.searchsorted(ends, min(start + ROWS_PER_SHARD, len(codes))))
        bounds.append((start, int(ends[place])))
        start = bounds[-1][1]
    return bounds


def _read_keys(dataset: Dataset) -> pa.Table:
    tables = []
    for number, file in enumerate(dataset.files):
        part = Dataset(dataset.location, (file,), dataset.manifest).read(
            [IMAGE_ID, IDENTITY, CONTENT]
        )
        place = {
            "file": pa.array(np.full(part.num_rows, number, np.int32)),
            "row": pa.array(np.arange(part.num_rows, dtype=np.int64)),
        }
        for name, values in place.items():
            part = part.append_column(name, values)
        tables.append(part)
    if not tables:
        raise InputError(f"{dataset.location.uri} holds no Parquet file")
    return pa.concat_tables(tables)


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
    codes = np.asarray(pc.dictionary_encode(ids).combine_chunks().indices)
    return np.bincount(codes)[codes] > 1 if len(codes) else np.zeros(0, bool)


def _equal_before(keys: pa.Table) -> NDArray[np.bool_]:
    """Mark rows of which an earlier row has the same identity and the same pixels."""
    codes, content = _codes(keys[IDENTITY]), np.asarray(keys[CONTENT])
    order = np.lexsort((np.arange(len(codes)), content, codes))
    same = (np.diff(codes[order]) == 0) & (np.diff(content[order]) == 0)
    marked = np.zeros(len(codes), bool)
    marked[order[1:][same]] = True
    return marked


def _shared_content(keys: pa.Table) -> int:
    """Return how many images have pixels that also stand under another identity."""
    codes, content = _codes(keys[IDENTITY]), np.asarray(keys[CONTENT])
    pairs = np.unique(np.stack([content, codes.astype(np.uint64)]), axis=1)
    values, people = np.unique(pairs[0], return_counts=True)
    return int(np.isin(content, values[people > 1]).sum())


def _codes(identities: pa.ChunkedArray) -> NDArray[np.int64]:
    """Number identities in order of appearance; the column is sorted."""
    encoded = pc.dictionary_encode(identities).combine_chunks()
    return np.asarray(encoded.indices).astype(np.int64)


def _shard(number: int, keys: pa.Table, codes: NDArray[np.int64]) -> LabelShard:
    # `take` copies: a slice would travel to a worker with the buffers of the whole set.
    keys = keys.take(pa.array(np.arange(keys.num_rows)))
    return LabelShard(
        number=number,
        image_ids=keys[IMAGE_ID].combine_chunks(),
        identities=keys[IDENTITY].combine_chunks(),
        codes=codes,
        files=np.asarray(keys["file"]),
        rows=np.asarray(keys["row"]),
    )
