"""Apply a network to every image of a source: the engine of embed and score.

The listing of the source is written once and cut into shards of a fixed number of images. Ray Data
hands shard numbers to a pool of actors, see `image_worker`. Parts depend on the shard alone, so the
output is the same for any number of workers, a lost worker costs the shard it was at, and a second
run does only what is missing.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from sdd_ray.engine.batch_size import batch_size_of
from sdd_ray.engine.failures import raise_failure
from sdd_ray.engine.image_index import DAMAGED, index_file, list_images
from sdd_ray.engine.image_worker import (
    DecodeWorker,
    ImageJob,
    NetworkWorker,
    PartWriter,
    ShardWorker,
)
from sdd_ray.engine.progress import Progress
from sdd_ray.engine.room import available, pool_size
from sdd_ray.engine.unreachable import found_again
from sdd_ray.errors import InputError, SddError, TooManyRejectsError
from sdd_ray.formats.images import UNREADABLE
from sdd_ray.formats.items import Listing
from sdd_ray.settings import PoolResources
from sdd_ray.store.run import OutputRun, PartRecord, Reject, part_name, record_from_json

_PATIENCE_S = 1800.0
_SECONDS_PER_IMAGE = 4.0
"""What a shard may take before a run is given up: the largest networks on one slow core."""

_WRITER_CPUS = 0.25
"""A writer waits for the store most of the time."""


@dataclass(frozen=True)
class ImageRun:
    """What a run of a stage made.

    Attributes:
        records: Of all parts, in order.
        listing: What listing the source met besides images.
        results: For the manifest.
    """

    records: list[PartRecord]
    listing: Listing
    results: dict[str, Any]


def run_image_job(job: ImageJob, run: OutputRun) -> ImageRun:
    """Run a stage over all images that are not finished yet.

    Raises:
        InputError: The source cannot be listed, or holds no image.
        TooManyRejectsError: More images than allowed had to be set aside.
        ResourceError: The cluster has no room for the workers.
        OutputError: The workers do not write where this process reads.
    """
    resources = job.resources
    least = _least_decoders(resources)
    spare = least + _WRITER_CPUS if least else 0.0
    size = pool_size(resources.workers, resources.cpus_per_worker, resources.gpus_per_worker, spare)
    total, listing = list_images(job.source, job.images_per_shard, run)
    _check_damage(job, listing)
    if total == 0:
        raise InputError(_nothing_to_do(listing))
    names = [part_name(shard) for shard in range(-(-total // job.images_per_shard))]
    wanted = set(names)
    finished = {name: r for name, r in run.finished().items() if name in wanted}
    again = found_again(job.source, index_file(run), [finished.get(name) for name in names])
    records = {name: record for name, record in finished.items() if name not in again}
    missing = [shard for shard, name in enumerate(names) if name not in records]
    results: dict[str, Any] = {"ignored_files": listing.ignored_files}
    if missing:
        try:
            batch_size = batch_size_of(job, run)
            plan = _Plan(missing, size, _num_decoders(resources, size), batch_size)
            use = _run_missing(job, run, plan, records, (total, listing))
        finally:
            run.pause()
        results |= {"batch_size": batch_size, "network": use}
    _check_share(job, _num_rejected(records, listing), records, (total, listing))
    _check_reached(list(records.values()))
    run.check_parts(list(records.values()))
    return ImageRun([records[name] for name in names], listing, results)


@dataclass(frozen=True)
class _Plan:
    """Which shards to work on, and how.

    Attributes:
        missing: Numbers of the shards.
        workers: Actors that run the network.
        decoders: Actors that decode for them; 0: each worker does so itself.
        batch_size: Images given to the network at once.
    """

    missing: Sequence[int]
    workers: int
    decoders: int
    batch_size: int


def _run_missing(
    job: ImageJob,
    run: OutputRun,
    plan: _Plan,
    records: dict[str, PartRecord],
    listed: tuple[int, Listing],
) -> dict[str, Any]:
    """Add the records of the missing shards; return how the network was used."""
    progress = Progress(job.name, listed[0], sum(r.rows_in for r in records.values()))
    rejected = _num_rejected(records, listed[1])
    uses: list[dict[str, Any]] = []
    for record, use in _process(job, run, plan):
        uses.append(use)
        records[record.name] = record
        run.note_time()
        rejected += len(record.rejects)
        progress.update(record.rows_in, len(record.rejects))
        _measure(progress, record, use)
        _check_share(job, rejected, records, listed)
    progress.close()
    return _network_use(uses)


def _measure(progress: Progress, record: PartRecord, use: Mapping[str, Any]) -> None:
    """Tell Ray's metrics why images were set aside, and how busy the network was."""
    if progress.metrics is None:
        return
    progress.metrics.read(use["read_bytes"])
    progress.metrics.rejected(Counter(reject.reason for reject in record.rejects))
    if use["ended"] > use["began"]:
        progress.metrics.busy(use["busy_s"] / (use["ended"] - use["began"]))


