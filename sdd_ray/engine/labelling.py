"""The label stage on Ray: shards are loaded, summed, labelled by a pool of actors, and scaled.

Embeddings travel from their files into Ray's object store, shard by shard, and from there to the
actors; the driver sees keys, sums and counts. Results depend on the plan (`label_plan`) alone, and
that is the same for any number of workers and any layout of the input.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from sdd_ray.columns import DISTANCE, EMBEDDING, LABELS, PSEUDO_LABEL
from sdd_ray.core.moments import EmbeddingSums, partial_sums
from sdd_ray.core.pseudo_label import DistanceSummary, LabelScale, fit_scale
from sdd_ray.core.similarity import EMBEDDING_REASONS, check_embeddings, normalise
from sdd_ray.engine.evaluating import embedding_matrix
from sdd_ray.engine.label_plan import LabelPlan, LabelShard
from sdd_ray.engine.label_worker import LabelWorker, ShardTask
from sdd_ray.engine.progress import Progress
from sdd_ray.engine.session import pool_size
from sdd_ray.engine.tasks import run_on_pool
from sdd_ray.errors import InputError, SddError, TooManyRejectsError
from sdd_ray.settings import LabelConfig
from sdd_ray.store.dataset import read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import OutputRun, PartRecord, Reject, part_name, read_records, write_part


@dataclass(frozen=True)
class LoadedShard:
    """What the driver keeps of a loaded shard.

    Attributes:
        block: Reference to the (unit, codes) of its usable rows in the object store.
        count: Usable rows.
        faults: (N,) code into EMBEDDING_REASONS of every row of the shard.
    """

    block: Any
    count: int
    faults: NDArray[np.int8]


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
    raw = OutputFolder(run.work / "raw", plan)
    missing = raw.missing()
    if missing:
        resources = config.resources
        size = pool_size(resources.workers, resources.cpus_per_worker, 0.0)
        try:
            loaded, sums = _load(plan)
            _check_share(config, plan, loaded)
            for record in _label(config, plan, loaded, sums, raw, size):
                raw.records[record.name] = record
        finally:
            run.pause()
    return _scale(config, plan, raw, run.output)


class OutputFolder:
    """Parts of labels before they are scaled, and which of them are finished."""

    def __init__(self, location: Location, plan: LabelPlan) -> None:
        self.location = location
        self.names = [part_name(shard.number) for shard in plan.shards]
        self.records = read_records(location)

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are not labelled yet."""
        return [number for number, name in enumerate(self.names) if name not in self.records]


def _load(plan: LabelPlan) -> tuple[list[LoadedShard], EmbeddingSums]:
    """Bring all shards into the object store; return them, and the sums over all usable rows."""
    task: Any = ray.remote(_load_shard).options(
        num_returns=2, name="load embeddings", max_retries=3
    )
    progress = Progress("load", sum(len(s.codes) for s in plan.shards), unit="embeddings")
    refs: list[Any] = [task.remote(plan.files, shard) for shard in plan.shards]
    refs.reverse()
    loaded: list[LoadedShard] = []
    total: EmbeddingSums | None = None
    for shard in plan.shards:
        block, info = refs.pop()  # the sums of a shard are let go as soon as they are added
        found = ray.get(info)
        if isinstance(found, SddError):
            raise found
        sums, faults = found
        if total is not None and sums.total.shape != total.total.shape:
            raise _other_size(plan.files[shard.files[0]], sums.total.size, total.total.size)
        total = sums if total is None else total.merge(sums)
        loaded.append(LoadedShard(block, sums.count, faults))
        progress.update(len(shard.codes), int((faults != 0).sum()))
    progress.close()
    return loaded, total or EmbeddingSums.empty(1)


def _load_shard(files: Sequence[Location], shard: LabelShard) -> tuple[Any, Any]:
    """Read, check and normalise the rows of a shard, wherever they lie; runs on a worker."""
    try:
        matrix = _gather(files, shard)
    except SddError as error:
        return None, error
    faults = check_embeddings(matrix)
    unit, _ = normalise(matrix[faults == 0])
    return (unit, shard.codes[faults == 0]), (partial_sums(unit), faults)


def _gather(files: Sequence[Location], shard: LabelShard) -> NDArray[np.float32]:
    matrix: NDArray[np.float32] | None = None
    for number in np.unique(shard.files):
        wanted = shard.files == number
        part = _embeddings(files[number])[shard.rows[wanted]]
        if matrix is None:
            matrix = np.empty((len(shard.rows), part.shape[1]), np.float32)
        if part.shape[1] != matrix.shape[1]:
            raise _other_size(files[number], part.shape[1], matrix.shape[1])
        matrix[wanted] = part
    return np.zeros((0, 1), np.float32) if matrix is None else matrix


