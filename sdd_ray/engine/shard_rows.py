"""Reading the rows of a label shard, wherever they lie; and bringing scattered rows together.

embed writes images in the order of its listing, which mostly is the order by identity: a shard then
is a few row groups of one or two files, and is read from them. Where the rows of shards are spread
too widely for that, every file is read once and its rows are written again in canonical order
(`regroup`): what a shard needs of it lies side by side.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray

from sdd_ray.columns import EMBEDDING
from sdd_ray.core.similarity import usable_rows
from sdd_ray.engine.label_plan import LabelPlan
from sdd_ray.engine.progress import Progress
from sdd_ray.engine.tasks import run_tasks
from sdd_ray.errors import InputError, SddError
from sdd_ray.store.dataset import embedding_matrix, read_row_groups
from sdd_ray.store.location import Location
from sdd_ray.store.run import READ_AT_ONCE

MAX_DECODED = 2.5
"""Rows decoded to read all shards, over their number, above which rows are regrouped first."""

ROWS_PER_BATCH = 1 << 16
"""Rows that are regrouped at once, and lie in one file afterwards, or one source file's."""
_HEAD_BYTES = 128
"""Of a .npy file of two dimensions: what numpy writes before the numbers."""


@dataclass(frozen=True)
class Place:
    """Where the rows of one shard lie: for each file its rows in the order of the shard.

    Attributes:
        files: (N,) number of the file of each row. rows: (N,) row in it.
    """

    files: NDArray[np.int32]
    rows: NDArray[np.int64]


class ArrayForm(NamedTuple):
    """Of a .npy file: byte at which the rows begin, numbers in a row, their type."""

    begin: int
    width: int
    kind: np.dtype[Any]


@dataclass(frozen=True)
class RowSource:
    """The files that hold the rows of all shards.

    Attributes:
        files: Parquet files, or files of regrouped rows.
        row_groups: For each Parquet file the rows at which its row groups begin, and their number;
            None for regrouped rows.
        origins: For each file of regrouped rows the first file of the dataset that is in it, which
            errors name; None for Parquet files.
        forms: Of each file of regrouped rows, so that a slice is one request; () for Parquet files.
    """

    files: tuple[Location, ...]
    row_groups: tuple[NDArray[np.int64], ...] | None
    origins: tuple[Location, ...] | None = None
    forms: tuple[ArrayForm, ...] = ()

    def read(self, place: Place) -> NDArray[Any]:
        """Return (N, d) embeddings as they are stored.

        Raises:
            InputError: A file is damaged, or embeddings have different lengths.
        """
        matrix: NDArray[Any] | None = None
        in_order = bool((np.diff(place.files) >= 0).all())
        for number in np.unique(place.files):
            ends = np.searchsorted(place.files, [number, number + 1]) if in_order else (0, 0)
            wanted = slice(*ends) if in_order else place.files == number
            part = self._read(int(number), place.rows[wanted])
            if matrix is None:
                matrix = np.empty((len(place.rows), part.shape[1]), part.dtype)
            if part.shape[1] != matrix.shape[1]:
                raise other_size(self.origin(number), part.shape[1], matrix.shape[1])
            matrix[wanted] = part
        return np.zeros((0, 1), np.float32) if matrix is None else matrix

    def origin(self, number: int) -> Location:
        """Return the file of the dataset to name in an error about a file."""
        return (self.origins or self.files)[number]

    def _read(self, number: int, rows: NDArray[np.int64]) -> NDArray[Any]:
        file = self.files[number]
        if self.row_groups is None:
            return _read_array(file, self.forms[number], rows)
        starts = self.row_groups[number]
        place = np.searchsorted(starts, rows, side="right") - 1
        groups = np.unique(place)
        column = read_row_groups(file, groups.tolist(), [EMBEDDING])[EMBEDDING]
        try:
            matrix = embedding_matrix(column)
        except InputError as error:
            raise InputError(f"{file.uri}: {error}") from error
        sizes = np.diff(starts)[groups]
        before = np.cumsum(sizes) - sizes
        at = rows - starts[place] + before[np.searchsorted(groups, place)]
        is_whole = len(at) == len(matrix) and (np.diff(at) == 1).all()
        return matrix if is_whole else matrix[at]


