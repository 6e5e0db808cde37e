"""Compare the images of a set with each other on Ray."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from sdd_ray.columns import EMBEDDING, IDENTITY, IMAGE_ID
from sdd_ray.core.comparisons import ComparedPairs, compare_tile, count_nonmated
from sdd_ray.core.similarity import check_embeddings, normalise
from sdd_ray.engine.progress import Progress
from sdd_ray.errors import InputError
from sdd_ray.settings import ComparisonsConfig
from sdd_ray.store.dataset import Dataset, embedding_matrix, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import INCOMPLETE, MANIFEST

_ROWS_PER_TILE = 256


@dataclass(frozen=True, eq=False)
class Members:
    """The images of templates.

    Attributes:
        image_ids: (I,) keys; an image may be in several templates.
        templates: (I,) number of the template of each.
    """

    image_ids: list[str]
    templates: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ComparedSet:
    """The images of an evaluation and their comparisons.

    Attributes:
        image_ids: (N,) sorted keys; names of templates where `members` is given.
        codes: (N,) number of the identity of each image.
        unit: (N, D) embeddings of unit length; None where similarities were given.
        mated, nonmated: Comparisons made.
        num_nonmated: Nonmated comparisons there are; fewer may have been made.
        members: What the templates consist of, or None.
        counts: What was left out, by reason.
        identities: (N,) names of the people, None where the comparisons alone say who is who.
    """

    image_ids: list[str]
    codes: NDArray[np.int64]
    unit: NDArray[np.float32] | None
    mated: ComparedPairs
    nonmated: ComparedPairs
    num_nonmated: int
    members: Members | None = None
    counts: dict[str, int] = field(default_factory=dict)
    identities: list[str] | None = None


def compare_all(dataset: Dataset, config: ComparisonsConfig) -> ComparedSet:
    """Return the comparisons between the images of the configured identities.

    Raises:
        InputError: No mated or no nonmated comparison can be made, or a file is damaged.
    """
    table = dataset.read([IMAGE_ID, IDENTITY, EMBEDDING])
    if config.splits is not None:
        splits = _read_splits(Location(config.splits).absolute())
        wanted = splits.filter(pc.equal(splits["part"], config.part))[IDENTITY]
        table = table.filter(pc.is_in(table[IDENTITY], wanted.combine_chunks()))
    table = table.filter(pc.is_valid(table[IDENTITY])).sort_by(IMAGE_ID).combine_chunks()
    uri = dataset.location.uri
    if table.num_rows == 0:
        raise InputError(f"{uri}: no image of the identities to compare")
    unit = _unit(embedding_matrix(table[EMBEDDING]), uri)
    codes = np.asarray(pc.dictionary_encode(table[IDENTITY]).combine_chunks().indices, np.int64)
    total = count_nonmated(codes)
    limit = config.max_nonmated
    share = 1.0 if limit is None or total <= limit else limit / total
    tiles = _tiles(unit, codes, share, config.seed)
    mated, nonmated = (_joined([tile[side] for tile in tiles]) for side in (0, 1))
    for kind, pairs in (("mated", mated), ("nonmated", nonmated)):
        if len(pairs.similarities) == 0:
            raise InputError(f"{uri}: {table.num_rows} images make no {kind} comparison")
    ids = table[IMAGE_ID].to_pylist()
    people = table[IDENTITY].to_pylist()
    return ComparedSet(ids, codes, unit, mated, nonmated, total, identities=people)


def _read_splits(file: Location) -> pa.Table:
    folder = Location(file.uri.rpartition("/")[0])
    if (folder / INCOMPLETE).exists() and not (folder / MANIFEST).exists():
        raise InputError(f"{file.uri} is of a model that is not complete: train it to the end")
    return read_parquet(file, [IDENTITY, "part"])


def _unit(embeddings: NDArray[np.float32], uri: str) -> NDArray[np.float32]:
    """Return the rows scaled to unit length, which float16 storage takes from them."""
    faulty = int(np.count_nonzero(check_embeddings(embeddings)))
    if faulty:
        raise InputError(f"{uri}: {faulty} embeddings are zero or not finite")
    return normalise(embeddings)[0]


def _tiles(
    unit: NDArray[np.float32], codes: NDArray[np.int64], share: float, seed: int
) -> list[tuple[ComparedPairs, ComparedPairs]]:
    task = ray.remote(compare_tile).options(num_cpus=1, name="compare")
    data = (ray.put(unit), ray.put(codes))
    starts = range(0, len(unit), _ROWS_PER_TILE)
    refs = [
        task.remote(*data, (s, min(s + _ROWS_PER_TILE, len(unit))), share, seed) for s in starts
    ]
    progress = Progress("compare", len(unit))
    tiles = []
    for ref, start in zip(refs, starts, strict=True):
        tiles.append(ray.get(ref))
        progress.update(min(_ROWS_PER_TILE, len(unit) - start))
    progress.close()
    return tiles


def _joined(parts: Sequence[ComparedPairs]) -> ComparedPairs:
    return ComparedPairs(
        np.concatenate([p.first for p in parts]),
        np.concatenate([p.second for p in parts]),
        np.concatenate([p.similarities for p in parts]),
    )
