"""What the workers of embed and score do: read a shard, run the network, write the part.

On CPUs one actor does all of it. Where the network runs on GPUs, other actors read and decode on
CPUs ahead of it and tasks write behind it, so that the device does nothing but its own work.
"""

import hashlib
import json
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sdd_ray.engine.failures import failure_row
from sdd_ray.errors import SddError
from sdd_ray.formats.images import reason_of
from sdd_ray.formats.items import Item, Source, from_table
from sdd_ray.formats.reading import read_faces
from sdd_ray.formats.source import open_source
from sdd_ray.settings import EmbedConfig, MeasureConfig, PoolResources, ScoreConfig, SourceConfig
from sdd_ray.store.location import Location
from sdd_ray.store.run import Reject, part_name, write_part

FACE = (112, 112, 3)
"""Shape of a decoded face."""

_READS_ON_S3 = 16
"""Requests a worker has under way at the same time, where each takes tens of milliseconds."""

Network = Callable[[Iterable[NDArray[np.uint8]]], Iterator[NDArray[np.float32]]]
"""From batches of (N, 112, 112, 3) faces to (N, ...) outputs, one for each batch."""


@dataclass(frozen=True, eq=False)
class Shard:
    """The images of one shard that could be read, and those that could not.

    Shapes: N images of the shard that could be read.

    Attributes:
        image_ids: (N,) keys.
        identities: (N,) people.
        pixels: (N, 112, 112, 3) RGB.
        content: (N,) 64-bit digests of the pixels.
        rejects: The other images.
        num_bytes: Of the images that could be read, as they lie in their files.
    """

    image_ids: list[str]
    identities: list[str | None]
    pixels: NDArray[np.uint8]
    content: NDArray[np.uint64]
    rejects: list[Reject]
    num_bytes: int

    @property
    def num_listed(self) -> int:
        """Images of the shard, readable or not."""
        return len(self.image_ids) + len(self.rejects)


class ImageStage(Protocol):
    """What embed and score do with images; small, and sent to the workers."""

    def load(self, threads: int) -> Network:
        """Load the network on a worker."""

    def rows(self, shard: Shard, outputs: NDArray[np.float32]) -> tuple[pa.Table, list[Reject]]:
        """Return the rows of the output and all rows of the shard that were set aside."""


ImageConfig = EmbedConfig | MeasureConfig | ScoreConfig
"""Configurations of commands that go through images."""


@dataclass(frozen=True)
class ImageJob:
    """One run of a stage over a source."""

    name: str
    stage: ImageStage
    source: Source
    images_per_shard: int
    batch_size: int | None
    max_reject_share: float
    resources: PoolResources
    is_remote: bool = False
    skip_damaged: bool = False

    @classmethod
    def of(
        cls, name: str, stage: ImageStage, source: SourceConfig, config: ImageConfig
    ) -> "ImageJob":
        """Return the run that a command's configuration asks for.

        Args:
            name: Of the command.
            stage: What is done with the images.
            source: Of the configuration, or what the command makes of it.
            config: How.
        """
        return cls(
            name,
            stage,
            open_source(source),
            config.images_per_shard,
            config.batch_size,
            config.max_reject_share,
            config.resources,
            is_remote=source.is_remote,
            skip_damaged=source.skip_damaged,
        )

    @property
    def network_threads(self) -> int:
        """CPU threads that the network of a worker may use."""
        return max(1, int(self.resources.cpus_per_worker))


class ShardReader:
    """Reads shards of an index, on threads of its own.

    Args:
        job: Of which the shards are.
        index: File with one row group a shard.
        decoders: Threads that decode, where reading takes no time.
    """

    def __init__(self, job: ImageJob, index: Location, decoders: int) -> None:
        self._source, self._place = job.source, index
        self._index: pq.ParquetFile | None = None
        number = job.resources.read_threads or (_READS_ON_S3 if job.is_remote else decoders)
        self._threads = ThreadPoolExecutor(number)

    def open(self, number: int) -> "ShardReading":
        """Return one shard, ready to be read."""
        if self._index is None:  # its footer is large where there are many shards
            self._index = pq.ParquetFile(self._place.open())
        listed = self._index.read_row_group(number)
        return ShardReading(self._source, from_table(listed), self._threads)


class ShardReading:
    """One shard while it is read: take its batches of pixels, then the shard."""

    def __init__(self, source: Source, items: list[Item], threads: ThreadPoolExecutor) -> None:
        self._source, self._items, self._threads = source, items, threads
        self._pixels = np.empty((len(items), *FACE), np.uint8)
        self._found: list[tuple[str, str | None, int]] = []
        self._rejects: list[Reject] = []
        self._num_bytes = 0

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield batches of pixels, of a size but for the last, as soon as they are there."""
        first = 0
        for last in self._read():
            if last - first == size:
                yield self._pixels[first:last]
                first = last
        if first < len(self._found):
            yield self._pixels[first : len(self._found)]

    def whole(self) -> Shard:
        """Read all of it."""
        for _ in self._read():
            pass
        return self.shard()

    def _read(self) -> Iterator[int]:
        """Read one image after the other; yield how many could be read so far."""
        faces = read_faces(self._source, self._items, self._threads)
        for item, face in zip(self._items, faces, strict=True):
            if isinstance(face, SddError):
                self._rejects.append(Reject(item.image_id, reason_of(face), str(face)))
                continue
            self._pixels[len(self._found)] = face.pixels
            self._num_bytes += face.size
            self._found.append((item.image_id, face.identity, _digest(face.pixels)))
            yield len(self._found)

    def shard(self) -> Shard:
        """Return what was read."""
        ids, people, digests = zip(*self._found, strict=True) if self._found else ((), (), ())
        pixels = self._pixels[: len(self._found)]
        content = np.array(digests, np.uint64)
        return Shard(list(ids), list(people), pixels, content, self._rejects, self._num_bytes)


class ShardWorker:
    """An actor that does everything: from shard numbers to finished parts."""

    def __init__(self, job: ImageJob, batch_size: int, output: Location, index: Location) -> None:
        self._output, self._batch_size = output, batch_size
        self._reader = ShardReader(job, index, job.network_threads)
        self._network = NetworkRunner(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the part of one shard; return its record."""
        number = int(batch["shard"][0])
        with failure_row() as row:
            row |= {"record": [""], "use": [""]}
            reading = self._reader.open(number)
            outputs, use = self._network.run(reading.batches(self._batch_size))
            shard = reading.shard()
            table, rejects = self._network.rows(shard, outputs)
            record = write_part(
                self._output, part_name(number), table, rejects, rows_in=shard.num_listed
            )
            use["read_bytes"] = shard.num_bytes
            row |= {"record": [json.dumps(asdict(record))], "use": [json.dumps(use)]}
        return row