def read_unit_rows(source: RowSource, place: Place) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return (M, d) the usable rows of a shard at unit length, and (N,) what is wrong with each.

    Raises:
        InputError: A file is damaged, or embeddings have different lengths.
    """
    return usable_rows(source.read(place))


def other_size(file: Location, size: int, others: int) -> InputError:
    """Return the error for a file whose embeddings have another length than others."""
    return InputError(f"{file.uri}: embeddings of {size} numbers, others have {others}")


def places_of(plan: LabelPlan) -> list[Place]:
    """Return where the rows of each shard lie in the files of the dataset."""
    return [Place(shard.files, shard.rows) for shard in plan.shards]


def decoded_rows(plan: LabelPlan, limit: float = math.inf) -> int:
    """Return how many rows have to be decoded to read every shard on its own, up to a limit.

    Of a set that lies scattered, all shards lie in all files: those that reach the limit are few.
    """
    total = 0
    for shard in plan.shards:
        for number in np.unique(shard.files):
            starts = plan.row_groups[number]
            groups = np.searchsorted(starts, shard.rows[shard.files == number], side="right") - 1
            total += int(np.diff(starts)[np.unique(groups)].sum())
        if total > limit:
            break
    return total


def arrange(plan: LabelPlan, work: Location) -> tuple[RowSource, list[Place]]:
    """Return where the rows of each shard are read, after bringing them together if need be.

    Raises:
        InputError: A file is damaged, or embeddings have different lengths.
    """
    source = RowSource(plan.files, plan.row_groups)
    limit = MAX_DECODED * plan.num_rows
    if len(plan.shards) == 1 or decoded_rows(plan, limit) <= limit:
        return source, places_of(plan)
    return regroup(plan, source, work)


def regroup(plan: LabelPlan, source: RowSource, work: Location) -> tuple[RowSource, list[Place]]:
    """Write all rows again in canonical order within batches of files, by Ray tasks.

    A batch that is there already, from an interrupted run, is not written again.
    """
    batch_of_file = _batches(plan)
    files = np.concatenate([shard.files for shard in plan.shards])
    rows = np.concatenate([shard.rows for shard in plan.shards])
    batch = batch_of_file[files]
    order = np.argsort(batch, kind="stable")  # by batch, in canonical order within one
    cuts = np.cumsum(np.bincount(batch, minlength=int(batch_of_file[-1]) + 1))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - (cuts - np.diff(cuts, prepend=0))[batch[order]]
    targets = tuple(work / f"rows-{number:06d}.npy" for number in range(len(cuts)))
    there = set(work.names()) if work.exists() else set()
    task: Any = ray.remote(_write_batch).options(name="regroup rows", max_retries=3)
    batches = np.split(order, cuts[:-1])
    is_there = [target.uri.rpartition("/")[2] in there for target in targets]
    done = sum(len(b) for b, made in zip(batches, is_there, strict=True) if made)
    progress = Progress("regroup", len(order), done, unit="embeddings")

    def calls() -> Iterator[tuple[Callable[[], Any], int]]:
        for target, members, made in zip(targets, batches, is_there, strict=True):
            if made:
                continue
            place = Place(files[members], rows[members])
            yield partial(task.remote, source, place, target), len(members)

    for error, size in run_tasks(calls()):
        if isinstance(error, SddError):
            raise error
        progress.update(size)
    progress.close()
    ends = np.cumsum([len(shard.codes) for shard in plan.shards])
    places = [
        Place(batch[start:end].astype(np.int32), rank[start:end])
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    origins = [plan.files[n] for n in np.searchsorted(batch_of_file, np.arange(len(cuts)))]
    return RowSource(targets, None, tuple(origins), forms_of(targets)), places


def forms_of(files: Sequence[Location]) -> tuple[ArrayForm, ...]:
    """Return the form of each .npy file.

    Raises:
        InputError: A file cannot be read.
    """
    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        return tuple(threads.map(_form, files))


def _form(file: Location) -> ArrayForm:
    head = io.BytesIO(file.read_range(0, _HEAD_BYTES))
    np.lib.format.read_magic(head)
    shape, _, kind = np.lib.format.read_array_header_1_0(head)
    return ArrayForm(head.tell(), shape[1], kind)


def _batches(plan: LabelPlan) -> NDArray[np.int64]:
    """Return (files,) the number of the batch of each file: runs of files of ROWS_PER_BATCH."""
    sizes = np.array([starts[-1] for starts in plan.row_groups])
    before = np.cumsum(sizes) - sizes
    _, batch = np.unique(before // ROWS_PER_BATCH, return_inverse=True)
    return batch.astype(np.int64)


def _write_batch(source: RowSource, place: Place, target: Location) -> SddError | None:
    """Write the rows of a place one after the other; runs on a worker."""
    try:
        sink = io.BytesIO()
        np.save(sink, source.read(place))
        target.write_bytes(sink.getvalue())
    except SddError as error:
        return error
    return None


def _read_array(file: Location, form: ArrayForm, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return some rows of a .npy file; they lie side by side, but for those set aside."""
    if len(rows) == 0:
        return np.zeros((0, form.width), form.kind)
    first, last = int(rows.min()), int(rows.max())
    row_bytes = form.width * form.kind.itemsize
    content = file.read_range(form.begin + first * row_bytes, (last - first + 1) * row_bytes)
    matrix = np.frombuffer(content, form.kind).reshape(-1, form.width)
    return matrix if len(matrix) == len(rows) else matrix[rows - first]
