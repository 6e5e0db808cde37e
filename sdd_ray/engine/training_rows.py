"""The rows that training reads: labels joined to the images of the source, in training order."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from sdd_ray import columns
from sdd_ray.columns import IMAGE_ID
from sdd_ray.engine.training_join import join_on_disk
from sdd_ray.engine.training_labels import PARTS, TrainingLabels, in_order, joined, read_labels
from sdd_ray.errors import InputError
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import Source, from_table
from sdd_ray.formats.reading import read_face
from sdd_ray.formats.source import locate, open_source
from sdd_ray.settings import TrainConfig
from sdd_ray.store.dataset import Dataset, read_row_groups
from sdd_ray.store.location import Location

_TRIED = 16
"""Images read before any long work."""


@dataclass(frozen=True)
class Block:
    """Some rows in a file.

    Attributes:
        file: URI of a Parquet file.
        row_group: Which of its row groups.
        rows: Number of rows in it.
    """

    file: str
    row_group: int
    rows: int


@dataclass(frozen=True)
class Rows:
    """The labelled images of one part, in training order.

    The order is that of a hash of seed and image_id, so it is random and depends on nothing else.
    The columns are those of `columns.INDEX`, with the person who was labelled, then target float32,
    weight float32, key uint64 (a hash of the image_id alone) and row int64 (0, 1, 2 ... within the
    part).

    Attributes:
        table: All rows, or None where they are in files.
        blocks: The row groups that hold them otherwise, in order.
        num_rows: How many there are.
    """

    table: pa.Table | None
    blocks: tuple[Block, ...]
    num_rows: int

    def parts(self, names: list[str]) -> Iterator[pa.Table]:
        """Yield some columns of all rows, file by file: of rows in files, few are held at once.

        Raises:
            InputError: A file is damaged.
        """
        if self.table is not None:
            yield self.table.select(names)
        for file, blocks in itertools.groupby(self.blocks, key=lambda block: block.file):
            yield read_row_groups(Location(file), [block.row_group for block in blocks], names)


@dataclass(frozen=True)
class TrainingData:
    """Labelled images by part, and the split of identities.

    Attributes:
        train: To train on.
        validation: To choose the best epoch on.
        splits: Sorted identities with the part of each, `columns.SPLITS`.
        mean_target: Mean label of the training part.
    """

    train: Rows
    validation: Rows
    splits: pa.Table
    mean_target: float

    @property
    def num_identities(self) -> dict[str, int]:
        """Identities in each part."""
        counts = pc.value_counts(self.splits["part"]).to_pylist()
        return {item["values"]: item["counts"] for item in counts}

    @property
    def summary(self) -> str:
        """How many identities and images each part has, for people."""
        people = self.num_identities
        return (
            f"{self.train.num_rows:,} images of {people.get('train', 0):,} identities to train,"
            f" {self.validation.num_rows:,} of {people.get('validation', 0):,} to choose the epoch,"
            f" {people.get('holdout', 0):,} identities held out"
        )


def prepare(config: TrainConfig, labels: Dataset, work: Location) -> TrainingData:
    """Return the labelled images of the training and validation identities.

    Above `join_in_memory` of them they are joined by Ray tasks, over files.

    Args:
        config: The configuration.
        labels: Dataset of labels.
        work: Folder for these files, reached by every worker.

    Raises:
        InputError: No label can be used, all are equal, too few identities or images, or the
            source does not hold the labelled images.
        OutputError: The files cannot be written.
    """
    known = read_labels(config, labels)
    source = open_source(config.source)
    if sum(known.num_rows.values()) <= config.join_in_memory:
        train, validation = _in_memory(source, known, labels)
    else:
        train, validation = _on_disk(source, known, labels, work)
    _probe(source, next(train.parts(columns.INDEX.names)).slice(0, _TRIED))
    return TrainingData(train, validation, known.splits, known.mean_target)


def _in_memory(source: Source, known: TrainingLabels, labels: Dataset) -> list[Rows]:
    table = in_order(pa.concat_tables(known.rows(file) for file in labels.files))
    items = locate(source, table[IMAGE_ID])
    parts = [joined(items, table, part).combine_chunks() for part in PARTS]
    return [Rows(part, (), part.num_rows) for part in parts]


def _on_disk(source: Source, known: TrainingLabels, labels: Dataset, work: Location) -> list[Rows]:
    parts = join_on_disk(source, known, labels, work / "rows")
    found = []
    for part in parts:
        blocks = tuple(
            Block(file.uri, group, rows) for file, sizes in part for group, rows in enumerate(sizes)
        )
        found.append(Rows(None, blocks, sum(block.rows for block in blocks)))
    return found


def _probe(source: Source, table: pa.Table) -> None:
    """Read some of the images before any long work: labels of other images end here."""
    items = from_table(table)
    missing = []
    for item in items:
        try:
            read_face(source, item)
        except (ImageRejectedError, InputError) as error:
            missing.append(str(error))
    if len(missing) == len(items):
        raise InputError(
            f"none of {len(items)} labelled images tried can be read from the source; is it the one"
            f" that was embedded? The first: {missing[0]}"
        )