class DecodeWorker:
    """An actor on CPUs: from shard numbers to decoded shards."""

    def __init__(self, job: ImageJob, index: Location) -> None:
        self._reader = ShardReader(job, index, 1)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """Return one decoded shard."""
        number = int(batch["shard"][0])
        with failure_row() as row:
            shard = self._reader.open(number).whole()
            rest = pickle.dumps((number, replace(shard, pixels=shard.pixels[:0])))
            row |= {"pixels": [shard.pixels.reshape(-1).data], "rest": [rest]}
        return _table(row, _DECODED)


class NetworkWorker:
    """An actor on a GPU: from decoded shards to rows of the output."""

    def __init__(self, job: ImageJob, batch_size: int) -> None:
        self._batch_size = batch_size
        self._network = NetworkRunner(job)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the rows of one shard."""
        failure = batch["failure"][0].as_py()
        if failure:
            return _table({"failure": [failure]}, _COMPUTED)
        with failure_row() as row:
            number, shard = pickle.loads(batch["rest"][0].as_py())  # noqa: S301 - ours
            pixels = np.frombuffer(batch["pixels"][0].as_buffer(), np.uint8).reshape(-1, *FACE)
            shard = replace(shard, pixels=pixels)
            size = self._batch_size
            batches = (pixels[first : first + size] for first in range(0, len(pixels), size))
            outputs, use = self._network.run(batches)
            found = (number, shard.num_listed, *self._network.rows(shard, outputs))
            use["read_bytes"] = shard.num_bytes
            row |= {"rows": [pickle.dumps(found)], "use": [json.dumps(use)]}
        return _table(row, _COMPUTED)


class PartWriter:
    """Writes what a `NetworkWorker` computed, as a task on CPUs."""

    def __init__(self, output: Location) -> None:
        self._output = output

    def write(self, batch: pa.Table) -> dict[str, Any]:
        """Write one part; return its record."""
        failure = batch["failure"][0].as_py()
        if failure:
            return {"record": [""], "use": [""], "failure": [failure]}
        with failure_row() as row:
            row |= {"record": [""], "use": [""]}
            number, rows_in, table, rejects = pickle.loads(batch["rows"][0].as_py())  # noqa: S301
            record = write_part(self._output, part_name(number), table, rejects, rows_in=rows_in)
            row |= {"record": [json.dumps(asdict(record))], "use": [batch["use"][0].as_py()]}
        return row


class NetworkRunner:
    """A network on a worker, and how long it was at work."""

    def __init__(self, job: ImageJob) -> None:
        self._stage, self._threads = job.stage, job.network_threads
        self._loaded: Network | None = None

    def run(
        self, batches: Iterable[NDArray[np.uint8]]
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Return the outputs of all batches together, and how the time was spent."""
        if self._loaded is None:  # not in the constructor, whose errors Ray would wrap and retry
            self._loaded = self._stage.load(self._threads)
        waiting = _Waiting()
        began = time.time()
        outputs = list(self._loaded(waiting.watch(batches)))
        if not outputs:
            outputs = list(self._loaded([np.zeros((0, *FACE), np.uint8)]))
        ended = time.time()
        use = {
            "worker": f"{socket.gethostname()}/{os.getpid()}",
            "began": began,
            "ended": ended,
            "busy_s": ended - began - waiting.seconds,
        }
        return np.concatenate(outputs), use

    def rows(self, shard: Shard, outputs: NDArray[np.float32]) -> tuple[pa.Table, list[Reject]]:
        """Return the rows of the output and all rows of the shard that were set aside."""
        return self._stage.rows(shard, outputs)


class _Waiting:
    """Measures how long a consumer waits for an iterator."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self.seconds += time.perf_counter() - asked
            if batch is None:
                return
            yield batch


_DECODED = pa.schema(
    [("pixels", pa.large_binary()), ("rest", pa.binary()), ("failure", pa.binary())]
)
_COMPUTED = pa.schema([("rows", pa.large_binary()), ("use", pa.string()), ("failure", pa.binary())])


def _table(row: dict[str, Any], schema: pa.Schema) -> pa.Table:
    arrays = [pa.array(row.get(field.name, [None]), field.type) for field in schema]
    return pa.table(arrays, schema=schema)


def _digest(pixels: NDArray[np.uint8]) -> int:
    return int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "little")