def _process(
    job: ImageJob, run: OutputRun, plan: _Plan
) -> Iterator[tuple[PartRecord, dict[str, Any]]]:
    """Yield the part of each shard as it is finished, and how the network was used for it."""
    shards = ray.data.from_items(
        [{"shard": shard} for shard in plan.missing], override_num_blocks=len(plan.missing)
    )
    shards.set_name(job.name)  # on the dashboard
    # Ray Data gives up where nothing is finished for some time; by default half an hour, in which a
    # large network on a CPU may not finish one shard.
    patience = max(_PATIENCE_S, _SECONDS_PER_IMAGE * job.images_per_shard)
    shards.context.execution_no_progress_timeout_s = patience
    steps = _three_steps if plan.decoders else _one_step
    try:
        for row in steps(job, run, plan, shards).iter_rows():
            raise_failure(row)
            yield record_from_json(row["record"]), json.loads(row["use"])
    except ExecutionTimeoutError as error:
        raise SddError(
            f"no shard of {job.images_per_shard:,} images was finished for"
            f" {patience / 3600:.1f} hours: does a worker die at one of them (see Ray's logs), or"
            " is images_per_shard too large for this network?"
        ) from error


def _one_step(job: ImageJob, run: OutputRun, plan: _Plan, shards: Any) -> Any:
    place = {"output": run.output, "index": index_file(run)}
    return shards.map_batches(
        _called(ShardWorker, job.name.capitalize()),
        fn_constructor_kwargs={"job": job, "batch_size": plan.batch_size, **place},
        batch_size=1,
        **_on_workers(job, plan),
    )


def _three_steps(job: ImageJob, run: OutputRun, plan: _Plan, shards: Any) -> Any:
    """Decode ahead of the network and write behind it, so that it always has work."""
    decoded = shards.map_batches(
        _called(DecodeWorker, "Decode"),
        fn_constructor_kwargs={"job": job, "index": index_file(run)},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(plan.decoders, len(plan.missing))),
        num_cpus=1,
    )
    computed = decoded.map_batches(
        _called(NetworkWorker, job.name.capitalize()),
        fn_constructor_kwargs={"job": job, "batch_size": plan.batch_size},
        batch_size=1,
        batch_format="pyarrow",
        **_on_workers(job, plan),
    )
    return computed.map_batches(
        PartWriter(run.output).write, batch_size=1, batch_format="pyarrow", num_cpus=_WRITER_CPUS
    )


def _called(worker: type, name: str) -> type:
    """Return a worker under the name that Ray Data gives to its operator and actors: for people."""
    return type(name, (worker,), {})


def _on_workers(job: ImageJob, plan: _Plan) -> dict[str, Any]:
    return {
        "compute": ray.data.ActorPoolStrategy(size=min(plan.workers, len(plan.missing))),
        "num_cpus": job.resources.cpus_per_worker,
        "num_gpus": job.resources.gpus_per_worker or None,
    }


def _least_decoders(resources: PoolResources) -> int:
    """Return how many actors must decode apart from the network; 0: each worker does so itself."""
    if resources.decode_workers is not None:
        return resources.decode_workers
    return 1 if resources.gpus_per_worker else 0


def _num_decoders(resources: PoolResources, workers: int) -> int:
    """Return how many actors decode: as asked, or as many as there are CPUs left."""
    least = _least_decoders(resources)
    if not least or resources.decode_workers is not None:
        return least
    return max(least, int(available("CPU") - workers * resources.cpus_per_worker - _WRITER_CPUS))


def _network_use(uses: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how the networks were used, in seconds and as a share.

    `seconds` is from the first image of all to the last, `worker_s` the same of each worker, added
    up, `busy_s` what the networks worked of that, `idle_share` the rest.
    """
    by_worker: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for use in uses:
        by_worker[use["worker"]].append(use)
    spans = [_span(some) for some in by_worker.values()]
    busy = sum(use["busy_s"] for use in uses)
    return {
        "workers": len(by_worker),
        "seconds": round(_span(uses), 2),
        "worker_s": round(sum(spans), 2),
        "busy_s": round(busy, 2),
        "idle_share": round(max(0.0, 1 - busy / sum(spans)), 3) if sum(spans) > 0 else None,
    }


def _span(uses: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds from the first image to the last."""
    return float(max(use["ended"] for use in uses) - min(use["began"] for use in uses))


def _check_reached(records: Sequence[PartRecord]) -> None:
    """Stop if not one image could be reached, whatever share of rejects is allowed."""
    rejects = [reject for record in records for reject in record.rejects]
    is_lost = rejects and all(reject.reason == UNREADABLE for reject in rejects)
    if is_lost and len(rejects) == sum(record.rows_in for record in records):
        raise InputError(f"none of {len(rejects):,} images can be reached; {_first(rejects)}")


def _check_damage(job: ImageJob, listing: Listing) -> None:
    """Stop where files could not be listed to their end: no share says how much that is."""
    damaged = [reject for reject in listing.rejects if reject.reason in DAMAGED]
    if damaged and not job.skip_damaged:
        raise TooManyRejectsError(
            f"{len(damaged):,} place(s) where images are missing, nobody knows how many;"
            f" {_first(damaged)}; mend it, or go on without with source.skip_damaged=true"
        )


def _num_rejected(records: Mapping[str, PartRecord], listing: Listing) -> int:
    return len(listing.rejects) + sum(len(record.rejects) for record in records.values())


def _check_share(
    job: ImageJob,
    rejected: int,
    records: Mapping[str, PartRecord],
    listed: tuple[int, Listing],
) -> None:
    images, listing = listed
    total = images + len(listing.rejects)
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
