"""The labels that training uses: which images, with which target, weight and place in the order.

What follows from all labels together, such as the split of the identities, is found first, from
columns of numbers and identities; the rows of one file of labels follow from it without the others.

Shapes: N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sdd_ray import columns
from sdd_ray.columns import DISTANCE, IDENTITY, IMAGE_ID, PSEUDO_LABEL
from sdd_ray.core.hashing import GOLDEN, mix
from sdd_ray.core.label_weights import LabelWeights, Weighting
from sdd_ray.core.splits import split_identities
from sdd_ray.errors import InputError
from sdd_ray.settings import TrainConfig
from sdd_ray.store.dataset import Dataset, read_parquet
from sdd_ray.store.location import Location

PARTS = ("train", "validation")
"""Parts of the identities whose images training reads."""

ORDER = "order"
"""Column of the hash by which rows are in training order."""

_NEEDED = {"none": (), "num_mated": ("num_mated",), "error_bound": ("error_bound", DISTANCE)}
"""Columns that each weighting needs besides."""


@dataclass(frozen=True)
class TrainingLabels:
    """What follows from all labels together; small, and sent to the workers.

    Attributes:
        splits: Sorted identities with the part of each, `columns.SPLITS`.
        weights: Fitted on the labels of the training part.
        mean_target: Mean label of the training part.
        num_rows: Labelled images of each of `PARTS`.
        seed: Draws the order of the rows.
    """

    splits: pa.Table
    weights: LabelWeights
    mean_target: float
    num_rows: dict[str, int]
    seed: int

    def rows(self, file: Location) -> pa.Table:
        """Return the labelled images of `PARTS` in one file of labels, in the order of the file.

        Returns:
            Columns image_id, identity, part, target float32, weight float32, key uint64 and order
            uint64.

        Raises:
            InputError: The file is damaged, or lacks a column.
        """
        weighting = self.weights.weighting
        table = _labelled(file, (IMAGE_ID, *_columns(weighting)))
        place = pc.index_in(table[IDENTITY], self.splits[IDENTITY].combine_chunks())
        table = table.append_column("part", self.splits["part"].take(place))
        table = table.filter(pc.is_in(table["part"], pa.array(PARTS)))
        targets = _numbers(table[PSEUDO_LABEL])
        keys = image_keys(table[IMAGE_ID].to_pylist())
        found = {
            IMAGE_ID: table[IMAGE_ID],
            IDENTITY: table[IDENTITY],
            "part": table["part"],
            "target": targets,
            "weight": self.weights.apply(targets, **_evidence(table, weighting)),
            "key": keys,
            ORDER: order_of(keys, self.seed),
        }
        return pa.table(found)


def read_labels(config: TrainConfig, labels: Dataset) -> TrainingLabels:
    """Return what follows from all labels.

    Raises:
        InputError: No label can be used, all are equal, too few identities or images, or the
            labels lack what weights them.
    """
    weighting, uri = config.loss.weighting, labels.location.uri
    table = pa.concat_tables(_coded(_labelled(f, _columns(weighting))) for f in labels.files)
    targets = _numbers(table[PSEUDO_LABEL])
    if not np.isfinite(targets).all():
        faulty = int(np.count_nonzero(~np.isfinite(targets)))
        raise InputError(f"{uri}: {faulty:,} labels are no finite numbers")
    if len(targets) == 0 or np.ptp(targets) == 0:
        raise InputError(
            f"{uri}: expected labels of different values, got {len(targets)} equal ones"
        )
    identities = table[IDENTITY].unify_dictionaries().combine_chunks()
    splits = _split(config, identities.dictionary.to_pylist(), uri)
    place = pc.index_in(identities.dictionary, splits[IDENTITY].combine_chunks())
    part_of_name = np.asarray(splits["part"].take(place))
    rows_of = {name: (part_of_name == name)[np.asarray(identities.indices)] for name in PARTS}
    is_train = rows_of["train"]
    num_rows = {name: int(np.count_nonzero(rows)) for name, rows in rows_of.items()}
    batch_size = config.optimiser.batch_size
    if num_rows["train"] < batch_size:
        raise InputError(
            f"{uri}: {num_rows['train']} labelled images are left to train on, fewer than one batch"
            f" (optimiser.batch_size={batch_size})"
        )
    return TrainingLabels(
        splits=splits,
        weights=_fit_weights(config, table.filter(pa.array(is_train)), uri),
        mean_target=float(targets[is_train].mean(dtype=np.float64)),
        num_rows=num_rows,
        seed=config.seed,
    )


def image_keys(image_ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return (N,) 64-bit hashes of image_ids, the same on every machine.

    Example:
        >>> [hex(key) for key in image_keys(["a/1.jpg"])]
        ['0xb32e136a7e8db200']
    """
    digests = b"".join(blake2b(name.encode(), digest_size=8).digest() for name in image_ids)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def order_of(keys: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Return (N,) hashes of seed and key; in their order, rows are shuffled.

    Example:
        >>> order_of(np.arange(5, dtype=np.uint64), seed=0).argsort().tolist()
        [4, 2, 0, 3, 1]
    """
    with np.errstate(over="ignore"):
        return mix(keys ^ mix(np.array([seed], np.uint64) * GOLDEN + GOLDEN))


def in_order(table: pa.Table) -> pa.Table:
    """Return rows in training order: by hash, and by image_id where two have the same one."""
    return table.take(
        pc.sort_indices(table, sort_keys=[(ORDER, "ascending"), (IMAGE_ID, "ascending")])
    )


def joined(items: pa.Table, labelled: pa.Table, part: str, first: int = 0) -> pa.Table:
    """Return the rows of a part as training reads them.

    Args:
        items: Where the images are, `columns.INDEX`; the person is the one that was labelled.
        labelled: Rows of `TrainingLabels.rows`, of the same images in the same order.
        part: Whose rows are taken.
        first: Number of the first one; the others follow in the order they have.
    """
    place = columns.INDEX.get_field_index(IDENTITY)
    rows = items.set_column(place, columns.INDEX.field(place), labelled[IDENTITY])
    for name in ("target", "weight", "key"):
        rows = rows.append_column(name, labelled[name])
    rows = rows.filter(pc.equal(labelled["part"], part))
    return rows.append_column("row", pa.array(first + np.arange(rows.num_rows, dtype=np.int64)))


def _columns(weighting: Weighting) -> tuple[str, ...]:
    return (IDENTITY, PSEUDO_LABEL, *_NEEDED[weighting])


def _labelled(file: Location, names: Sequence[str]) -> pa.Table:
    """Return columns of the rows of a file that have a label."""
    table = read_parquet(file, names)
    return table.filter(pc.is_valid(table[PSEUDO_LABEL]))


def _coded(table: pa.Table) -> pa.Table:
    """Return the table with each identity held once."""
    place = table.schema.get_field_index(IDENTITY)
    return table.set_column(place, IDENTITY, pc.dictionary_encode(table[IDENTITY]))


def _split(config: TrainConfig, identities: Sequence[str], uri: str) -> pa.Table:
    split = config.split
    try:
        parts = split_identities(
            identities, split.holdout_share, split.validation_share, split.seed
        )
    except ValueError as error:
        raise InputError(f"{uri}: cannot split the identities: {error}") from error
    names = sorted(parts)
    return pa.table([names, [parts[name] for name in names]], schema=columns.SPLITS)


def _fit_weights(config: TrainConfig, train: pa.Table, uri: str) -> LabelWeights:
    weighting = config.loss.weighting
    evidence = _evidence(train, weighting)
    targets = _numbers(train[PSEUDO_LABEL])
    slope = 0.0
    if weighting == "error_bound":
        slope = _label_per_distance(_numbers(train[DISTANCE]), targets)
        if not slope > 0:
            raise InputError(
                f"{uri}: loss.weighting=error_bound needs labels that change with the distance"
            )
    return LabelWeights.fit(
        targets, config.loss.balance, weighting, **evidence, label_per_distance=slope
    )


def _evidence(table: pa.Table, weighting: Weighting) -> dict[str, NDArray[np.float32]]:
    """Return what weights each row besides its label."""
    return {} if weighting == "none" else {weighting: _numbers(table[weighting])}


def _label_per_distance(distances: NDArray[np.float32], targets: NDArray[np.float32]) -> float:
    """Return the slope of the line through distances and labels, without sign; 0 for none."""
    known = np.isfinite(distances)
    x, y = (values[known].astype(np.float64) for values in (distances, targets))
    if x.size == 0 or np.ptp(x) == 0:
        return 0.0
    x -= x.mean()
    return abs(float(x @ y / (x @ x)))


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return a column as an array, in which nulls are NaN."""
    return np.asarray(column, np.float32)
