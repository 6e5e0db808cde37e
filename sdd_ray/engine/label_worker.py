"""The actor of the label stage: one shard after the other, from unit rows to distances."""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from sdd_ray.columns import LABELS, LEAVE_ONE_OUT, PSEUDO_LABEL
from sdd_ray.core.distances import SETTLED
from sdd_ray.core.distributions import ShardTally, quantile_names
from sdd_ray.core.leave_one_out import PairHistograms
from sdd_ray.core.mated import Shard
from sdd_ray.core.reference import Block
from sdd_ray.core.screening import Screen
from sdd_ray.core.shard_statistics import DISTANCE_REASONS
from sdd_ray.core.similarity import EMBEDDING_REASONS
from sdd_ray.engine.label_methods import Labelled, MethodInput, count_pairs, run_method
from sdd_ray.engine.label_store import LabelContext, ShardRows
from sdd_ray.errors import SddError
from sdd_ray.settings import LabelConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import PartRecord, Reject, write_part

_PAYS = 0.5  # of the time of float32 products, up to which bfloat16 ones are worth their passes

ROUNDS = "rounds"
TOO_FEW = "too_few_images"
TOO_FEW_LEFT = "too_few_comparisons_left"

RAW_LABELS = pa.schema(
    [
        *(
            pa.field(f.name, pa.float64() if f.type == pa.float32() else f.type)
            for f in LABELS
            if f.name != PSEUDO_LABEL
        ),
        pa.field(ROUNDS, pa.list_(pa.float64())),
    ]
)
"""Labels before they are scaled, in full precision; and the distances of the paper's rounds."""


@dataclass(frozen=True)
class LabelTask:
    """One shard to label.

    Attributes:
        number: Number of the shard.
        name: Name of the part it becomes.
        image_ids, identities: (N,) keys of its rows.
        family: Numbers of the first shard and after the last one that hold its identities.
    """

    number: int
    name: str
    image_ids: pa.Array
    identities: pa.Array
    family: tuple[int, int]