def _embeddings(file: Location) -> NDArray[np.float32]:
    column = read_parquet(file, [EMBEDDING])[EMBEDDING]
    try:
        return embedding_matrix(column)
    except InputError as error:
        raise InputError(f"{file.uri}: {error}") from error


def _other_size(file: Location, size: int, others: int) -> InputError:
    return InputError(f"{file.uri}: embeddings of {size} numbers, others have {others}")


def _label(
    config: LabelConfig,
    plan: LabelPlan,
    loaded: Sequence[LoadedShard],
    sums: EmbeddingSums,
    raw: OutputFolder,
    workers: int,
) -> Iterator[PartRecord]:
    blocks = [shard.block for shard in loaded]
    counts = np.array([shard.count for shard in loaded])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    missing = raw.missing()
    size = min(workers, len(missing))
    actor = ray.remote(LabelWorker).options(
        num_cpus=config.resources.cpus_per_worker, max_restarts=-1, max_task_retries=3
    )
    shared = ray.put(sums)
    actors = [actor.remote(config, raw.location, shared, blocks, offsets) for _ in range(size)]
    step = config.resources.shards_per_task
    tasks = [
        [_task(plan.shards[n], loaded[n], offsets[n]) for n in missing[first : first + step]]
        for first in range(0, len(missing), step)
    ]
    total = sum(len(s.codes) for s in plan.shards)
    progress = Progress("label", total, sum(r.rows_in for r in raw.records.values()))
    for records in run_on_pool(actors, lambda a, task: a.label.remote(task), tasks):
        for record in records:
            progress.update(record.rows_in, len(record.rejects))
            yield record
    progress.close()


def _task(shard: LabelShard, loaded: LoadedShard, offset: int) -> ShardTask:
    usable = loaded.faults == 0
    ids = shard.image_ids.to_pylist()
    rejects = [
        Reject(ids[row], EMBEDDING_REASONS[loaded.faults[row]]) for row in np.flatnonzero(~usable)
    ]
    return ShardTask(
        number=shard.number,
        name=part_name(shard.number),
        offset=int(offset),
        image_ids=shard.image_ids.filter(pa.array(usable)),
        identities=shard.identities.filter(pa.array(usable)),
        rejects=rejects,
    )


def _check_share(config: LabelConfig, plan: LabelPlan, loaded: Sequence[LoadedShard]) -> None:
    faulty = sum(int((shard.faults != 0).sum()) for shard in loaded)
    rejected = len(plan.rejects) + faulty
    total = len(plan.rejects) + sum(len(shard.codes) for shard in plan.shards)
    if rejected > config.max_reject_share * total:
        reasons = sorted({r.reason for r in plan.rejects})
        raise TooManyRejectsError(
            f"{rejected:,} of {total:,} rows had to be set aside ({faulty:,} zero or non-finite"
            f" embeddings, {len(plan.rejects):,} {' and '.join(reasons) or 'others'}), more than"
            f" max_reject_share={config.max_reject_share:g}"
        )


def _scale(
    config: LabelConfig, plan: LabelPlan, raw: OutputFolder, output: Location
) -> tuple[list[PartRecord], dict[str, Any]]:
    """Fit the scale to all distances, and write the final parts with their pseudo-labels."""
    summary = DistanceSummary.of(np.zeros(0))
    for name in raw.names:
        distances = read_parquet(raw.location / f"{name}.parquet", [DISTANCE])[DISTANCE]
        summary = summary.merge(DistanceSummary.of(_floats(distances)))
    if summary.low > summary.high:
        raise InputError(
            "no image could be labelled: every one lacks a comparison; see the reasons"
        )
    scale = fit_scale(summary, config.scaling)
    records, unlabelled = [], dict[str, int]()
    for name in raw.names:
        table = _scaled(read_parquet(raw.location / f"{name}.parquet"), scale)
        for item in table["reason"].value_counts().to_pylist():
            if item["values"] is not None:
                unlabelled[item["values"]] = unlabelled.get(item["values"], 0) + item["counts"]
        before = raw.records[name]
        records.append(write_part(output, name, table, before.rejects, before.rows_in))
    total = sum(record.rows_out for record in records)
    results = {
        "labelled": total - sum(unlabelled.values()),
        "unlabelled": unlabelled,
        "identities": plan.num_identities,
        "scale": scale.to_dict(),
        "images_shared_between_identities": plan.duplicates_across_identities,
    }
    return records, results


def _scaled(table: pa.Table, scale: LabelScale) -> pa.Table:
    labels = scale.apply(_floats(table[DISTANCE]))
    column = pa.array(labels, pa.float64(), from_pandas=True)
    table = table.append_column(PSEUDO_LABEL, column)
    return table.select(LABELS.names).cast(LABELS)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(column.to_numpy(), np.float64)
