"""The audit on Ray: what the similarities of a set betray about its identities.

Blocks of whole identities are loaded into Ray's object store once and worked on by a pool of
actors: similarities within identities, between the centroids of all identities, between suspects
and all centroids, and between all images or candidates of them. The driver keeps keys, a few
numbers an image, centroids, and what is found. Blocks, tiles and draws follow from the sorted keys,
so results do not depend on workers, files or the order of rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from sdd_ray.columns import CONTENT, NORM
from sdd_ray.core.audit import (
    BlockSurvey,
    Identities,
    Split,
    SurveyPlan,
)
from sdd_ray.core.levels import Levels
from sdd_ray.core.similarity import EMBEDDING_REASONS
from sdd_ray.core.verdicts import norm_ranks
from sdd_ray.engine.audit_worker import AuditWorker, Sample, load_block, strings
from sdd_ray.engine.label_plan import LabelPlan, LabelShard
from sdd_ray.engine.progress import Progress
from sdd_ray.engine.shard_rows import arrange, other_size
from sdd_ray.engine.tasks import ended_after, run_on_pool, run_tasks
from sdd_ray.errors import InputError, SddError, TooManyRejectsError
from sdd_ray.settings import AuditConfig
from sdd_ray.store.dataset import Dataset, read_tables
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject


@dataclass(frozen=True, eq=False)
class AuditedSet:
    """The usable images of a set in canonical order, by (identity, image_id).

    Shapes: N images, G identities.

    Attributes:
        image_ids: (N,) keys.
        names: (G,) identities.
        codes: (N,) number of the identity of each image.
        content: (N,) digests of the pixels. has_content: (N,) whether there is one.
        norm_rank: (N,) share of the images with a shorter embedding, NaN where lengths say nothing.
        offsets: (B + 1,) first image of each block, and N.
        blocks: (B,) references to (unit, codes).
        rejects: Rows set aside.
        sample: Images drawn for the thresholds.
    """

    image_ids: pa.Array
    names: pa.Array
    codes: NDArray[np.int64]
    content: NDArray[np.uint64]
    has_content: NDArray[np.bool_]
    norm_rank: NDArray[np.float32]
    offsets: NDArray[np.int64]
    blocks: list[Any]
    rejects: list[Reject]
    sample: Sample


@dataclass(frozen=True, eq=False)
class Survey:
    """What is known of all images and identities, see `core.audit.BlockSurvey`."""

    own: NDArray[np.float32]
    usual: NDArray[np.float32]
    group: NDArray[np.int64]
    splits: list[Split]
    duplicate_of: NDArray[np.int64]
    duplicate_similarity: NDArray[np.float32]
    num_duplicate_pairs: int
    identities: Identities


class Pool:
    """Actors with access to all blocks, and a progress line for what they do.

    Args:
        actors: Handles of `AuditWorker`.
    """

    def __init__(self, actors: list[Any]) -> None:
        self._actors = actors
        self._held: list[Any] = []

    def put(self, shared: Any) -> Any:
        """Return a reference to what calls share, which is held as long as the actors.

        An actor that is started again does once more what it was at, also an item that another one
        was faster with and nobody waits for. Once in some runs of a test an actor that had been
        killed did not start again, for want of such an object.
        """
        self._held.append(ray.put(shared))
        return self._held[-1]

    def run(
        self,
        progress: Progress,
        call: Callable[[Any, Any], Any],
        items: Iterable[Any],
        weigh: Callable[[Any], int] = lambda _: 1,
    ) -> Iterator[Any]:
        """Yield the results of `call(actor, item)` as they come; `weigh` says how much is done."""
        for result in run_on_pool(self._actors, call, items):
            progress.update(weigh(result))
            yield result
        progress.close()


@contextmanager
def pool_of(config: AuditConfig, blocks: Sequence[Any], size: int) -> Iterator[Pool]:
    """Start the workers of an audit, with references to the blocks, and end them."""
    actor = ray.remote(AuditWorker).options(
        num_cpus=config.resources.cpus_per_worker, max_restarts=-1, max_task_retries=3
    )
    with ended_after([actor.remote(blocks) for _ in range(size)]) as actors:
        yield Pool(actors)


def load(config: AuditConfig, dataset: Dataset, plan: LabelPlan, work: Location) -> AuditedSet:
    """Bring all blocks into the object store; set aside what cannot be used.

    Raises:
        InputError: A file is damaged, or embeddings have different lengths.
        TooManyRejectsError: More rows than allowed had to be set aside.
    """
    shards = blocks_of(plan)
    sizes = [sum(len(shard.codes) for shard in block) for block in shards]
    drawn = _drawn(config, sizes)
    task: Any = ray.remote(load_block).options(num_returns=2, name="load embeddings", max_retries=3)
    source, places = arrange(plan, work)

    def started(number: int) -> tuple[Any, Any]:
        block = shards[number]
        where = [places[shard.number] for shard in block]
        rows, info = task.remote(source, block, where, drawn[number])
        return info, rows

    progress = Progress("load", sum(sizes), unit="embeddings")
    blocks: list[Any] = []
    samples: list[Sample] = []
    faults: list[NDArray[np.int8]] = []
    calls = ((partial(started, number), block) for number, block in enumerate(shards))
    for (found, rows), block in run_tasks(calls):
        if isinstance(found, SddError):
            raise found
        blocks.append(rows)
        sample, fault = found
        size, others = sample.unit.shape[1], samples[0].unit.shape[1] if samples else 0
        if others not in (0, size):
            raise other_size(plan.files[block[0].files[0]], size, others)
        samples.append(sample)
        faults.append(fault)
        progress.update(len(fault), int((fault != 0).sum()))
    progress.close()
    return _audited(config, dataset, plan, blocks, (samples, faults))


def blocks_of(plan: LabelPlan) -> list[list[LabelShard]]:
    """Return the shards of each block: one, or all that hold the pieces of one identity."""
    blocks: list[list[LabelShard]] = []
    for shard in plan.shards:
        if blocks and blocks[-1][-1].codes[-1] == shard.codes[0]:
            blocks[-1].append(shard)
        else:
            blocks.append([shard])
    return blocks


def _drawn(config: AuditConfig, sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    """Return the rows of each block that are drawn for the sample."""
    total = sum(sizes)
    generator = np.random.default_rng([config.seed, 0])
    size = min(config.thresholds.sample_images, total)
    places = np.sort(generator.choice(total, size, replace=False))
    ends = np.cumsum(sizes)
    cuts = np.searchsorted(places, ends)
    starts = ends - np.asarray(sizes)
    return [part - start for part, start in zip(np.split(places, cuts[:-1]), starts, strict=True)]


def _audited(
    config: AuditConfig,
    dataset: Dataset,
    plan: LabelPlan,
    blocks: list[Any],
    loaded: tuple[list[Sample], list[NDArray[np.int8]]],
) -> AuditedSet:
    samples, parts = loaded
    faults = np.concatenate(parts)
    usable = faults == 0
    ids = strings([shard.image_ids for shard in plan.shards])
    rejects = plan.rejects + [
        Reject(ids[int(row)].as_py(), EMBEDDING_REASONS[faults[row]])
        for row in np.flatnonzero(~usable)
    ]
    _check_share(config, len(rejects), len(plan.rejects) + len(faults))
    names = strings([shard.identities for shard in plan.shards])
    codes = np.concatenate([shard.codes for shard in plan.shards])
    content, has_content, norms = _columns(dataset, plan)
    offsets = np.cumsum([0, *(int((part == 0).sum()) for part in parts)])
    sample = Sample(
        np.concatenate([part.unit for part in samples]),
        np.concatenate([part.codes for part in samples]),
        np.concatenate([p.rows + first for p, first in zip(samples, offsets[:-1], strict=True)]),
    )
    return AuditedSet(
        image_ids=ids.filter(pa.array(usable)),
        names=names.take(pa.array(np.flatnonzero(np.diff(codes, prepend=-1)))),
        codes=codes[usable],
        content=content[usable],
        has_content=has_content[usable],
        norm_rank=norm_ranks(norms[usable]),
        offsets=offsets,
        blocks=blocks,
        rejects=rejects,
        sample=sample,
    )


def _check_share(config: AuditConfig, rejected: int, total: int) -> None:
    if rejected > config.max_reject_share * total:
        raise TooManyRejectsError(
            f"{rejected:,} of {total:,} rows had to be set aside (zero or non-finite embeddings,"
            " missing or repeated keys), more than"
            f" max_reject_share={config.max_reject_share:g} allows"
        )
    if rejected == total:
        raise InputError("every row had to be set aside: nothing is left to audit")


def _columns(
    dataset: Dataset, plan: LabelPlan
) -> tuple[NDArray[np.uint64], NDArray[np.bool_], NDArray[np.float32]]:
    """Return digests, whether there is one, and lengths, of all rows of the plan in its order."""
    tables = read_tables(dataset.files, [CONTENT, NORM])
    before = np.cumsum([0, *(table.num_rows for table in tables)])
    files, rows = (
        np.concatenate([getattr(shard, name) for shard in plan.shards])
        for name in ("files", "rows")
    )
    place = before[files] + rows
    table = pa.concat_tables(tables)
    has_content = np.asarray(table[CONTENT].is_valid())[place]
    content = table[CONTENT].fill_null(0).to_numpy()[place]
    norms = table[NORM].to_numpy().astype(np.float32)[place]
    return content, has_content, norms


def provisional_levels_of(config: AuditConfig, audited: AuditedSet, pool: Pool) -> Levels:
    """Return levels that errors in the set hardly move, see `core.levels`."""
    rates = (config.thresholds.fmr, config.thresholds.chance_fmr)
    levels: Levels
    (levels,) = pool.run(
        Progress("first thresholds", 1, unit="samples"),
        lambda actor, sample: actor.provisional.remote(sample, rates),
        [pool.put(audited.sample)],
    )
    return levels


def levels_of(
    config: AuditConfig,
    audited: AuditedSet,
    pool: Pool,
    first: Levels,
    trusted: tuple[NDArray[np.bool_], NDArray[np.int64]],
) -> tuple[Levels, int]:
    """Return the levels of the set, and the nonmated comparisons of the sample they rest on.

    Args:
        config: Of the audit.
        audited: The set.
        pool: Its workers.
        first: Provisional levels.
        trusted: (N,) whether an image agrees with its identity, and (G,) the person of each.

    Raises:
        InputError: There are too few comparisons between trusted images.
    """
    sample, fmr = audited.sample, config.thresholds.fmr
    is_trusted, person = trusted
    kept = is_trusted[sample.rows]
    rest = Sample(sample.unit[kept], person[sample.codes[kept]], sample.rows[kept])
    ((levels, count),) = pool.run(
        Progress("thresholds", 1, unit="samples"),
        lambda actor, shared: actor.trusted.remote(shared, first, fmr),
        [pool.put(rest)],
    )
    if np.isnan(levels.match):
        raise _too_few(fmr, len(rest.codes), count)
    return levels, count


def check_sample(config: AuditConfig, audited: AuditedSet) -> None:
    """Check that the sample makes enough comparisons for its thresholds, before any is made.

    Raises:
        InputError: It does not.
    """
    codes, fmr = audited.sample.codes, config.thresholds.fmr
    count = (len(codes) ** 2 - int(np.square(np.bincount(codes)).sum())) // 2
    if count * fmr < 1:
        raise _too_few(fmr, len(codes), count)


def _too_few(fmr: float, images: int, comparisons: int) -> InputError:
    return InputError(
        f"thresholds.fmr={fmr:g} needs at least {1 / fmr:,.0f} comparisons between different"
        f" identities, {images:,} sampled images make {comparisons:,}; audit more identities, or"
        " raise thresholds.fmr or thresholds.sample_images"
    )


def survey(config: AuditConfig, audited: AuditedSet, pool: Pool, levels: Levels) -> Survey:
    """Look into every identity."""
    plan = SurveyPlan(
        levels,
        config.mixed.min_images,
        config.duplicates.similarity,
        config.images_per_identity,
        config.seed,
    )
    numbers = range(len(audited.blocks))
    found: dict[int, BlockSurvey] = dict(
        pool.run(
            Progress("survey", len(audited.codes)),
            lambda actor, number: actor.survey.remote(number, plan),
            numbers,
            lambda result: len(result[1].own),
        )
    )
    return _survey(audited, [found[number] for number in numbers])


def _survey(audited: AuditedSet, parts: list[BlockSurvey]) -> Survey:
    size = len(audited.names)
    sizes = np.bincount(audited.codes, minlength=size)
    means = np.zeros((size, parts[0].means.shape[1]), np.float32)
    within, usual = np.full(size, np.nan), np.full(size, np.nan, np.float32)
    splits, duplicate_of = [], []
    for start, stop, part in zip(audited.offsets[:-1], audited.offsets[1:], parts, strict=True):
        numbers = np.unique(audited.codes[start:stop])
        means[numbers], within[numbers], usual[numbers] = part.means, part.within, part.usual
        splits += [replace(split, identity=int(numbers[split.identity])) for split in part.splits]
        duplicate_of.append(np.where(part.duplicate_of < 0, -1, part.duplicate_of + start))
    lengths = np.linalg.norm(means, axis=1)
    centroids = means / np.maximum(lengths, np.float32(1e-12))[:, None]
    return Survey(
        own=np.concatenate([part.own for part in parts]),
        usual=usual,
        group=np.concatenate([part.person for part in parts]),
        splits=splits,
        duplicate_of=np.concatenate(duplicate_of),
        duplicate_similarity=np.concatenate([part.duplicate_similarity for part in parts]),
        num_duplicate_pairs=sum(part.num_duplicate_pairs for part in parts),
        identities=Identities(centroids, lengths, sizes, within),
    )
