"""The label stage on Ray: one pass for the sums, one for the distances, one for the labels.

The driver sees keys, sums and counts. Results depend on the plan (`label_plan`) alone, and that is
the same for any number of workers and any layout of the input. Every pass leaves what it finished
in the work folder of the run, where the same command finds it again.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray

from sdd_ray.core.error_rates import counts_within
from sdd_ray.core.leave_one_out import PairHistograms, pair_histograms
from sdd_ray.core.reference import Block
from sdd_ray.engine.label_plan import LabelPlan
from sdd_ray.engine.label_scale import scale_labels
from sdd_ray.engine.label_store import LabelContext, Positions, ShardStore, fits_store
from sdd_ray.engine.label_sums import SAMPLE_SIZES, FirstPass, first_pass
from sdd_ray.engine.label_worker import LabelTask, LabelWorker
from sdd_ray.engine.progress import Progress
from sdd_ray.engine.room import pool_size
from sdd_ray.engine.shard_rows import arrange
from sdd_ray.engine.tasks import ended_after, run_on_pool
from sdd_ray.errors import InputError, TooManyRejectsError
from sdd_ray.settings import LabelConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import OutputRun, PartRecord, part_name, read_records

_SETTLED_BY_SAMPLES = 1e-3
"""The least tolerance that leaves samples to settle nearly all rows. Below, many rows are compared
with all others, which then are read again and again: they are kept, on disks if memory is full."""
_KEPT_SHARE = 0.2
"""Of the object store, up to which the rows of a set are kept there instead of read again."""

_USUAL_SIZE = 512  # numbers of an embedding, until the first is seen
_PAIRS = "pairs.npz"


def run_label_job(
    config: LabelConfig, plan: LabelPlan, run: OutputRun
) -> tuple[list[PartRecord], dict[str, Any]]:
    """Label all shards that are not finished yet, then scale all of them.

    Returns:
        The parts in order, and what the manifest has to say about them.

    Raises:
        InputError: A file is damaged, or no image could be labelled.
        TooManyRejectsError: More rows than allowed had to be set aside.
        ResourceError: The cluster has no room for the workers.
    """
    resources = config.resources
    size = pool_size(resources.workers, resources.cpus_per_worker, resources.gpus_per_worker)
    raw = RawParts(run.work / "raw", plan)
    if raw.missing():
        try:
            _label(config, plan, run, raw, size)
        finally:
            run.pause()
    return scale_labels(config, plan, [raw.records[name] for name in raw.names], raw.location, run)


class RawParts:
    """Parts of labels before they are scaled, and which of them are finished."""

    def __init__(self, location: Location, plan: LabelPlan) -> None:
        self.location = location
        self.names = [part_name(shard.number) for shard in plan.shards]
        self.records = read_records(location)

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are not labelled yet."""
        return [number for number, name in enumerate(self.names) if name not in self.records]


def _label(
    config: LabelConfig, plan: LabelPlan, run: OutputRun, raw: RawParts, workers: int
) -> None:
    """Label the shards that are missing."""
    work = run.work
    source, places = arrange(plan, work / "rows")
    compares_all = config.method in ("sampled", "leave_one_out", "all_pairs")
    keep = (
        compares_all
        or config.exact.tolerance < _SETTLED_BY_SAMPLES
        or fits_store(plan.num_rows, _USUAL_SIZE, _KEPT_SHARE)
    )
    sizes = [size for size in SAMPLE_SIZES if size < plan.num_rows / 2]
    most = max([config.count_with, *sizes])
    found = first_pass(plan, source, places, work / "sums", (config.exact.seed, most, keep))
    _check_share(config, plan, found)
    store = ShardStore(source, ray.put(Positions.of(plan, places)), found.groups)
    shared = ray.put(_context(config, found, store, sizes))
    actor = ray.remote(LabelWorker).options(
        num_cpus=config.resources.cpus_per_worker,
        num_gpus=config.resources.gpus_per_worker or None,
        max_restarts=-1,
        max_task_retries=3,
    )
    missing = raw.missing()
    size = min(workers, len(missing))
    with ended_after([actor.remote(config, raw.location, shared) for _ in range(size)]) as actors:
        pairs = None
        if config.method == "leave_one_out":
            counted = _count_all_pairs(plan, actors, found, work / _PAIRS)
            _check_rate(config.leave_one_out.fmr, counted)
            pairs = ray.put(counted)
        for record in _labelled(config, plan, actors, pairs, raw):
            raw.records[record.name] = record
            run.note_time()


