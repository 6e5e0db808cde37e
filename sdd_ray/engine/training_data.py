"""What training reads: images decoded by Ray Data, in an order that is of the seed alone."""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
from numpy.typing import NDArray

from sdd_ray import columns
from sdd_ray.columns import IMAGE_ID
from sdd_ray.core.fitting import Batch
from sdd_ray.engine.training_rows import Rows, TrainingData
from sdd_ray.errors import SddError, TooManyRejectsError
from sdd_ray.formats.images import reason_of
from sdd_ray.formats.items import Source, from_table
from sdd_ray.formats.reading import read_faces
from sdd_ray.formats.source import open_source
from sdd_ray.settings import TrainConfig
from sdd_ray.store.dataset import read_row_groups
from sdd_ray.store.location import Location

_ROWS_PER_BLOCK = 256
_IMAGE_BYTES = 112 * 112 * 3
_CACHE_SHARE = 0.3
"""Decoded images stay in Ray's object store when they need at most this share of it."""
_READERS, _READERS_ON_S3 = 2, 16
"""Threads of a reading task: some wait for the store while others decode."""
_KEPT = ("target", "weight", "key", "row")
_COLUMNS = [*columns.INDEX.names, *_KEPT]
_SHUFFLED_IMAGES, _SHUFFLED_BATCHES = 2048, 8
"""Images wait for each other in a buffer of that many, to come in random order."""


@dataclass(frozen=True)
class ImageDatasets:
    """Decoded images of both parts, for `batches`."""

    train: Any
    validation: Any


@dataclass
class Unreadable:
    """Labelled images that could not be read, with reason and detail.

    Training goes on without them: a stand-in takes their place in the batch, and counts nothing.

    Attributes:
        most: Share of all images that may be unreadable.
        total: All images.
        found: Reason and detail of each by image_id.
    """

    most: float
    total: int
    found: dict[str, tuple[str, str]] = field(default_factory=dict)
    _new: dict[str, tuple[str, str]] = field(default_factory=dict)

    def add(self, found: dict[str, tuple[str, str]], is_new: bool = True) -> None:
        """Take in more of them; new are those that other workers have not been told of.

        Raises:
            TooManyRejectsError: They are too many.
        """
        if is_new:
            self._new.update({k: why for k, why in found.items() if k not in self.found})
        self.found.update(found)
        if len(self.found) > self.most * self.total:
            first, (_, detail) = min(self.found.items())
            raise TooManyRejectsError(
                f"{len(self.found):,} of {self.total:,} labelled images cannot be read any more,"
                f" more than max_reject_share={self.most:g}; the first is {first}: {detail}"
            )

    def take_new(self) -> dict[str, tuple[str, str]]:
        """Return those that other workers have not been told of, for once."""
        taken, self._new = self._new, {}
        return taken


def image_datasets(config: TrainConfig, data: TrainingData) -> ImageDatasets:
    """Return the decoded images of both parts, in memory where the cluster can hold them."""
    source = open_source(config.source)
    readers = _READERS_ON_S3 if config.source.is_remote else _READERS
    memory = float(ray.cluster_resources().get("object_store_memory", 0.0))
    images = data.train.num_rows + data.validation.num_rows
    is_kept = images * _IMAGE_BYTES <= _CACHE_SHARE * memory
    is_elastic = config.resources.min_workers is not None
    return ImageDatasets(
        *(
            decoded(source, rows, is_kept, readers, is_elastic)
            for rows in (data.train, data.validation)
        )
    )


