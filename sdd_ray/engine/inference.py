"""Apply a network to every image of a source: the engine of embed and score.

The listing of the source is written once and cut into shards of a fixed number of images. Ray Data
hands shard numbers to a pool of actors; an actor reads, decodes, runs the network and writes one
part. Parts depend on the shard alone, so the output is the same for any number of workers, a lost
worker costs the shard it was at, and a second run does only what is missing.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from numpy.typing import NDArray

from sdd_ray import columns
from sdd_ray.engine.failures import failure_row, raise_failure
from sdd_ray.engine.progress import Progress
from sdd_ray.engine.session import pool_size
from sdd_ray.engine.tasks import run_tasks
from sdd_ray.errors import InputError, SddError, TooManyRejectsError
from sdd_ray.formats.folder import UNREADABLE_FOLDER
from sdd_ray.formats.items import Item, PackedSource, from_table, to_table
from sdd_ray.formats.reading import UNREADABLE, read_faces, reason_of
from sdd_ray.formats.source import Listing, Source
from sdd_ray.settings import PoolResources
from sdd_ray.store.location import Location
from sdd_ray.store.run import (
    INDEX,
    LISTING,
    OutputRun,
    PartRecord,
    Reject,
    part_name,
    record_from_json,
    write_part,
)

_READS_ON_S3 = 16
"""Requests a worker has under way at the same time, where each takes tens of milliseconds."""


@dataclass(frozen=True)
class Shard:
    """The images of one shard that could be read, and those that could not.

    Shapes: N images of the shard that could be read.
    """

    image_ids: list[str]
    identities: list[str | None]
    images: list[NDArray[np.uint8]]
    rejects: list[Reject]

    def content(self) -> NDArray[np.uint64]:
        """Return a 64-bit digest of the pixels of each image, (N,)."""
        digests = [hashlib.blake2b(image.tobytes(), digest_size=8) for image in self.images]
        return np.array([int.from_bytes(d.digest(), "little") for d in digests], np.uint64)


class ImageStage(Protocol):
    """What embed and score do with images; small, and sent to the workers."""

    def load(self, threads: int) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        """Load the network on a worker; return a function from (N, 112, 112, 3) to (N, ...)."""

    def rows(self, shard: Shard, outputs: NDArray[np.float32]) -> tuple[pa.Table, list[Reject]]:
        """Return the rows of the output and all rows of the shard that were set aside."""


@dataclass(frozen=True)
class ImageJob:
    """One run of a stage over a source."""

    name: str
    stage: ImageStage
    source: Source
    images_per_shard: int
    batch_size: int
    max_reject_share: float
    resources: PoolResources
    is_remote: bool = False


def run_image_job(job: ImageJob, run: OutputRun) -> tuple[list[PartRecord], Listing]:
    """Run a stage over all images that are not finished yet; return all parts in order.

    Raises:
        InputError: The source cannot be listed, or holds no image.
        TooManyRejectsError: More images than allowed had to be set aside.
        ResourceError: The cluster has no room for the workers.
        OutputError: The workers do not write where this process reads.
    """
    resources = job.resources
    size = pool_size(resources.workers, resources.cpus_per_worker, resources.gpus_per_worker)
    total, listing = _index(job, run)
    if total == 0:
        raise InputError(_nothing_to_do(listing))
    num_shards = -(-total // job.images_per_shard)
    names = [part_name(shard) for shard in range(num_shards)]
    finished = {name: r for name, r in run.finished().items() if name in set(names)}
    # What could not be reached may be there by now: those parts are done again.
    records = {name: record for name, record in finished.items() if not _has_unreadable(record)}
    missing = [shard for shard, name in enumerate(names) if name not in records]
    progress = Progress(job.name, total, sum(r.rows_in for r in records.values()))
    rejected = len(listing.rejects) + sum(len(r.rejects) for r in records.values())
    try:
        for record in _process(job, run, missing, size):
            records[record.name] = record
            rejected += len(record.rejects)
            progress.update(record.rows_in, len(record.rejects))
            _check_share(job, rejected, total + len(listing.rejects), records, listing)
    finally:
        run.pause()
    _check_share(job, rejected, total + len(listing.rejects), records, listing)
    _check_reached(list(records.values()))
    progress.close()
    run.check_parts(list(records.values()))
    return [records[name] for name in names], listing


def _process(
    job: ImageJob, run: OutputRun, missing: Sequence[int], workers: int
) -> Iterator[PartRecord]:
    if not missing:
        return
    shards = ray.data.from_items(
        [{"shard": shard} for shard in missing], override_num_blocks=len(missing)
    )
    results = shards.map_batches(
        _ShardWorker,
        fn_constructor_kwargs={"job": job, "output": run.output, "index": _index_file(run)},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(missing))),
        num_cpus=job.resources.cpus_per_worker,
        num_gpus=job.resources.gpus_per_worker or None,
    )
    for row in results.iter_rows():
        raise_failure(row)
        yield record_from_json(row["record"])


class _ShardWorker:
    """An actor: loads the network once, then turns shard numbers into finished parts."""

    def __init__(self, job: ImageJob, output: Location, index: Location) -> None:
        self._job, self._output, self._index = job, output, index
        self._num_threads = max(1, int(job.resources.cpus_per_worker))
        readers = job.resources.read_threads or (
            _READS_ON_S3 if job.is_remote else self._num_threads
        )
        self._threads = ThreadPoolExecutor(readers)
        self._loaded: Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        shard = int(batch["shard"][0])
        with failure_row() as row:
            record = self._run(shard)
            row["record"] = [json.dumps(asdict(record))]
        return row

    def _run(self, number: int) -> PartRecord:
        listed = _read_shard(self._index, number)
        shard, outputs = self._embed(listed)
        table, rejects = self._job.stage.rows(shard, outputs)
        return write_part(self._output, part_name(number), table, rejects, rows_in=listed.num_rows)

    def _embed(self, listed: pa.Table) -> tuple[Shard, NDArray[np.float32]]:
        """Read and decode ahead of the network, which works on batches of a fixed size."""
        shard = Shard([], [], [], [])
        outputs: list[NDArray[np.float32]] = []
        size = self._job.batch_size
        items = from_table(listed)
        for item, face in zip(
            items, read_faces(self._job.source, items, self._threads), strict=True
        ):
            if isinstance(face, SddError):
                shard.rejects.append(Reject(item.image_id, reason_of(face), str(face)))
                continue
            shard.image_ids.append(item.image_id)
            shard.identities.append(face.identity)
            shard.images.append(face.pixels)
            if len(shard.images) % size == 0:
                outputs.append(self._network(np.stack(shard.images[-size:])))
        rest = len(shard.images) % size
        if rest or not outputs:
            last = shard.images[len(shard.images) - rest :]
            empty = np.zeros((0, 112, 112, 3), np.uint8)
            outputs.append(self._network(np.stack(last) if last else empty))
        return shard, np.concatenate(outputs)

    def _network(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self._loaded is None:  # not in the constructor, whose errors Ray would wrap and retry
            self._loaded = self._job.stage.load(self._num_threads)
        return self._loaded(images)


def _index_file(run: OutputRun) -> Location:
    return run.work / INDEX


def _index(job: ImageJob, run: OutputRun) -> tuple[int, Listing]:
    """List the source into row groups of one shard each, or find the listing of an earlier run.

    An earlier listing that lacks folders is made again; parts whose images changed are forgotten.
    """
    note = run.work / LISTING
    if note.exists():
        tree = json.loads(note.read_bytes())
        rejects = [Reject(**item) for item in tree["rejects"]]
        if not any(reject.reason == UNREADABLE_FOLDER for reject in rejects):
            return int(tree["images"]), Listing(rejects, int(tree["ignored_files"]))
    listing = Listing()
    sink = pa.BufferOutputStream()
    total = 0
    with pq.ParquetWriter(sink, columns.INDEX, compression="zstd") as writer:
        for rows in _groups(_listed(job.source, listing), job.images_per_shard):
            total += len(rows)
            writer.write_table(to_table(rows), row_group_size=len(rows))
    if total:
        content = sink.getvalue()
        _forget_changed(run, content)
        _index_file(run).write_bytes(content.to_pybytes())
        tree = {"images": total, **asdict(listing)}
        note.write_bytes(json.dumps(tree).encode())
    return total, listing


def _listed(source: Source, listing: Listing) -> Iterator[Item]:
    """Yield the items of a source; of packed files, many are listed at the same time."""
    if not source.needs_listing:  # keys that are paths cannot come twice
        yield from source.items(listing)
        return
    # 64-bit hashes: of 10^8 different keys two have the same one with a chance of 3e-4.
    seen: set[int] = set()
    for item in (
        _scanned(source, listing) if isinstance(source, PackedSource) else source.items(listing)
    ):
        key = hash(item.image_id)
        if key in seen:
            detail = "the source holds another image of this key before"
            listing.rejects.append(Reject(item.image_id, "duplicate_image_id", detail))
            continue
        seen.add(key)
        yield item


def _scanned(source: PackedSource, listing: Listing) -> Iterator[Item]:
    scan = ray.remote(_scan).options(name="list images", max_retries=3)
    calls = ((scan.remote(source, file), file) for file in source.files())
    for found, _ in run_tasks(calls):
        if isinstance(found, SddError):
            raise found
        table, met = found
        listing.rejects += met.rejects
        listing.ignored_files += met.ignored_files
        yield from from_table(table)


def _scan(source: PackedSource, file: str) -> tuple[pa.Table, Listing] | SddError:
    listing = Listing()
    try:
        return to_table(source.scan(file, listing)), listing
    except SddError as error:
        return error


def _forget_changed(run: OutputRun, content: pa.Buffer) -> None:
    """Forget the finished parts whose images are others in the new index."""
    finished = run.finished()
    if not finished:
        return
    new = pq.ParquetFile(pa.BufferReader(content))
    with _index_file(run).open() as stream:
        old = pq.ParquetFile(stream)
        for number in range(old.num_row_groups):
            name = part_name(number)
            if name in finished and not (
                number < new.num_row_groups
                and old.read_row_group(number).equals(new.read_row_group(number))
            ):
                run.forget(name)


def _has_unreadable(record: PartRecord) -> bool:
    return any(reject.reason == UNREADABLE for reject in record.rejects)


def _check_reached(records: Sequence[PartRecord]) -> None:
    """Stop if not one image could be reached, whatever share of rejects is allowed."""
    rejects = [reject for record in records for reject in record.rejects]
    is_lost = rejects and all(reject.reason == UNREADABLE for reject in rejects)
    if is_lost and len(rejects) == sum(record.rows_in for record in records):
        raise InputError(f"none of {len(rejects):,} images can be reached; {_first(rejects)}")


def _groups(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while group := list(itertools.islice(items, size)):
        yield group


def _read_shard(index: Location, number: int) -> pa.Table:
    with index.open() as stream:
        return pq.ParquetFile(stream).read_row_group(number)


def _check_share(
    job: ImageJob, rejected: int, total: int, records: dict[str, PartRecord], listing: Listing
) -> None:
    if rejected <= job.max_reject_share * total:
        return
    rejects = [*listing.rejects, *(item for r in records.values() for item in r.rejects)]
    raise TooManyRejectsError(
        f"{rejected:,} of {total:,} images had to be set aside ({_reasons(rejects)}), more than"
        f" max_reject_share={job.max_reject_share:g}; {_first(rejects)}"
    )


def _nothing_to_do(listing: Listing) -> str:
    text = f"the source holds no images that can be used ({listing.ignored_files} other files)"
    if not listing.rejects:
        return text
    return f"{text}; set aside: {_reasons(listing.rejects)}; {_first(listing.rejects)}"


def _reasons(rejects: Sequence[Reject]) -> str:
    counts = sorted(Counter(reject.reason for reject in rejects).items())
    return ", ".join(f"{reason} {count:,}" for reason, count in counts)


def _first(rejects: Sequence[Reject]) -> str:
    return f"the first is {rejects[0].image_id}: {rejects[0].detail}"
