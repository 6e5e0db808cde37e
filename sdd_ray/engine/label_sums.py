"""The first pass over all embeddings: sums, what is wrong with rows, and random samples.

A Ray task goes through a group of shards and leaves one small file, so a run that is resumed does
not repeat it. The driver adds the sums up in canonical order and keeps the images that were drawn.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from sdd_ray.core.moments import EmbeddingSums, partial_sums
from sdd_ray.core.reference import Block, sampling_order
from sdd_ray.core.sampled import image_digests
from sdd_ray.engine.label_plan import LabelPlan
from sdd_ray.engine.label_store import SHARDS_PER_GROUP, ShardRows
from sdd_ray.engine.progress import Progress
from sdd_ray.engine.shard_rows import Place, RowSource, other_size, read_unit_rows
from sdd_ray.engine.tasks import run_tasks
from sdd_ray.errors import InputError, SddError
from sdd_ray.store.location import Location

SAMPLE_SIZES = (4096, 16384, 65536)
"""Images of the samples that settle labels, each tried where the one before leaves a label open.
One of more than half of the images is not drawn: all of them then cost little more."""

_MARGIN = 6.0  # standard deviations of the number drawn, so that enough are found


@dataclass(frozen=True, eq=False)
class FirstPass:
    """What the first pass found.

    Attributes:
        sums: Over all usable rows.
        faulty: For each shard with unusable rows, their number.
        usable: (shards,) usable rows of each shard.
        drawn: Images drawn, in the order of drawing.
        groups: References to the kept rows of each group, or None.
    """

    sums: EmbeddingSums
    faulty: dict[int, int]
    usable: NDArray[np.int64]
    drawn: Block
    groups: list[Any] | None

    def sample(self, size: int) -> Block:
        """Return the first of the images drawn, sorted by identity."""
        return Block(self.drawn.unit[:size], self.drawn.identities[:size]).sorted()


@dataclass(frozen=True, eq=False)
class _Group:
    """The shards that a task goes through."""

    image_ids: list[pa.Array]
    codes: list[NDArray[np.int64]]
    places: list[Place]


def first_pass(
    plan: LabelPlan,
    source: RowSource,
    places: Sequence[Place],
    work: Location,
    options: tuple[int, int, bool],
) -> FirstPass:
    """Go through all shards once.

    Args:
        plan: The shards.
        source: Files of their rows.
        places: Where the rows of each shard lie.
        work: Folder for what a resumed run needs.
        options: Seed of the samples; images to draw, or all if there are fewer; whether to keep the
            rows in the object store.

    Raises:
        InputError: A file is damaged, or embeddings have different lengths.
    """
    seed, size, keep = options
    share = min(1.0, (size + _MARGIN * np.sqrt(size)) / plan.num_rows)
    task: Any = ray.remote(_sum_group).options(num_returns=2, name="sum embeddings", max_retries=3)
    there = set(work.names()) if work.exists() else set()

    def started(group: _Group, target: Location) -> tuple[Any, Any]:
        rows, error = task.remote(source, group, target, (seed, share, keep))
        return error, rows

    def found_there() -> tuple[Any, Any]:
        nothing = ray.put(None)
        return nothing, nothing

    def calls() -> Iterator[tuple[Callable[[], Any], tuple[Location, bool]]]:
        for first in range(0, len(plan.shards), SHARDS_PER_GROUP):
            shards = plan.shards[first : first + SHARDS_PER_GROUP]
            name = f"sums-{first // SHARDS_PER_GROUP:06d}.npz"
            group = _Group(
                [shard.image_ids for shard in shards],
                [shard.codes for shard in shards],
                list(places[first : first + SHARDS_PER_GROUP]),
            )
            if name in there and not keep:
                yield found_there, (work / name, False)
                continue
            yield partial(started, group, work / name), (work / name, True)

    found = _merged(plan, calls(), size)
    return found if keep else replace(found, groups=None)


def _merged(
    plan: LabelPlan, calls: Iterator[tuple[Callable[[], Any], tuple[Location, bool]]], size: int
) -> FirstPass:
    """Add up what the tasks left, in canonical order; each file says whether it is new."""
    sums: EmbeddingSums | None = None
    usable: list[int] = []
    drawn: list[tuple[NDArray[np.uint64], NDArray[np.float32], NDArray[np.int64]]] = []
    progress = Progress("sum", plan.num_rows, unit="embeddings")
    groups: list[Any] = []
    for (error, rows_kept), (file, is_new) in run_tasks(calls):
        if isinstance(error, SddError):
            raise error
        groups.append(rows_kept)
        with np.load(io.BytesIO(file.read_bytes())) as found:
            part = EmbeddingSums(int(found["count"]), found["total"], found["second_moment"])
            number = len(usable)
            usable += found["usable"].tolist()
            drawn.append((found["order"], found["unit"], found["codes"]))
        if part.count:
            if sums is not None and sums.total.shape != part.total.shape:
                place = plan.files[plan.shards[number].files[0]]
                raise other_size(place, part.total.size, sums.total.size)
            sums = part if sums is None else sums.merge(part)
        done = plan.shards[number : len(usable)]
        rows = sum(len(shard.codes) for shard in done)
        if is_new:
            progress.update(rows, rows - sum(usable[number:]))
        else:
            progress.found(rows)
    progress.close()
    sizes = np.array([len(shard.codes) for shard in plan.shards])
    missing = sizes - np.array(usable)
    if sums is None:
        raise InputError(
            f"no image could be labelled: all {plan.num_rows:,} embeddings are zero or not finite"
        )
    return FirstPass(
        sums=sums,
        faulty={int(number): int(missing[number]) for number in np.flatnonzero(missing)},
        usable=np.array(usable, np.int64),
        drawn=_first_drawn(drawn, size),
        groups=groups,
    )


def _first_drawn(
    drawn: Sequence[tuple[NDArray[np.uint64], NDArray[np.float32], NDArray[np.int64]]], size: int
) -> Block:
    order = np.concatenate([part[0] for part in drawn])
    first = np.argsort(order, kind="stable")[:size]
    offsets = np.cumsum([len(part[0]) for part in drawn])
    width = max(part[1].shape[1] for part in drawn)
    unit = np.empty((len(first), width), np.float32)
    codes = np.empty(len(first), np.int64)
    holder = np.searchsorted(offsets, first, side="right")
    for number in np.unique(holder):
        chosen = holder == number
        at = first[chosen] - (offsets[number] - len(drawn[number][0]))
        unit[chosen], codes[chosen] = drawn[number][1][at], drawn[number][2][at]
    return Block(unit, codes)


def _sum_group(
    source: RowSource, group: _Group, target: Location, options: tuple[int, float, bool]
) -> tuple[Any, Any]:
    """Go through the shards of a group; runs on a worker. Return their rows, and an error."""
    seed, share, keep = options
    limit = np.uint64(min(int(share * 2.0**64), 2**64 - 1))
    sums: EmbeddingSums | None = None
    usable, kept, drawn = [], [], []
    try:
        for ids, codes, place in zip(group.image_ids, group.codes, group.places, strict=True):
            unit, faults = read_unit_rows(source, place)
            rows = ShardRows(unit, codes[faults == 0], faults)
            usable.append(len(unit))
            if len(unit):
                part = partial_sums(unit)
                if sums is not None and sums.total.shape != part.total.shape:
                    raise other_size(source.origin(place.files[0]), unit.shape[1], sums.total.size)
                sums = part if sums is None else sums.merge(part)
            order = sampling_order(
                image_digests(ids.filter(pa.array(faults == 0)).to_pylist()), seed
            )
            chosen = np.flatnonzero(order <= limit)
            drawn.append((order[chosen], unit[chosen], rows.codes[chosen]))
            if keep:
                kept.append(rows)
        target.write_bytes(_saved(sums, usable, drawn))
    except SddError as error:
        return None, error
    return kept, None


def _saved(
    sums: EmbeddingSums | None,
    usable: Sequence[int],
    drawn: Sequence[tuple[NDArray[np.uint64], NDArray[np.float32], NDArray[np.int64]]],
) -> bytes:
    width = 1 if sums is None else sums.total.size
    some = [part for part in drawn if len(part[0])]
    sums = EmbeddingSums.empty(1) if sums is None else sums
    sink = io.BytesIO()
    np.savez(
        sink,
        count=sums.count,
        total=sums.total,
        second_moment=sums.second_moment,
        usable=np.array(usable, np.int64),
        order=np.concatenate([np.zeros(0, np.uint64), *(part[0] for part in some)]),
        unit=np.concatenate([np.zeros((0, width), np.float32), *(part[1] for part in some)]),
        codes=np.concatenate([np.zeros(0, np.int64), *(part[2] for part in some)]),
    )
    return sink.getvalue()