def decoded(
    source: Source,
    rows: Rows,
    is_kept: bool = True,
    readers: int = _READERS,
    is_elastic: bool = False,
) -> Any:
    """Return a dataset of decoded images.

    Args:
        source: The images.
        rows: Items with target, weight, key and row.
        is_kept: Decode all of them now and keep them, or anew in each pass.
        readers: Threads of a reading task.
        is_elastic: Training workers may take every CPU that comes, so that reading must not wait
            for one.

    Returns:
        A dataset with columns image (112, 112, 3) uint8, target, weight, key, row, image_id, and
        reason and detail, which are empty for an image that could be read.
    """
    if rows.table is None:
        table = pa.table({"file": [b.file for b in rows.blocks]})
        table = table.append_column("row_group", pa.array([b.row_group for b in rows.blocks]))
        blocks = [table.slice(place, 1) for place in range(table.num_rows)]
    else:
        starts = range(0, rows.num_rows, _ROWS_PER_BLOCK)
        blocks = [rows.table.slice(start, _ROWS_PER_BLOCK) for start in starts]
    dataset: Any = ray.data.from_arrow(blocks)
    dataset.context.execution_options = in_order()
    if rows.table is None:
        dataset = dataset.map_batches(_rows_of, batch_size=1, batch_format="pyarrow")
    room: dict[str, Any] = {}
    if is_elastic:
        tasks = max(1, int(ray.cluster_resources().get("CPU", 2)) // 2)
        room = {"num_cpus": 0, "compute": ray.data.TaskPoolStrategy(size=tasks)}
    dataset = dataset.map_batches(
        _reader(source, readers), batch_size=64, batch_format="pyarrow", **room
    )
    return dataset.materialize() if is_kept else dataset


def _rows_of(batch: pa.Table) -> pa.Table:
    """Return the rows of the row group that a batch of one row names."""
    [named] = batch.to_pylist()
    return read_row_groups(Location(named["file"]), [named["row_group"]], _COLUMNS)


def in_order() -> ray.data.ExecutionOptions:
    """Return options by which rows keep their order, however fast each block is read.

    Without them a run could not be repeated, nor go on as it would have gone.
    """
    options = copy.deepcopy(ray.data.DataContext.get_current().execution_options)
    options.preserve_order = True
    return options


class Sharing(ray.train.DataConfig):
    """Gives every worker as many training images, and a part of the validation images.

    As all workers make the same number of steps, a remainder of fewer images than workers is left
    out of an epoch of training; no validation image ever is.
    """

    def __init__(self) -> None:
        super().__init__("all", execution_options=in_order())

    def configure(
        self, datasets: dict[str, Any], world_size: int, *others: Any, **more: Any
    ) -> list[dict[str, Any]]:
        """Return the iterators of each worker; called by Ray Train for one dataset at a time."""
        if "validation" not in datasets:
            shared: list[dict[str, Any]] = super().configure(datasets, world_size, *others, **more)
            return shared
        dataset = datasets["validation"].copy(datasets["validation"])
        dataset.context.execution_options = in_order()
        splits = dataset.streaming_split(world_size, equal=False)
        return [{"validation": split} for split in splits]


def batches(
    shard: ray.data.DataIterator,
    batch_size: int,
    unreadable: Unreadable,
    shuffle_seed: int | None = None,
) -> Iterator[Batch]:
    """Yield the batches of one pass over a shard.

    Args:
        shard: Rows of a `decoded` dataset.
        batch_size: Images of a batch.
        unreadable: Takes in the images that could not be read.
        shuffle_seed: Draws the order; only whole batches are yielded then, since batch
            normalisation cannot work on a last batch of one image. None: the order of the rows.

    Raises:
        TooManyRejectsError: Too many images cannot be read.
    """
    shuffle: dict[str, Any] = {}
    if shuffle_seed is not None:
        shuffle = {
            "local_shuffle_buffer_size": max(_SHUFFLED_IMAGES, _SHUFFLED_BATCHES * batch_size),
            "local_shuffle_seed": shuffle_seed,
            "drop_last": True,
        }
    for rows in shard.iter_batches(batch_size=batch_size, **shuffle):
        unreadable.add(_failures(rows))
        yield _batch(rows)


def _failures(rows: dict[str, NDArray[Any]]) -> dict[str, tuple[str, str]]:
    return {
        str(rows[IMAGE_ID][place]): (str(rows["reason"][place]), str(rows["detail"][place]))
        for place in np.flatnonzero(rows["reason"] != "")
    }


def _batch(rows: dict[str, NDArray[Any]]) -> Batch:
    """Return the batch, with copies of the others in place of images that could not be read.

    The batch keeps its size, so that all workers make the same steps.
    """
    readable = rows["reason"] == ""
    images = np.asarray(rows["image"])
    if not readable.all() and readable.any():
        places = np.flatnonzero(readable)
        stand_ins = places[np.arange(len(images)) % len(places)]
        images = images[np.where(readable, np.arange(len(images)), stand_ins)]
    return Batch(
        images=images,
        targets=np.array(rows["target"], np.float32),
        weights=np.where(readable, rows["weight"], 0).astype(np.float32),
        keys=np.array(rows["key"], np.uint64),
        rows=np.array(rows["row"], np.int64),
        image_ids=rows[IMAGE_ID],
    )


def _reader(source: Source, readers: int) -> Callable[[pa.Table], dict[str, Any]]:
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
            **{name: np.asarray(batch[name]) for name in _KEPT},
            "image": images,
            "reason": np.array(reasons, dtype=object),
            "detail": np.array(details, dtype=object),
        }

    return read_images
