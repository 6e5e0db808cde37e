"""Make the comparisons of a list on stored embeddings, and say what the recogniser is worth.

Fourteen thousand images are no work for a cluster: unlike its neighbours this module needs no Ray.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sdd_ray.columns import EMBEDDING, IMAGE_ID, REASON
from sdd_ray.core.comparisons import similarities_between
from sdd_ray.core.error_rates import fnmr, threshold_at_fmr
from sdd_ray.core.similarity import EMBEDDING_REASONS, usable_rows
from sdd_ray.core.verification import area_under_roc, equal_error_rate, fold_accuracy
from sdd_ray.errors import InputError
from sdd_ray.store.dataset import Dataset, embedding_matrix, read_parquet
from sdd_ray.store.run import REJECTS, OutputRun, Reject, write_part

PART = "comparisons"
SIMILARITY = "similarity"
NOT_EMBEDDED = "not_in_embeddings"
"""Reason of a comparison with an image that the embeddings do not know at all."""


@dataclass(frozen=True)
class Verification:
    """The comparisons of a list.

    Attributes:
        made: Rows of the list, with their similarity (float64).
        rejects: One for each comparison that could not be made, under the image it lacks.
        num_images: Images that were compared.
    """

    made: pa.Table
    rejects: list[Reject]
    num_images: int


def compare(dataset: Dataset, comparisons: pa.Table) -> Verification:
    """Return the similarities of the comparisons of a list.

    Args:
        dataset: Embeddings.
        comparisons: Table of `sdd_ray.formats.comparisons.COMPARISONS`.

    Raises:
        InputError: An image has two embeddings, a file is damaged, or too few of the comparisons
            can be made to say anything.
    """
    columns = [comparisons[name].combine_chunks() for name in ("image_id_a", "image_id_b")]
    wanted = pc.unique(pa.concat_arrays(columns))
    ids, unit, reasons = read_images(dataset, wanted)
    rows_a, rows_b = (pc.index_in(column, ids) for column in columns)
    is_made = pc.and_(rows_a.is_valid(), rows_b.is_valid())
    made = comparisons.filter(is_made)
    _check(made, wanted, dataset)
    first, second = (np.asarray(rows.filter(is_made), dtype=np.int64) for rows in (rows_a, rows_b))
    similarity = pa.array(similarities_between(unit, first, second))
    return Verification(
        made.append_column(SIMILARITY, similarity),
        _rejects(comparisons.filter(pc.invert(is_made)), ids, reasons),
        len(np.unique(np.concatenate([first, second]))),
    )


def figures(found: Verification, rates: Sequence[float]) -> dict[str, Any]:
    """Return what the comparisons say, as plain data; None where a figure is undefined.

    Args:
        found: Comparisons of both kinds, in at least two folds.
        rates: False match rates at which false non-match rates are wanted.
    """
    similarity, is_mated, folds = (
        found.made[name].to_numpy() for name in (SIMILARITY, "mated", "fold")
    )
    mated, nonmated = similarity[is_mated], similarity[~is_mated]
    accuracy = fold_accuracy(similarity, is_mated, folds)
    points = [threshold_at_fmr(nonmated, rate) for rate in rates]
    return {
        "mated": len(mated),
        "nonmated": len(nonmated),
        "images": found.num_images,
        "not_made": dict(sorted(Counter(reject.reason for reject in found.rejects).items())),
        "folds": len(accuracy.accuracies),
        "accuracy": float(np.mean(accuracy.accuracies)),
        "accuracy_std": float(np.std(accuracy.accuracies)),
        "accuracies": accuracy.accuracies.tolist(),
        "thresholds": [_or_none(threshold) for threshold in accuracy.thresholds.tolist()],
        "equal_error_rate": equal_error_rate(mated, nonmated),
        "auc": area_under_roc(mated, nonmated),
        "operating_points": [
            {
                "fmr": point.asked_fmr,
                "achieved_fmr": _or_none(point.achieved_fmr),
                "threshold": _or_none(point.threshold),
                "fnmr": _or_none(fnmr(mated, point.threshold)),
            }
            for point in points
        ],
    }


def publish(found: Verification, rates: Sequence[float], run: OutputRun) -> None:
    """Write the similarities, what could not be compared, and the manifest with the figures.

    Raises:
        OutputError: The folder cannot be written.
    """
    part = write_part(run.output, PART, found.made, found.rejects)
    run.complete([part], figures(found, rates))


def figures_text(results: Mapping[str, Any]) -> str:
    """Return the figures as text for the terminal."""
    lines = [
        f"{results['mated']:,} mated and {results['nonmated']:,} nonmated comparisons"
        f" of {results['images']:,} images"
    ]
    if results["not_made"]:
        counted = ", ".join(f"{name} {count:,}" for name, count in results["not_made"].items())
        lines.append(f"NOT made: {sum(results['not_made'].values()):,} comparisons ({counted})")
    spread = f"± {100 * results['accuracy_std']:.2f} over {results['folds']} folds"
    rows = [
        ("accuracy", _percent(results["accuracy"]), f"{spread}, {_range(results['thresholds'])}"),
        ("EER", _percent(results["equal_error_rate"]), ""),
        ("AUC", f"{results['auc']:.5f}", ""),
    ]
    for point in results["operating_points"]:
        name = f"FNMR at FMR {point['fmr']:g}"
        if point["fnmr"] is None:
            note = f"not attainable with {results['nonmated']:,} nonmated comparisons"
            rows.append((name, "-", note))
        else:
            rows.append((name, _percent(point["fnmr"]), f"threshold {point['threshold']:.4f}"))
    width = max(len(name) for name, *_ in rows)
    lines += [""] + [f"{name:<{width}}  {value:>8}  {note}".rstrip() for name, value, note in rows]
    return "\n".join(lines)


def read_images(
    dataset: Dataset, wanted: pa.Array
) -> tuple[pa.Array, NDArray[np.float32], dict[str, str]]:
    """Return keys and unit embeddings of the wanted images, and why others have none.

    Raises:
        InputError: An image has two embeddings, or a file is damaged.
    """

    def some(rows: pa.Table) -> pa.Table:
        return rows.filter(pc.is_in(rows[IMAGE_ID], wanted))

    table = dataset.read([IMAGE_ID, EMBEDDING], some).combine_chunks()
    rejected = read_parquet(dataset.location / REJECTS, [IMAGE_ID, REASON])
    rejected = rejected.filter(pc.is_in(rejected[IMAGE_ID], wanted))
    reasons = dict(zip(*(rejected[name].to_pylist() for name in (IMAGE_ID, REASON)), strict=True))
    ids = pa.concat_arrays(table[IMAGE_ID].chunks) if table.num_rows else pa.array([], pa.string())
    counts = pc.value_counts(ids)
    for count in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist()[:1]:
        raise InputError(
            f"{dataset.location.uri}: {count['counts']} embeddings have the image_id"
            f" {count['values']}; which one is meant?"
        )
    unit, faults = usable_rows(embedding_matrix(table[EMBEDDING]))
    for row in np.flatnonzero(faults).tolist():
        reasons[ids[row].as_py()] = EMBEDDING_REASONS[faults[row]]
    return ids.filter(pa.array(faults == 0)), unit, reasons


def _check(made: pa.Table, wanted: pa.Array, dataset: Dataset) -> None:
    """Raise InputError unless the comparisons that can be made are enough for figures."""
    uri = dataset.location.uri
    if made.num_rows == 0:
        held = read_parquet(dataset.files[0], [IMAGE_ID])[IMAGE_ID].slice(0, 1).to_pylist()
        raise InputError(
            f"{uri}: no comparison can be made: they are between images such as {wanted[0]},"
            f" the embeddings are of images such as {', '.join(held)};"
            " is pairs.image_id right, and source.path of embed?"
        )
    mated = made["mated"].to_numpy()
    for kind, count in (("mated", mated.sum()), ("nonmated", (~mated).sum())):
        if count == 0:
            raise InputError(f"{uri}: of {len(mated):,} comparisons none is {kind}")
    if pc.count_distinct(made["fold"]).as_py() < 2:
        raise InputError(f"{uri}: all {len(mated):,} comparisons are in one fold, two are needed")


def _rejects(missed: pa.Table, ids: pa.Array, reasons: Mapping[str, str]) -> list[Reject]:
    known = set(ids.to_pylist())
    rejects = []
    for row in missed.to_pylist():
        pair = (row["image_id_a"], row["image_id_b"])
        lacking, other = pair if pair[0] not in known else pair[::-1]
        reason = reasons.get(lacking, NOT_EMBEDDED)
        rejects.append(Reject(lacking, reason, f"not compared with {other}"))
    return rejects


def _or_none(value: float) -> float | None:
    """Return a number that JSON can hold."""
    return value if math.isfinite(value) else None


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _range(thresholds: Sequence[float | None]) -> str:
    shown = ["infinite" if t is None else f"{t:.4f}" for t in thresholds]
    order = sorted(range(len(shown)), key=lambda i: math.inf if (t := thresholds[i]) is None else t)
    return f"thresholds {shown[order[0]]} to {shown[order[-1]]}"