class LabelWorker:
    """Labels shards; everything it needs to know of the other shards is in the context.

    Args:
        config: Configuration of the run.
        output: Folder of the parts it writes.
        context: What the workers have in common.
    """

    def __init__(self, config: LabelConfig, output: Location, context: LabelContext) -> None:
        self._config, self._output, self._context = config, output, context
        self._fetched: dict[int, Block] = {}
        self._kept: dict[str, Any] = {}
        self._screen: Screen | None = None
        self._screen_pays: bool | None = None
        self._family: tuple[tuple[int, int], Shard] | None = None

    def ready(self) -> None:
        """Return: the worker has started."""

    def label(
        self, tasks: Sequence[LabelTask], pairs: PairHistograms | None
    ) -> list[PartRecord] | SddError:
        """Label some shards and write their parts; an error for the user is returned."""
        try:
            return [self._label(task, pairs) for task in tasks]
        except SddError as error:
            return error

    def count_pairs(self, number: int) -> Any:
        """Return the mated and nonmated similarities of a shard's rows with all images, counted."""
        try:
            rows = self._context.store.read(number)
            return count_pairs(rows, int(self._context.offsets[number]), self._context.store)
        except SddError as error:
            return error

    def _label(self, task: LabelTask, pairs: PairHistograms | None) -> PartRecord:
        rows = self._context.store.read(task.number)
        ids = task.image_ids.to_pylist()
        rejects = [
            Reject(ids[row], EMBEDDING_REASONS[rows.faults[row]])
            for row in np.flatnonzero(rows.faults)
        ]
        if len(rows.unit) == 0:
            self._write_histograms(task, None)
            return write_part(self._output, task.name, RAW_LABELS.empty_table(), rejects)
        usable = pa.array(rows.faults == 0)
        shard, part = self._shard(task, rows)
        counted = self._context.counted
        sample = None if counted is None else self._sample(counted)
        tally = ShardTally(shard, part, sample)
        labelled = run_method(
            MethodInput(
                config=self._config,
                shard=shard,
                part=part,
                image_ids=[i for i, fault in zip(ids, rows.faults, strict=True) if fault == 0],
                position=int(self._context.offsets[task.number]),
                context=self._context,
                samples=tuple(self._fetcher(sample) for sample in self._context.samples),
                screen=self._screen_of_first(),
                kept=self._kept,
                watch=tally.count_mated,
                pairs=pairs,
            )
        )
        self._write_histograms(task, tally)
        table = self._table(
            labelled,
            {
                "image_id": task.image_ids.filter(usable),
                "identity": task.identities.filter(usable),
                "reason": self._reasons(labelled, shard, part),
            },
            tally.nonmated_quantiles,
        )
        return write_part(self._output, task.name, table, rejects)

    def _shard(self, task: LabelTask, rows: ShardRows) -> tuple[Shard, tuple[int, int]]:
        """Return whole identities that hold the rows to label, and which rows of them to label."""
        first, last = task.family
        if last - first == 1:
            return Shard.of(rows.unit, rows.codes), (0, len(rows.unit))
        if self._family is None or self._family[0] != task.family:
            self._family = None  # before the next one is read: either may be large
            pieces = [self._context.store.read(number) for number in range(first, last)]
            whole = Shard.of(
                np.concatenate([piece.unit for piece in pieces]),
                np.concatenate([piece.codes for piece in pieces]),
            )
            self._family = (task.family, whole)
        offsets = self._context.offsets
        start = int(offsets[task.number] - offsets[first])
        return self._family[1], (start, start + len(rows.unit))

    def _fetcher(self, sample: Any) -> Callable[[], Block]:
        return lambda: self._sample(sample)

    def _sample(self, reference: Any) -> Block:
        key = id(reference)
        if key not in self._fetched:
            self._fetched[key] = ray.get(reference)
        return self._fetched[key]

    def _screen_of_first(self) -> Screen | None:
        """Return the first sample for screening if this processor is faster with it."""
        if self._screen_pays is None and self._context.samples:
            self._screen_pays = screening_pays(self._context.sums.total.size)
            if self._screen_pays:
                self._screen = Screen(self._sample(self._context.samples[0]))
        return self._screen

    def _reasons(self, labelled: Labelled, shard: Shard, part: tuple[int, int]) -> list[str | None]:
        """Return why rows have no label; the method's own reasons come first."""
        reasons = [DISTANCE_REASONS[code] or None for code in labelled.reason]
        if self._config.method == "leave_one_out":
            nothing = np.isnan(labelled.leave_one_out)
            reasons = [
                TOO_FEW_LEFT if without and reason is None else reason
                for reason, without in zip(reasons, nothing, strict=True)
            ]
        group = shard.group[part[0] : part[1]]
        too_few = np.diff(shard.starts)[group] < self._config.min_images
        return [TOO_FEW if few else reason for reason, few in zip(reasons, too_few, strict=True)]

    def _write_histograms(self, task: LabelTask, tally: ShardTally | None) -> None:
        """Write what is counted of a shard beside its part, before it."""
        sink = io.BytesIO()
        if tally is None:
            np.savez_compressed(sink)
        else:
            np.savez_compressed(
                sink,
                mated=tally.set.mated,
                nonmated=tally.set.nonmated,
                mated_by_identity=tally.mated_by_identity,
                nonmated_by_identity=tally.nonmated_by_identity,
            )
        (self._output / f"{task.name}.npz").write_bytes(sink.getvalue())

    def _table(
        self,
        labelled: Labelled,
        keys: dict[str, Any],
        nonmated_quantiles: NDArray[np.float64],
    ) -> pa.Table:
        statistics = labelled.statistics
        unlabelled = np.array([reason is not None for reason in keys["reason"]], bool)
        values: dict[str, Any] = {
            **keys,
            "distance": np.where(unlabelled, np.nan, labelled.distance),
            "error_bound": np.where(unlabelled, np.nan, labelled.error_bound),
            "settled_by": [
                None if nothing or code < 0 else SETTLED[code]
                for nothing, code in zip(unlabelled, labelled.settled, strict=True)
            ],
            LEAVE_ONE_OUT: np.where(unlabelled, np.nan, labelled.leave_one_out),
            "method": [self._config.method] * len(unlabelled),
            ROUNDS: _rounds(labelled.rounds, unlabelled),
        }
        for name in RAW_LABELS.names:
            if name not in values and hasattr(statistics, name):
                values[name] = getattr(statistics, name)
        for side, found in (
            ("mated", statistics.mated_quantiles),
            ("nonmated", nonmated_quantiles),
        ):
            values |= dict(zip(quantile_names(side), found.T, strict=True))
        arrays = [_column(values[field.name], field.type) for field in RAW_LABELS]
        return pa.table(arrays, schema=RAW_LABELS)


def screening_pays(size: int) -> bool:
    """Return whether bfloat16 products of embeddings of a size are much faster than float32 ones.

    Measured, in some hundredths of a second: no other way to know holds for every processor.
    """
    rows, columns = torch.zeros((256, size)), torch.zeros((4096, size))
    seconds = []
    for kind in (torch.float32, torch.bfloat16):
        left, right = rows.to(kind), columns.to(kind).T
        torch.mm(left, right)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            torch.mm(left, right)
            times.append(time.perf_counter() - started)
        seconds.append(min(times))
    return seconds[1] < _PAYS * seconds[0]


def _rounds(rounds: NDArray[np.float64] | None, unlabelled: NDArray[np.bool_]) -> pa.Array:
    if rounds is None:
        return pa.nulls(len(unlabelled), pa.list_(pa.float64()))
    values = [None if nothing else row for nothing, row in zip(unlabelled, rounds, strict=True)]
    return pa.array(values, pa.list_(pa.float64()))


def _column(values: Any, kind: pa.DataType) -> pa.Array:
    """Return an Arrow column; a number that is NaN because there is none becomes null."""
    if isinstance(values, pa.Array):
        return values
    return pa.array(values, kind, from_pandas=isinstance(values, np.ndarray))
