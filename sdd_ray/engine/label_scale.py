"""The last pass of the label stage: from distances to pseudo-labels, and what the set looks like.

The scale follows from all distances. Ray tasks summarise the finished parts, the driver fits the
scale, and tasks write the parts again with their labels, and the identities beside them.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from sdd_ray.columns import (
    DISTANCE,
    ERROR_RATES,
    IDENTITIES,
    IDENTITY,
    LABELS,
    LEAVE_ONE_OUT,
    PSEUDO_LABEL,
    REASON,
)
from sdd_ray.core.distributions import IDENTITY_BINS, SetHistograms, error_rates
from sdd_ray.core.pseudo_label import LabelScale, fit_scale
from sdd_ray.engine.label_plan import LabelPlan
from sdd_ray.engine.label_worker import ROUNDS
from sdd_ray.engine.progress import Progress
from sdd_ray.engine.tasks import run_tasks
from sdd_ray.errors import InputError, SddError
from sdd_ray.settings import LabelConfig
from sdd_ray.store.dataset import read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import OutputRun, PartRecord, parquet_bytes, write_part

TRIMMED = "trimmed"
IDENTITY_FOLDER = "identities"
RATES_FILE = "error_rates.parquet"

FAMILIES_PER_TASK = 16
"""Shards whose labels are written by one task, with one file of their identities."""

STATED_FMR = (1e-1, 1e-2, 1e-3, 1e-4)
"""False match rates whose threshold the manifest states, where the comparisons counted suffice."""


@dataclass(frozen=True)
class Scaling:
    """How distances become labels.

    Attributes:
        source: What is scaled: the distance, the rounds of the paper's estimator, or Q of the
            leave-one-out label, whose sign is turned: a large Q is a poor image.
        kept: Smallest and largest value, or mean over the rounds, that gets a label.
        scales: One, or one for each round, whose labels are averaged.
    """

    source: str
    kept: tuple[float, float]
    scales: tuple[LabelScale, ...] = ()

    def values(self, table: pa.Table) -> NDArray[np.float64]:
        """Return (N, K) what is scaled; NaN where there is no label, or it is trimmed."""
        if self.source == ROUNDS:
            lists = table[ROUNDS].combine_chunks()
            # A part without a label does not tell the number of rounds; the scales do.
            width = max(pc.max(pc.list_value_length(lists)).as_py() or 1, len(self.scales))
            found = np.full((len(lists), width), np.nan)
            found[np.asarray(lists.is_valid())] = lists.flatten().to_numpy().reshape(-1, width)
        else:
            found = _floats(table[self.source])[:, None]
        if self.source == LEAVE_ONE_OUT:
            found = -found
        found[self.is_trimmed(found)] = np.nan
        return found

    def is_trimmed(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return (N,) which rows of (N, K) values lie outside what is kept."""
        mean = values.mean(axis=1)
        trimmed: NDArray[np.bool_] = (mean < self.kept[0]) | (mean > self.kept[1])
        return trimmed

    def labels(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N,) labels of (N, K) values."""
        found = [scale.apply(values[:, k]) for k, scale in enumerate(self.scales)]
        labels: NDArray[np.float64] = np.mean(found, axis=0)
        return labels


def scale_labels(
    config: LabelConfig,
    plan: LabelPlan,
    records: Sequence[PartRecord],
    raw: Location,
    run: OutputRun,
) -> tuple[list[PartRecord], dict[str, Any]]:
    """Write the final parts; return their records, and what the manifest says.

    Raises:
        InputError: No image could be labelled.
        OutputError: The output cannot be written.
    """
    families = sorted({shard.family for shard in plan.shards})
    groups = [
        [list(records[first:last]) for first, last in families[start : start + FAMILIES_PER_TASK]]
        for start in range(0, len(families), FAMILIES_PER_TASK)
    ]
    scaling = _fit(config, raw, [[r.name for family in group for r in family] for group in groups])
    task: Any = ray.remote(_write_group).options(name="scale labels", max_retries=3)
    shared = ray.put(scaling)
    progress = Progress("scale", sum(record.rows_in for record in records))
    calls = (
        (partial(task.remote, shared, group, raw, run.output, f"part-{number:06d}"), group)
        for number, group in enumerate(groups)
    )
    written: list[PartRecord] = []
    found = _Counted()
    for result, group in run_tasks(calls):
        parts, counted = checked(result)
        written += parts
        found.add(counted)
        progress.update(sum(record.rows_in for family in group for record in family))
    progress.close()
    results = {
        "labelled": sum(r.rows_out for r in written) - sum(found.unlabelled.values()),
        "unlabelled": found.unlabelled,
        "settled_by": found.settled,
        "largest_error_bound": found.largest_bound,
        "identities": plan.num_identities,
        "identity_files": [f"{IDENTITY_FOLDER}/part-{n:06d}.parquet" for n in range(len(groups))],
        "scale": scaling.scales[0].to_dict() if len(scaling.scales) == 1 else None,
        "round_scales": [s.to_dict() for s in scaling.scales] if len(scaling.scales) > 1 else None,
        "kept_values": [None if np.isinf(value) else value for value in scaling.kept],
        "similarities": _write_rates(found.histograms, run.output),
        "images_shared_between_identities": plan.duplicates_across_identities,
    }
    return written, results


@dataclass
class _Counted:
    """What is counted while parts are written."""

    unlabelled: dict[str, int] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)
    largest_bound: float = 0.0
    histograms: SetHistograms = field(default_factory=SetHistograms.empty)

    def add(self, other: "_Counted") -> None:
        """Add what was counted elsewhere."""
        for mine, more in ((self.unlabelled, other.unlabelled), (self.settled, other.settled)):
            for name, count in more.items():
                mine[name] = mine.get(name, 0) + count
        self.largest_bound = max(self.largest_bound, other.largest_bound)
        self.histograms = self.histograms.merge(other.histograms)

    def count(self, table: pa.Table) -> None:
        """Count the rows of a part."""
        for names, column in ((self.unlabelled, REASON), (self.settled, "settled_by")):
            for item in table[column].value_counts().to_pylist():
                if item["values"] is not None:
                    names[item["values"]] = names.get(item["values"], 0) + item["counts"]
        self.largest_bound = max(self.largest_bound, pc.max(table["error_bound"]).as_py() or 0.0)


def _fit(config: LabelConfig, raw: Location, names: Sequence[Sequence[str]]) -> Scaling:
    """Fit the scale to the values of all parts."""
    per_round = config.method == "sampled" and config.sampled.normalisation == "per_round"
    source = ROUNDS if per_round else DISTANCE
    source = LEAVE_ONE_OUT if config.method == "leave_one_out" else source
    scaling = Scaling(source, (-np.inf, np.inf))
    means, low, high = _values(raw, names, scaling)
    if len(means) == 0:
        raise InputError(
            "no image could be labelled: every one lacks a comparison; see the reasons"
        )
    if config.trim.low > 0 or config.trim.high > 0:
        ends = np.quantile(means, [config.trim.low, 1.0 - config.trim.high])
        kept = (
            float(ends[0]) if config.trim.low > 0 else -np.inf,
            float(ends[1]) if config.trim.high > 0 else np.inf,
        )
        scaling = Scaling(source, kept)
        num_labelled = len(means)
        means, low, high = _values(raw, names, scaling)
        if len(means) == 0:
            raise InputError(
                f"trim.low={config.trim.low:g} and trim.high={config.trim.high:g} leave none of"
                f" {num_labelled:,} labels"
            )
    if per_round:
        scales = [fit_scale(np.array(ends)) for ends in zip(low, high, strict=True)]
    else:
        scales = [fit_scale(means, config.scaling)]
    return Scaling(source, scaling.kept, tuple(scales))


def _values(
    raw: Location, names: Sequence[Sequence[str]], scaling: Scaling
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return (M,) the mean over the rounds of every labelled image, and (K,) ends of each round."""
    task: Any = ray.remote(_values_of_parts).options(name="summarise labels", max_retries=3)
    calls = ((partial(task.remote, raw, group, scaling), None) for group in names)
    found = [checked(result) for result, _ in run_tasks(calls)]
    means = np.concatenate([part[0] for part in found])
    some = [part for part in found if len(part[0])]
    if not some:
        return means, np.zeros(0), np.zeros(0)
    low = np.min([part[1] for part in some], axis=0)
    return means, low, np.max([part[2] for part in some], axis=0)


