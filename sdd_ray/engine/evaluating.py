"""Compare the images of a set with each other on Ray."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from sdd_ray.columns import EMBEDDING, IDENTITY, IMAGE_ID
from sdd_ray.core.comparisons import (
    ComparedPairs,
    compare_tile,
    count_nonmated,
    largest_of_tile,
    mated_pairs,
    sampled_nonmated,
    similarities_between,
)
from sdd_ray.core.discarding import TopNonmated
from sdd_ray.core.ranked_sides import ComparedSides
from sdd_ray.core.similarity import check_embeddings, normalise
from sdd_ray.engine.progress import Progress
from sdd_ray.engine.tasks import on_fetched, run_tasks
from sdd_ray.errors import InputError
from sdd_ray.settings import ComparisonsConfig
from sdd_ray.store.dataset import Dataset, embedding_matrix, read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import INCOMPLETE, MANIFEST

_ROWS_PER_TILE = 256
_PAIRS_PER_TASK = 500_000
_HELD = 20_000_000
"""Nonmated comparisons that are held; of more, only the largest are."""
_SAMPLE = 2_000_000
"""Of those that are not held: to find where to cut, and for the figure of their distribution."""
_SPARE = 4.0
"""Times as many are kept as the largest rate lets through: after a discard that spares false
matches, the threshold lies deeper than before."""
_LEAST_SPARE = 2.5
"""The same where memory allows no more."""
_LEAST_KEPT = 1_000_000
"""For small rates, which let so few through that chance decides how deep a threshold lies."""
MOST_KEPT = 150_000_000


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
        top: The largest of all nonmated comparisons, where these were too many to be held;
            `nonmated` is a sample of them then.
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
    top: TopNonmated | None = None

    @property
    def num_made(self) -> int:
        """Nonmated comparisons made."""
        return len(self.nonmated.first) if self.top is None else self.top.size

    def sides(self, fmrs: Sequence[float], least: int = 0) -> ComparedSides:
        """Return the comparisons ready to be assessed at some false match rates.

        Args:
            fmrs: The rates.
            least: How many of the largest nonmated similarities are sorted at least, where all are
                held.
        """
        if self.top is None:
            return ComparedSides.of(self.mated, self.nonmated, fmrs, least)
        return ComparedSides(self.mated, self.top)

    def among(self, kept: NDArray[np.bool_]) -> "ComparedSet":
        """Return the comparisons between some of the images, as if the others had not been there.

        Args:
            kept: (N,) whether an image stays.

        Raises:
            InputError: No mated or no nonmated comparison is left.
        """
        rows = np.flatnonzero(kept)
        place = np.cumsum(kept, dtype=np.int32) - 1
        mated, nonmated = (_between(pairs, kept, place) for pairs in (self.mated, self.nonmated))
        for kind, pairs in (("mated", mated), ("nonmated", nonmated)):
            if len(pairs.first) == 0:
                raise InputError(
                    f"{len(rows)} of {len(kept)} images have a quality by every method, and make no"
                    f" {kind} comparison; see failures"
                )
        codes = np.unique(self.codes[rows], return_inverse=True)[1].astype(np.int64)
        all_made = self.num_nonmated == len(self.nonmated.first)
        total = len(nonmated.first) if all_made else count_nonmated(codes)
        top = self.top
        if top is not None:
            largest = ComparedPairs(top.first, top.second, top.sorted.astype(np.float32))
            pairs = _between(largest, kept, place)
            top = TopNonmated(total, pairs.first, pairs.second, pairs.similarities)
        members = self.members
        if members is not None:
            inside = kept[members.templates]
            ids = [name for name, stays in zip(members.image_ids, inside, strict=True) if stays]
            members = Members(ids, place[members.templates[inside]].astype(np.int64))
        names = self.identities
        return replace(
            self,
            image_ids=[self.image_ids[row] for row in rows],
            codes=codes,
            unit=None if self.unit is None else self.unit[rows],
            mated=mated,
            nonmated=nonmated,
            num_nonmated=total,
            members=members,
            identities=None if names is None else [names[row] for row in rows],
            top=top,
        )


def compare_all(
    dataset: Dataset, config: ComparisonsConfig, fmrs: Sequence[float], depth: int = 1
) -> ComparedSet:
    """Return the comparisons between the images of the configured identities.

    Args:
        dataset: Embeddings.
        config: Which identities, and how many nonmated comparisons.
        fmrs: False match rates that will be asked for.
        depth: Times as many of the largest similarities are kept as usual, where not all are held.

    Raises:
        InputError: No mated or no nonmated comparison can be made, or a file is damaged.
    """
    wanted: pa.Array | None = None
    if config.splits is not None:
        splits = _read_splits(Location(config.splits).absolute())
        wanted = splits.filter(pc.equal(splits["part"], config.part))[IDENTITY].combine_chunks()

    def some(rows: pa.Table) -> pa.Table:  # at once: the embeddings of all need not fit in memory
        names = rows[IDENTITY]
        return rows.filter(pc.is_valid(names) if wanted is None else pc.is_in(names, wanted))

    table = dataset.read([IMAGE_ID, IDENTITY, EMBEDDING], some).sort_by(IMAGE_ID).combine_chunks()
    uri = dataset.location.uri
    if table.num_rows == 0:
        raise InputError(f"{uri}: no image of the identities to compare")
    unit = _unit(embedding_matrix(table[EMBEDDING]), uri)
    codes = np.asarray(pc.dictionary_encode(table[IDENTITY]).combine_chunks().indices, np.int64)
    ids, people = table[IMAGE_ID].to_pylist(), table[IDENTITY].to_pylist()
    total = count_nonmated(codes)
    ends = mated_pairs(codes)
    for kind, number in (("mated", len(ends[0])), ("nonmated", total)):
        if number == 0:
            raise InputError(f"{uri}: {table.num_rows} images make no {kind} comparison")
    limit = config.max_nonmated
    if total <= (_HELD if limit is None else limit):
        tiles = _tiles(unit, codes)
        mated, nonmated = (_joined([tile[side] for tile in tiles]) for side in (0, 1))
        return ComparedSet(ids, codes, unit, mated, nonmated, total, identities=people)
    mated = _compared(unit, *ends)
    drawn = sampled_nonmated(codes, limit or _SAMPLE, config.seed)
    sample = _compared(unit, *drawn)
    top = None if limit is not None else _largest(unit, codes, sample, max(fmrs), depth)
    return ComparedSet(ids, codes, unit, mated, sample, total, identities=people, top=top)


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
    unit: NDArray[np.float32], codes: NDArray[np.int64]
) -> list[tuple[ComparedPairs, ComparedPairs]]:
    held = [ray.put(unit), ray.put(codes)]
    return _by_rows("compare", compare_tile, held, len(unit), (1.0, 0))


def _compared(
    unit: NDArray[np.float32], first: NDArray[np.int32], second: NDArray[np.int32]
) -> ComparedPairs:
    """Return the comparisons of pairs of images."""
    task: Any = ray.remote(on_fetched).options(num_cpus=1, name="compare pairs")
    held = [ray.put(unit)]
    starts = range(0, len(first), _PAIRS_PER_TASK)
    parts = [slice(start, start + _PAIRS_PER_TASK) for start in starts]
    calls = (
        (partial(task.remote, similarities_between, held, first[part], second[part]), None)
        for part in parts
    )
    progress = Progress("compare", len(first), unit="comparisons")
    found = []
    for similarities, _ in run_tasks(calls):
        found.append(similarities)
        progress.update(len(found[-1]))
    progress.close()
    return ComparedPairs(first, second, np.concatenate(found).astype(np.float32))


def _largest(
    unit: NDArray[np.float32],
    codes: NDArray[np.int64],
    sample: ComparedPairs,
    fmr: float,
    depth: int,
) -> TopNonmated:
    """Return the largest of all nonmated similarities, found tile by tile.

    What is kept is some times what the largest false match rate lets through; where to cut is
    estimated from the sample.
    """
    total = count_nonmated(codes)
    least = min(_LEAST_SPARE * fmr * total, total)
    if least > MOST_KEPT:
        raise InputError(
            f"fmr={fmr:g} of all {total:,} nonmated comparisons needs the {least:,.0f} largest in"
            f" memory, more than {MOST_KEPT:,}; ask for smaller rates, or for a sample"
            " (comparisons.max_nonmated)"
        )
    wanted = min(depth * max(_SPARE * fmr * total, _LEAST_KEPT), MOST_KEPT)
    cutoff = -math.inf  # everything
    if wanted < total:
        cutoff = float(np.quantile(sample.similarities, 1 - wanted / total))
    held = [ray.put(unit), ray.put(codes)]
    tiles = _by_rows("compare", largest_of_tile, held, len(unit), (cutoff,))
    pairs = _joined(tiles)
    order = np.argsort(-pairs.similarities, kind="stable")
    return TopNonmated(total, pairs.first[order], pairs.second[order], pairs.similarities[order])


def _by_rows(
    name: str, function: Any, held: list[Any], images: int, rest: tuple[Any, ...]
) -> list[Any]:
    """Return what a function of held objects, first and last row makes of each tile, by tasks."""
    task: Any = ray.remote(on_fetched).options(num_cpus=1, name=name)
    starts = range(0, images, _ROWS_PER_TILE)
    tiles_of = [(start, min(start + _ROWS_PER_TILE, images)) for start in starts]
    calls = ((partial(task.remote, function, held, rows, *rest), rows) for rows in tiles_of)
    progress = Progress(name, images)
    tiles = []
    for tile, (first, last) in run_tasks(calls):
        tiles.append(tile)
        progress.update(last - first)
    progress.close()
    return tiles


def _joined(parts: Sequence[ComparedPairs]) -> ComparedPairs:
    return ComparedPairs(
        np.concatenate([p.first for p in parts]),
        np.concatenate([p.second for p in parts]),
        np.concatenate([p.similarities for p in parts]),
    )


def _between(
    pairs: ComparedPairs, kept: NDArray[np.bool_], place: NDArray[np.int32]
) -> ComparedPairs:
    """Return the pairs of images that stay, by their new places."""
    stay = kept[pairs.first] & kept[pairs.second]
    first, second = (place[end[stay]] for end in (pairs.first, pairs.second))
    return ComparedPairs(first, second, pairs.similarities[stay])
