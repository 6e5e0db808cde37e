"""What training sees: images joined to labels by image_id, split by identity, read by Ray Data."""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from sdd_ray import columns
from sdd_ray.columns import IDENTITY, IMAGE_ID, PSEUDO_LABEL
from sdd_ray.core.fitting import Batch
from sdd_ray.core.splits import split_identities
from sdd_ray.errors import InputError, SddError, TooManyRejectsError
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import Source, from_table
from sdd_ray.formats.reading import read_face, read_faces, reason_of
from sdd_ray.formats.source import locate, open_source
from sdd_ray.settings import TrainConfig
from sdd_ray.store.dataset import Dataset
from sdd_ray.store.run import Reject

_ROWS_PER_BLOCK = 256
_IMAGE_BYTES = 112 * 112 * 3
_CACHE_SHARE = 0.3
"""Decoded images stay in Ray's object store when they need at most this share of it."""
_READERS, _READERS_ON_S3 = 2, 16
"""Threads of a reading task: some wait for the store while others decode."""
_SHUFFLE_BATCHES = 8
"""Images wait for each other in a buffer of this many batches, to come in random order."""


@dataclass(frozen=True)
class TrainingData:
    """Labelled images by part, as items with a target each, and the split of identities."""

    train: pa.Table
    validation: pa.Table
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


def prepare(config: TrainConfig, labels: Dataset) -> TrainingData:
    """Return the labelled images of the training and validation identities.

    Raises:
        InputError: No label can be used, all are equal, too few identities or images, or the
            source does not hold the labelled images.
    """
    table = labels.read([IMAGE_ID, IDENTITY, PSEUDO_LABEL])
    table = table.filter(pc.is_valid(table[PSEUDO_LABEL]))
    targets = np.asarray(table[PSEUDO_LABEL], np.float32)
    uri = labels.location.uri
    if len(targets) == 0 or np.ptp(targets) == 0:
        raise InputError(
            f"{uri}: expected labels of different values, got {len(targets)} equal ones"
        )
    split = config.split
    try:
        parts = split_identities(
            table[IDENTITY].to_pylist(), split.holdout_share, split.validation_share, split.seed
        )
    except ValueError as error:
        raise InputError(f"{uri}: cannot split the identities: {error}") from error
    part_of = pa.array([parts[name] for name in table[IDENTITY].to_pylist()])
    table = pa.table({IMAGE_ID: table[IMAGE_ID], "target": targets})
    source = open_source(config.source)
    table = locate(source, table[IMAGE_ID]).append_column("target", table["target"])
    train, validation = (table.filter(pc.equal(part_of, name)) for name in ("train", "validation"))
    batch_size = config.optimiser.batch_size
    if train.num_rows < batch_size:
        raise InputError(
            f"{uri}: {train.num_rows} labelled images are left to train on, fewer than one batch"
            f" (optimiser.batch_size={batch_size})"
        )
    names = sorted(parts)
    splits = pa.table([names, [parts[name] for name in names]], schema=columns.SPLITS)
    train = _shuffled(train, config.seed)
    _probe(source, train)
    return TrainingData(train, validation, splits, float(np.asarray(train["target"]).mean()))


@dataclass(frozen=True)
class ImageDatasets:
    """Decoded images of both parts, for `batches`, and the ones that cannot be read any more."""

    train: Any
    validation: Any
    rejects: list[Reject]


def image_datasets(config: TrainConfig, data: TrainingData) -> ImageDatasets:
    """Return the decoded images of both parts.

    Finding the ones that cannot be read takes a pass over all images, which is the one that fills
    the memory.

    Raises:
        TooManyRejectsError: More images than allowed cannot be read.
    """
    source = open_source(config.source)
    readers = _READERS_ON_S3 if config.source.is_remote else _READERS
    parts = (data.train, data.validation)
    train, validation = (decoded(source, table, readers) for table in parts)
    rejects = unreadable(train) + unreadable(validation)
    total = data.train.num_rows + data.validation.num_rows
    if len(rejects) > config.max_reject_share * total:
        raise TooManyRejectsError(
            f"{len(rejects):,} of {total:,} labelled images cannot be read any more, more than"
            f" max_reject_share={config.max_reject_share:g}; the first is"
            f" {rejects[0].image_id}: {rejects[0].detail}"
        )
    return ImageDatasets(train, validation, rejects)