def _values_of_parts(raw: Location, names: Sequence[str], scaling: Scaling) -> Any:
    try:
        tables = [read_parquet(raw / f"{name}.parquet", [scaling.source]) for name in names]
        values = [scaling.values(table) for table in tables if table.num_rows]
    except SddError as error:
        return error
    width = max((part.shape[1] for part in values), default=1)
    labelled = [part[~np.isnan(part).any(axis=1)] for part in values]
    some = np.concatenate([np.zeros((0, width)), *(part for part in labelled if len(part))])
    if len(some) == 0:
        return np.zeros(0), np.zeros(width), np.zeros(width)
    return some.mean(axis=1), some.min(axis=0), some.max(axis=0)


def checked(result: Any) -> Any:
    """Return the result of a task.

    Raises:
        SddError: The task returned it.
    """
    if isinstance(result, SddError):
        raise result
    return result


def _write_group(
    scaling: Scaling,
    families: Sequence[Sequence[PartRecord]],
    raw: Location,
    output: Location,
    name: str,
) -> Any:
    """Write some parts with their labels, and their identities; runs on a worker."""
    written: list[PartRecord] = []
    identities: list[pa.Table] = []
    counted = _Counted()
    try:
        for family in families:
            tables, counts = [], []
            for record in family:
                table = _scaled(read_parquet(raw / f"{record.name}.parquet"), scaling)
                counted.count(table)
                part = write_part(output, record.name, table, record.rejects, record.rows_in)
                peak = max(part.peak_memory_mib, record.peak_memory_mib)
                written.append(replace(part, peak_memory_mib=peak))
                tables.append(table.select([IDENTITY, PSEUDO_LABEL]))
                counts.append(_histograms(raw / f"{record.name}.npz"))
                counted.histograms = counted.histograms.merge(counts[-1][0])
            identities.append(_identities(pa.concat_tables(tables), counts))
        content = parquet_bytes(pa.concat_tables(identities))
        (output / IDENTITY_FOLDER / f"{name}.parquet").write_bytes(content)
    except SddError as error:
        return error
    return written, counted


