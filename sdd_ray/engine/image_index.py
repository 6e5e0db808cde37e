"""The listing of a source, written once: what the shards of embed and score are cut from."""

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from sdd_ray import columns
from sdd_ray.engine.progress import Progress
from sdd_ray.engine.tasks import run_tasks
from sdd_ray.errors import InputError
from sdd_ray.formats.folder import UNREADABLE_FOLDER
from sdd_ray.formats.items import Item, Listing, PackedSource, Source, from_table, to_table
from sdd_ray.formats.landmarks import WithLandmarks
from sdd_ray.store.location import Location
from sdd_ray.store.run import INDEX, LISTING, READ_AT_ONCE, OutputRun, Reject, part_name

_ROWS_AT_ONCE = 16_384

_PATIENCE_S = 120.0
"""A file of millions of images takes a minute and gigabytes, and others nothing."""

DAMAGED = ("damaged_file", "damaged_archive", "damaged_record")
"""Rejects of a listing that stand for a number of images that nobody knows."""

_MAY_BE_MENDED = (UNREADABLE_FOLDER, "damaged_file")
"""The next attempt looks again: at what could not be read. A file that was read and is damaged has
another version when it is mended."""


def index_file(run: OutputRun) -> Location:
    """Return where the listing of a run is, one row group a shard."""
    return run.work / INDEX


def list_images(source: Source, images_per_shard: int, run: OutputRun) -> tuple[int, Listing]:
    """List the source into row groups of one shard each, or find the listing of an earlier run.

    An earlier listing that lacks a folder or the rest of a file, or whose files were replaced, is
    made again; parts whose images changed are forgotten.
    """
    note = run.work / LISTING
    versions = versions_of(source)
    if note.exists():
        tree = json.loads(note.read_bytes())
        rejects = [Reject(**item) for item in tree["rejects"]]
        is_whole = not any(reject.reason in _MAY_BE_MENDED for reject in rejects)
        if is_whole and tree["versions"] == versions:
            return int(tree["images"]), Listing(rejects, int(tree["ignored_files"]))
        if any(versions.get(uri) != version for uri, version in tree["versions"].items()):
            # Other bytes may lie under the same places: no part that was made can be trusted.
            for name in run.finished():
                run.forget(name)
    listing = Listing()
    progress = Progress("list", None)
    sink = pa.BufferOutputStream()
    total = 0
    with pq.ParquetWriter(sink, columns.INDEX, compression="zstd") as writer:
        for rows in _groups(_listed(source, listing), images_per_shard):
            total += len(rows)
            progress.update(len(rows))
            writer.write_table(to_table(rows), row_group_size=len(rows))
    if total:
        content = sink.getvalue()
        _forget_changed(run, content)
        index_file(run).write_bytes(content.to_pybytes())
        tree = {"images": total, "versions": versions, **asdict(listing)}
        note.write_bytes(json.dumps(tree).encode())
    return total, listing


def versions_of(source: Source) -> dict[str, str]:
    """Return what tells the files of a packed source from others of the same names."""
    places = source.origins()
    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        versions = threads.map(lambda place: str(place.version()), places)
        return {place.uri: version for place, version in zip(places, versions, strict=True)}


def _listed(source: Source, listing: Listing) -> Iterator[Item]:
    """Yield the items of a source; of packed files, many are listed at the same time."""
    if not source.needs_listing:  # keys that are paths cannot come twice
        yield from source.items(listing)
        return
    # 64-bit hashes: of 10^8 different keys two have the same one with a chance of 3e-4.
    seen: set[int] = set()
    for item in _scanned(source, listing):
        key = hash(item.image_id)
        if key in seen:
            detail = "the source holds another image of this key before"
            listing.rejects.append(Reject(item.image_id, "duplicate_image_id", detail))
            continue
        seen.add(key)
        yield item


def _scanned(source: Source, listing: Listing) -> Iterator[Item]:
    if isinstance(source, WithLandmarks):
        yield from source.with_landmarks(_scanned(source.source, listing), listing)
        return
    if not isinstance(source, PackedSource):
        yield from source.items(listing)
        return
    scan = ray.remote(_scan).options(name="list images", max_retries=3)
    calls = ((partial(scan.remote, source, file), file) for file in source.files())
    for (table, met), _ in run_tasks(calls, patience_s=_PATIENCE_S):
        listing.rejects += met.rejects
        listing.ignored_files += met.ignored_files
        for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            yield from from_table(pa.table(batch))


def _scan(source: PackedSource, file: str) -> tuple[pa.Table, Listing]:
    listing = Listing()
    items = source.scan(file, listing)
    try:
        return to_table(items), listing
    except InputError as error:
        listing.rejects.append(Reject(file, "damaged_file", str(error)))
        return to_table(()), listing


def _forget_changed(run: OutputRun, content: pa.Buffer) -> None:
    """Forget the finished parts whose images are others in the new index."""
    finished = run.finished()
    if not finished:
        return
    new = pq.ParquetFile(pa.BufferReader(content))
    with index_file(run).open() as stream:
        old = pq.ParquetFile(stream)
        for number in range(old.num_row_groups):
            name = part_name(number)
            if name in finished and not (
                number < new.num_row_groups
                and old.read_row_group(number).equals(new.read_row_group(number))
            ):
                run.forget(name)


def _groups(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while group := list(itertools.islice(items, size)):
        yield group
