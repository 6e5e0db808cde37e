"""Labels joined to the images of a source by Ray tasks, where one process could not hold them all.

Labels, the listing of the source and landmarks are each cut into partitions by the hash that orders
the rows of training, and joined partition by partition: partition after partition, in each in the
order of the hash, is the order of training. Every file is written whole, and found again by a run
that goes on; once all partitions are joined, what they were joined from is removed.

A packed source is listed by many tasks; a list, or a file of landmarks, is read by one.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from sdd_ray.columns import IMAGE_ID, INDEX
from sdd_ray.engine.image_index import versions_of
from sdd_ray.engine.progress import Progress
from sdd_ray.engine.tasks import run_tasks
from sdd_ray.engine.training_labels import (
    PARTS,
    TrainingLabels,
    image_keys,
    in_order,
    joined,
    order_of,
)
from sdd_ray.errors import InputError, SddError
from sdd_ray.formats.items import Item, Listing, PackedSource, Source, to_table
from sdd_ray.formats.landmarks import WithLandmarks, interleaved, read_lines
from sdd_ray.store.dataset import Dataset, read_json, read_parquet_with_groups
from sdd_ray.store.location import Location

ROWS_PER_PARTITION = 100_000
"""Labelled images that one task joins."""

ROWS_PER_CHUNK = 500_000
"""Rows that a task cuts into partitions at once: one file, of which each partition is a part."""

_LISTING_TASKS = 256
"""Tasks at most that list packed files: each leaves one file at least, and a join reads of all."""
_ROWS_PER_GROUP = 512
"""Rows at most of a row group, in which training reads them."""
_READERS = 8
"""Threads that read the parts of a partition: on S3 each waits tens of milliseconds."""

_BASIS, _JOINED, _CUT = "basis.json", "joined.json", "cut"

Files = list[list[tuple[Location, list[int]]]]
"""For each of `PARTS` its Parquet files in order, with the rows of each row group."""


def join_on_disk(source: Source, known: TrainingLabels, labels: Dataset, folder: Location) -> Files:
    """Write the rows of each part in training order, or find them written.

    Args:
        source: The images.
        known: What follows from all labels.
        labels: Their dataset.
        folder: For the files, reached by every worker.

    Raises:
        InputError: The source cannot be listed, or a file is damaged.
        OutputError: A file cannot be written.
    """
    total = sum(known.num_rows.values())
    cuts = _Cuts(folder / _CUT, -(-total // ROWS_PER_PARTITION), known.seed)
    _begin(folder, {"partitions": cuts.count, "labels": labels.digest}, source)
    note = folder / _JOINED
    if not note.exists():
        inputs = _cut_inputs(source, known, labels, cuts)
        found = _join(cuts, inputs, folder)
        note.write_bytes(json.dumps(found).encode())
        cuts.folder.remove_tree()
    partitions = read_json(note)["partitions"]
    return [
        [(_target(folder, number, part), sizes[part]) for number, sizes in enumerate(partitions)]
        for part in PARTS
    ]


@dataclass(frozen=True)
class _Cuts:
    """Tables cut into partitions, in chunks: Arrow files with one record batch a partition.

    Attributes:
        folder: For the files.
        count: Number of partitions.
        seed: Of the order of the rows.
    """

    folder: Location
    count: int
    seed: int

    def write(self, name: str, tables: Iterable[pa.Table]) -> dict[str, Any]:
        """Write tables with a column image_id, one chunk each; return the note about them."""
        chunks, counts = 0, {part: np.zeros(self.count, np.int64) for part in PARTS}
        for table in tables:
            partition = self._partition(table)
            for part in PARTS if "part" in table.schema.names else ():
                chosen = partition[np.asarray(table["part"]) == part]
                counts[part] += np.bincount(chosen, minlength=self.count)
            self._file(name, chunks).write_bytes(self._content(table, partition))
            chunks += 1
        note = {"chunks": chunks, "counts": {part: n.tolist() for part, n in counts.items()}}
        self._note(name).write_bytes(json.dumps(note).encode())
        return note

    def note(self, name: str) -> dict[str, Any] | None:
        """Return the note about tables that were written before, or None."""
        place = self._note(name)
        return read_json(place) if place.exists() else None

    def read(self, number: int, chunks: dict[str, int]) -> pa.Table | None:
        """Return the rows of one partition, chunk by chunk in order of name; None without chunks.

        Raises:
            InputError: A file is damaged.
        """
        files = [self._file(name, n) for name in sorted(chunks) for n in range(chunks[name])]
        if not files:
            return None
        with ThreadPoolExecutor(_READERS) as threads:
            return pa.Table.from_batches(threads.map(lambda file: _batch(file, number), files))

    def _partition(self, table: pa.Table) -> NDArray[np.int64]:
        """Return (N,) the partition of each row, rising with its place in the training order."""
        order = order_of(image_keys(table[IMAGE_ID].to_pylist()), self.seed)
        return ((order >> np.uint64(32)) * np.uint64(self.count) >> np.uint64(32)).astype(np.int64)

    def _content(self, table: pa.Table, partition: NDArray[np.int64]) -> bytes:
        rows = table.take(np.argsort(partition, kind="stable"))
        columns = [column.combine_chunks() for column in rows.columns]
        batch = pa.RecordBatch.from_arrays(columns, schema=table.schema)
        ends = np.cumsum(np.bincount(partition, minlength=self.count)).tolist()
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, table.schema, options=options) as writer:
            for start, end in itertools.pairwise([0, *ends]):
                writer.write_batch(batch.slice(start, end - start))
        content: bytes = sink.getvalue().to_pybytes()
        return content

    def _file(self, name: str, chunk: int) -> Location:
        return self.folder / f"{name}-{chunk:05d}.arrow"

    def _note(self, name: str) -> Location:
        return self.folder / f"{name}.json"


@dataclass(frozen=True)
class _Inputs:
    """What the partitions are joined from, as numbers of chunks by name.

    Attributes:
        labels, listing, landmarks: None where there is nothing of the kind.
        counts: Labelled images of each part, by partition.
        landmark_file: Which errors name.
    """

    labels: dict[str, int]
    listing: dict[str, int] | None
    landmarks: dict[str, int] | None
    counts: dict[str, NDArray[np.int64]]
    landmark_file: str


def _begin(folder: Location, basis: dict[str, Any], source: Source) -> None:
    """Remove what was made from other files, or for other partitions."""
    basis = {**basis, "versions": versions_of(source)}
    note = folder / _BASIS
    if note.exists() and read_json(note) != basis:
        folder.remove_tree()
    note.write_bytes(json.dumps(basis).encode())


def _cut_inputs(source: Source, known: TrainingLabels, labels: Dataset, cuts: _Cuts) -> _Inputs:
    """Cut everything that is joined into partitions."""
    of_labels = [(_label_rows, known, files) for files in _label_groups(labels)]
    notes = _cut("sort labels", "labels", of_labels, cuts)
    images = source.source if isinstance(source, WithLandmarks) else source
    listing, landmarks, uri = None, None, ""
    if images.needs_listing:
        found = _cut("list", "listing", _listing_calls(images), cuts)
        listing = _chunks(found)
    if isinstance(source, WithLandmarks):
        calls = [(_landmark_rows, source.landmarks, source.order)]
        landmarks = _chunks(_cut("read landmarks", "landmarks", calls, cuts))
        uri = source.landmarks.uri
        if not sum(landmarks.values()):
            raise InputError(f"{uri}: expected lines of image_id and ten numbers, got none")
    counts = {
        part: np.sum([note["counts"][part] for note in notes.values()], axis=0) for part in PARTS
    }
    return _Inputs(_chunks(notes), listing, landmarks, counts, uri)


def _chunks(notes: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {name: int(note["chunks"]) for name, note in notes.items()}


def _cut(
    stage: str, name: str, calls: Sequence[tuple[Any, ...]], cuts: _Cuts
) -> dict[str, dict[str, Any]]:
    """Run tasks that cut the tables of a function and its arguments; return their notes by name."""
    task: Any = ray.remote(_cut_tables).options(name=stage, max_retries=3)
    # An argument of many calls, such as a source with the names of many files, is sent once.
    kept = {key: ray.put(first) for key, first in {id(c[1]): c[1] for c in calls}.items()}
    progress = Progress(stage, len(calls), unit="tasks")
    started = (
        (partial(task.remote, cuts, f"{name}-{n:05d}", function, kept[id(first)], second), n)
        for n, (function, first, second) in enumerate(calls)
    )
    notes = {}
    for note, number in run_tasks(started):
        if isinstance(note, SddError):
            raise note
        notes[f"{name}-{number:05d}"] = note
        progress.update(1)
    progress.close()
    return notes


def _cut_tables(
    cuts: _Cuts, name: str, function: Callable[..., Iterator[pa.Table]], *arguments: Any
) -> dict[str, Any] | SddError:
    """Write the tables that a function yields, if that was not done before; runs on a worker."""
    try:
        return cuts.note(name) or cuts.write(name, function(*arguments))
    except SddError as error:
        return error


def _label_groups(labels: Dataset) -> list[list[Location]]:
    """Return the files of labels in groups of about `ROWS_PER_CHUNK` rows."""
    rows = labels.manifest["parts"]
    sizes = np.array([rows[file.uri.rpartition("/")[2]] for file in labels.files])
    group = (np.cumsum(sizes) - sizes) // ROWS_PER_CHUNK
    return [
        [labels.files[n] for n in np.flatnonzero(group == number)] for number in np.unique(group)
    ]


def _label_rows(known: TrainingLabels, files: Sequence[Location]) -> Iterator[pa.Table]:
    yield pa.concat_tables(known.rows(file) for file in files)


def _listing_calls(source: Source) -> list[tuple[Any, ...]]:
    if not isinstance(source, PackedSource):
        return [(_listed_rows, source, None)]
    files = source.files()
    step = -(-len(files) // _LISTING_TASKS)
    return [(_listed_rows, source, files[n : n + step]) for n in range(0, len(files), step)]


def _listed_rows(source: Source, files: Sequence[str] | None) -> Iterator[pa.Table]:
    items = _items(source, files)
    while rows := list(itertools.islice(items, 1)):
        yield to_table(itertools.chain(rows, itertools.islice(items, ROWS_PER_CHUNK - 1)))


def _items(source: Any, files: Sequence[str] | None) -> Iterator[Item]:
    """Yield the items of some files, or of all; of a damaged file those before the damage."""
    if files is None:
        yield from source.items(Listing())
        return
    for file in files:
        with suppress(InputError):
            yield from source.scan(file, Listing())


def _landmark_rows(place: Location, order: str) -> Iterator[pa.Table]:
    lines = read_lines(place)
    while group := list(itertools.islice(lines, ROWS_PER_CHUNK)):
        keys = pa.array([key for key, _ in group], pa.string())
        points = [interleaved(numbers, order) for _, numbers in group]
        yield pa.table([keys, pa.array(points, INDEX.field("landmarks").type)], _LANDMARKS)


_LANDMARKS = [IMAGE_ID, "landmarks"]


def _join(cuts: _Cuts, inputs: _Inputs, folder: Location) -> dict[str, Any]:
    """Join all partitions; return the rows of each row group of each part, by partition."""
    task: Any = ray.remote(_join_partition).options(name="join", max_retries=3)
    shared = ray.put(inputs)
    progress = Progress("join", sum(int(counts.sum()) for counts in inputs.counts.values()))
    parts = range(cuts.count)
    calls = ((partial(task.remote, cuts, shared, folder, number), number) for number in parts)
    partitions = []
    for sizes, _ in run_tasks(calls):
        if isinstance(sizes, SddError):
            raise sizes
        partitions.append(sizes)
        progress.update(sum(sum(rows) for rows in sizes.values()))
    progress.close()
    return {"partitions": partitions}


def _join_partition(
    cuts: _Cuts, inputs: _Inputs, folder: Location, number: int
) -> dict[str, list[int]] | SddError:
    """Write the rows of each part in a partition; return the rows of each row group."""
    try:
        targets = {part: _target(folder, number, part) for part in PARTS}
        if not all(target.exists() for target in targets.values()):
            labelled = in_order(cuts.read(number, inputs.labels))
            items = _located(cuts, inputs, labelled[IMAGE_ID], number)
            for part, target in targets.items():
                first = int(inputs.counts[part][:number].sum())
                target.write_bytes(_parquet(joined(items, labelled, part, first)))
        return {part: read_parquet_with_groups(t, ["row"])[1] for part, t in targets.items()}
    except SddError as error:
        return error


def _located(cuts: _Cuts, inputs: _Inputs, image_ids: pa.ChunkedArray, number: int) -> pa.Table:
    """Return the items of a partition as `sdd_ray.formats.source.locate` does."""
    items = to_table(Item(image_id) for image_id in image_ids.to_pylist())
    found = None if inputs.listing is None else cuts.read(number, inputs.listing)
    if found is not None:
        place = pc.cast(pc.index_in(image_ids, found[IMAGE_ID].combine_chunks()), pa.int64())
        # A key that is not there takes the row of its own that says so.
        own = pa.array(np.arange(items.num_rows) + found.num_rows)
        items = pa.concat_tables([found, items]).take(pc.coalesce(place, own))
    if inputs.landmarks is not None:
        items = _with_landmarks(items, cuts.read(number, inputs.landmarks), inputs.landmark_file)
    return items


def _with_landmarks(items: pa.Table, known: pa.Table, file: str) -> pa.Table:
    names = known[IMAGE_ID]
    counts = pc.value_counts(names)
    twice = counts.filter(pc.greater(pc.struct_field(counts, "counts"), 1))
    if len(twice):
        name = twice[0]["values"].as_py()
        raise InputError(f"{file}: expected one line an image, got more for {name!r}")
    place = pc.index_in(items[IMAGE_ID], names.combine_chunks())
    column = items.schema.get_field_index("landmarks")
    return items.set_column(column, INDEX.field(column), known["landmarks"].take(place))


def _target(folder: Location, number: int, part: str) -> Location:
    return folder / f"{part}-{number:06d}.parquet"


def _parquet(table: pa.Table) -> bytes:
    """Return a Parquet file with row groups of about equal size."""
    groups = max(1, -(-table.num_rows // _ROWS_PER_GROUP))
    sink = pa.BufferOutputStream()
    size = max(1, -(-table.num_rows // groups))
    pq.write_table(table, sink, compression="zstd", row_group_size=size)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _batch(file: Location, number: int) -> pa.RecordBatch:
    with file.open() as stream:
        try:
            return pa.ipc.open_file(stream).get_batch(number)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file.uri} is damaged: {error}") from error