def _scaled(table: pa.Table, scaling: Scaling) -> pa.Table:
    if table.num_rows == 0:
        return LABELS.empty_table()
    values = scaling.values(table)
    labels = pa.array(scaling.labels(values), pa.float64(), from_pandas=True)
    reasons = table[REASON].combine_chunks()
    is_trimmed = pc.and_(pc.is_null(labels), pc.is_null(reasons))
    reasons = pc.if_else(is_trimmed, TRIMMED, reasons)
    table = table.set_column(table.schema.get_field_index(REASON), REASON, reasons)
    return table.append_column(PSEUDO_LABEL, labels).select(LABELS.names).cast(LABELS)


def _histograms(
    file: Location,
) -> tuple[SetHistograms, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    with np.load(io.BytesIO(file.read_bytes())) as found:
        if "mated" not in found:
            nothing = np.zeros((0, IDENTITY_BINS), np.int64)
            return SetHistograms.empty(), (nothing, nothing)
        return SetHistograms(found["mated"], found["nonmated"]), (
            found["mated_by_identity"],
            found["nonmated_by_identity"],
        )


def _identities(
    table: pa.Table,
    counts: Sequence[tuple[SetHistograms, tuple[NDArray[np.int64], NDArray[np.int64]]]],
) -> pa.Table:
    """Return one row for each identity of a family of shards; its rows lie side by side."""
    if table.num_rows == 0:
        return IDENTITIES.empty_table()
    names = table[IDENTITY].combine_chunks()
    codes = np.asarray(names.dictionary_encode().indices)
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    labels = _floats(table[PSEUDO_LABEL])
    known = [part[~np.isnan(part)] for part in np.split(labels, starts[1:])]
    mated, nonmated = (_summed([both[side] for _, both in counts], len(starts)) for side in (0, 1))
    columns = {
        IDENTITY: names.take(pa.array(starts)),
        "num_images": np.diff(np.append(starts, len(labels))),
        "num_labelled": [len(part) for part in known],
        "label_mean": [float(part.mean()) if len(part) else None for part in known],
        "label_std": [float(part.std()) if len(part) else None for part in known],
        "label_min": [float(part.min()) if len(part) else None for part in known],
        "label_max": [float(part.max()) if len(part) else None for part in known],
        # each pair of one identity was counted from both sides
        "mated_histogram": list(mated // 2),
        "nonmated_histogram": list(nonmated),
    }
    return pa.table(columns, schema=IDENTITIES)


def _summed(parts: Sequence[NDArray[np.int64]], num_identities: int) -> NDArray[np.int64]:
    """Return (G, K) the counts of a family: of one shard, or of the pieces of one identity."""
    if len(parts) == 1:
        return parts[0]
    total = np.zeros((num_identities, IDENTITY_BINS), np.int64)
    for part in parts:
        total += part.sum(axis=0, keepdims=True)
    return total


def _write_rates(histograms: SetHistograms, output: Location) -> dict[str, Any]:
    """Write the error rates of the set; return what the manifest says of them."""
    rates = error_rates(histograms)
    padded = [np.append(side, 0) for side in (histograms.mated // 2, histograms.nonmated)]
    columns = [rates.threshold, *padded, rates.fmr, rates.fnmr]
    table = pa.table([pa.array(c, from_pandas=True) for c in columns], schema=ERROR_RATES)
    (output / RATES_FILE).write_bytes(parquet_bytes(table))
    nonmated = int(histograms.nonmated.sum())
    at = {
        f"{fmr:g}": dict(zip(("threshold", "fnmr"), rates.at_fmr(fmr), strict=True))
        for fmr in STATED_FMR
        if fmr * nonmated >= 1
    }
    return {
        "mated": int(histograms.mated.sum()) // 2,
        "nonmated_counted": nonmated,
        "auc": None if np.isnan(rates.auc) else rates.auc,
        "at_fmr": at,
    }


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.array(pc.cast(column, pa.float64()).to_numpy(), np.float64)