def decoded(source: Source, table: pa.Table, readers: int = _READERS) -> Any:
    """Return a dataset of decoded images, in memory if the cluster can hold it.

    Args:
        source: The images.
        table: Items, and a column target.
        readers: Threads of a reading task.

    Returns:
        A dataset with columns image (112, 112, 3) uint8, target, image_id, and reason and detail,
        which are empty for an image that could be read. For `batches` and `unreadable`.
    """
    blocks = [
        table.slice(start, _ROWS_PER_BLOCK) for start in range(0, table.num_rows, _ROWS_PER_BLOCK)
    ]
    dataset: Any = ray.data.from_arrow(blocks)
    dataset.context.execution_options = in_order()
    dataset = dataset.map_batches(_reader(source, readers), batch_size=64, batch_format="pyarrow")
    memory = float(ray.cluster_resources().get("object_store_memory", 0.0))
    if table.num_rows * _IMAGE_BYTES <= _CACHE_SHARE * memory:
        return dataset.materialize()
    return dataset


def unreadable(dataset: Any) -> list[Reject]:
    """Return the images of a `decoded` dataset that cannot be read."""
    rows = dataset.map_batches(_failures, batch_size=None).take_all()
    return [Reject(row[IMAGE_ID], row["reason"], row["detail"]) for row in rows]


def _failures(batch: dict[str, Any]) -> dict[str, Any]:
    failed = batch["reason"] != ""
    return {name: batch[name][failed] for name in (IMAGE_ID, "reason", "detail")}


def in_order() -> ray.data.ExecutionOptions:
    """Return options by which rows keep their order, however fast each block is read.

    Without them a run could not be repeated, nor go on as it would have gone.
    """
    options = copy.deepcopy(ray.data.DataContext.get_current().execution_options)
    options.preserve_order = True
    return options


def batches(
    shard: ray.data.DataIterator, batch_size: int, shuffle_seed: int | None = None
) -> Iterator[Batch]:
    """Yield (images, targets) of one pass over a shard; shuffled and whole batches if seeded."""
    shuffle: dict[str, Any] = {}
    if shuffle_seed is not None:
        shuffle = {
            "local_shuffle_buffer_size": _SHUFFLE_BATCHES * batch_size,
            "local_shuffle_seed": shuffle_seed,
            "drop_last": True,  # batch normalisation cannot work on a last batch of one image
        }
    for batch in shard.iter_batches(batch_size=batch_size, **shuffle):
        readable = batch["reason"] == ""
        if readable.any():
            targets = np.array(batch["target"][readable], np.float32)
            yield np.asarray(batch["image"][readable]), targets


def _reader(source: Source, readers: int) -> Callable[[pa.Table], pa.Table]:
    """Return the function that adds images to a batch of items and targets."""

    def read_images(batch: pa.Table) -> dict[str, Any]:
        items = from_table(batch)
        images = np.zeros((len(items), 112, 112, 3), np.uint8)
        failures = [("", "")] * len(items)
        with ThreadPoolExecutor(readers) as threads:
            for row, face in enumerate(read_faces(source, items, threads)):
                if isinstance(face, SddError):
                    failures[row] = (reason_of(face), str(face))
                else:
                    images[row] = face.pixels
        reasons, details = zip(*failures, strict=True)
        return {
            IMAGE_ID: np.array([item.image_id for item in items], dtype=object),
            "target": np.asarray(batch["target"]),
            "image": images,
            "reason": np.array(reasons, dtype=object),
            "detail": np.array(details, dtype=object),
        }

    return read_images


def _shuffled(table: pa.Table, seed: int) -> pa.Table:
    """Return the rows in an order drawn from the seed and the ids, whatever order they came in."""
    table = table.sort_by(IMAGE_ID)
    return table.take(np.random.default_rng([seed, 1]).permutation(table.num_rows)).combine_chunks()


def _probe(source: Source, table: pa.Table) -> None:
    """Read some of the images before any long work: labels of other images end here."""
    items = from_table(table.select(columns.INDEX.names).slice(0, 16))
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