def _context(
    config: LabelConfig, found: FirstPass, store: ShardStore, sizes: Sequence[int]
) -> LabelContext:
    usable = int(found.usable.sum())
    samples = [found.sample(size) for size in sizes if size < usable]
    counted: Block | None = found.sample(config.count_with) if config.count_with else None
    return LabelContext(
        store=store,
        sums=found.sums,
        offsets=np.concatenate([[0], np.cumsum(found.usable)]),
        samples=tuple(ray.put(sample) for sample in samples),
        counted=None if counted is None else ray.put(counted),
    )


def _labelled(
    config: LabelConfig, plan: LabelPlan, actors: list[Any], pairs: Any, raw: RawParts
) -> Iterator[PartRecord]:
    """Yield the records of the parts that were missing, as they are finished."""
    missing, step = raw.missing(), config.resources.shards_per_task
    tasks = [
        [_task(plan, number) for number in missing[first : first + step]]
        for first in range(0, len(missing), step)
    ]
    before = sum(record.rows_in for record in raw.records.values())
    progress = Progress("label", plan.num_rows, before)
    for records in run_on_pool(actors, lambda a, task: a.label.remote(task, pairs), tasks):
        for record in records:
            progress.update(record.rows_in, len(record.rejects))
            yield record
    progress.close()


def _task(plan: LabelPlan, number: int) -> LabelTask:
    shard = plan.shards[number]
    return LabelTask(
        number=number,
        name=part_name(number),
        image_ids=shard.image_ids,
        identities=shard.identities,
        family=shard.family,
    )


def _count_all_pairs(
    plan: LabelPlan, actors: list[Any], found: FirstPass, file: Location
) -> PairHistograms:
    """Return all similarities of the set, counted; from a file if they were counted before."""
    if file.exists():
        with np.load(io.BytesIO(file.read_bytes())) as counted:
            return PairHistograms(counted["mated"], counted["nonmated"])
    numbers = [number for number in range(len(plan.shards)) if found.usable[number]]
    progress = Progress("count pairs", int(found.usable.sum()))
    mated: Any = 0
    nonmated: Any = 0
    counts = run_on_pool(actors, lambda a, number: a.count_pairs.remote(number), numbers)
    for own, others in counts:
        mated, nonmated = mated + own, nonmated + others
        progress.update(int((own.sum() + others.sum()) // max(found.sums.count - 1, 1)))
    progress.close()
    pairs = pair_histograms(mated, nonmated)
    sink = io.BytesIO()
    np.savez_compressed(sink, mated=pairs.mated, nonmated=pairs.nonmated)
    file.write_bytes(sink.getvalue())
    return pairs


def _check_rate(fmr: float | None, pairs: PairHistograms) -> None:
    total = int(pairs.nonmated.sum())
    if fmr is not None and (total == 0 or counts_within(np.array([fmr]), total)[0] == 0):
        raise InputError(
            f"leave_one_out.fmr={fmr:g} allows no false match among {total:,} nonmated pairs;"
            " it needs a larger rate, or more images"
        )


def _check_share(config: LabelConfig, plan: LabelPlan, found: FirstPass) -> None:
    faulty = sum(found.faulty.values())
    rejected = len(plan.rejects) + faulty
    total = len(plan.rejects) + plan.num_rows
    if rejected > config.max_reject_share * total:
        reasons = sorted({r.reason for r in plan.rejects})
        raise TooManyRejectsError(
            f"{rejected:,} of {total:,} rows had to be set aside ({faulty:,} zero or non-finite"
            f" embeddings, {len(plan.rejects):,} {' and '.join(reasons) or 'others'}), more than"
            f" max_reject_share={config.max_reject_share:g}"
        )
    if found.sums.count == 0:
        raise InputError("no image could be labelled: no embedding is usable")
